# SPDX-License-Identifier: Apache-2.0
"""What a study has and what is left to run of it: its kept results and their keys."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsss_ray import storage
from wsss_ray.artifacts.store import digest
from wsss_ray.config import UserError
from wsss_ray.experiments.settle import check_recipe, describe_inputs
from wsss_ray.experiments.study import Row, Study, shorten_recipe
from wsss_ray.recipe import Recipe, override
from wsss_ray.reports.study_results import RESULTS, STALE

log = logging.getLogger(__name__)
SAME = ("profile", "data", "settings")
"""What kept results must have been made with to be continued."""


@dataclass(frozen=True)
class StudyOptions:
    """How a study is run."""

    scale: str = "toy"
    profile: str = "paper"
    num_seeds: int = 1
    data: str | None = None
    """Data set of every row; None: synthetic images."""
    settings: tuple[str, ...] = ()
    """``key=value`` overrides of every row's recipe."""
    rows: tuple[str, ...] = ()
    """Names or numbers (from 1) of the rows to run; empty: all."""


@dataclass(frozen=True)
class OpenStudy:
    """A study with the results it keeps in its folder."""

    study: Study
    options: StudyOptions
    folder: str
    results: dict[str, Any]
    """What ``results.json`` holds; updated while rows run."""

    def seeds_of(self, place: int) -> dict[str, Any]:
        """Seed -> what is kept of it, of the row at ``place``."""
        seeds: dict[str, Any] = self.results["rows"][place]["seeds"]
        return seeds

    def note_failure(self, place: int, seed: int, reason: str, key: str = "") -> None:
        """Keep that a row with one seed could not run."""
        self.seeds_of(place)[str(seed)] = {"status": "failed", "reason": reason, "key": key}


@dataclass(frozen=True)
class SettledRow:
    """A row with one seed, whose recipe is decided."""

    place: int
    """Index of the row in its study."""
    name: str
    seed: int
    recipe: Recipe
    key: str
    """Digest that its result is known by: recipe, data and versions of the steps."""


def make_slug(name: str) -> str:
    """A row's name as part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def choose_rows(study: Study, wanted: Sequence[str]) -> list[int]:
    """Indices of the rows asked for by name, by name as in folders, or by number from 1; all for an empty list."""
    places = []
    for text in wanted:
        fits = [
            place
            for place, row in enumerate(study.rows)
            if text.lower() == row.name.lower() or make_slug(text) == make_slug(row.name) or text == str(place + 1)
        ]
        exact = [place for place in fits if study.rows[place].name.lower() == text.lower()]
        if not fits:
            names = ", ".join(f"{place + 1} {row.name!r}" for place, row in enumerate(study.rows))
            raise UserError(f"--rows {text}: {study.name} has no such row; it has {names}")
        places.append((exact or fits)[0])
    return sorted(set(places)) if wanted else list(range(len(study.rows)))


def open_study(study: Study, options: StudyOptions, folder: str) -> OpenStudy:
    """The results kept for the same data, settings and profile, laid over the study's rows; others are set aside."""
    head = {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "metric": study.metric,
        "variant": study.variant,
        "axis": study.axis,
        "also": list(study.also),
        "scale": options.scale,
        "profile": options.profile,
        "data": options.data,
        "settings": list(options.settings),
    }
    tracked: dict[str, Any] = {"mlflow_run": None, "mlflow_status": ""}
    known: dict[tuple[str, int], Any] = {}
    where = storage.join(folder, RESULTS)
    if storage.exists(where):
        before = storage.read_json(where)
        if all(before.get(key) == head[key] for key in SAME):
            known = dict(zip(_number_names([row["name"] for row in before["rows"]]), before["rows"], strict=True))
            tracked = {key: before.get(key, value) for key, value in tracked.items()}
        else:
            aside = f"results-{digest([before.get(key) for key in SAME])[:8]}.json"
            storage.write_json(storage.join(folder, aside), before)
            log.info(f"{study.name}: results of other settings are kept as {aside}")
    rows = [
        {
            "name": row.name,
            "published": dict(row.published),
            "note": row.note,
            "runs": row.recipe is not None,
            "seeds": known.get(key, {"seeds": {}})["seeds"],
        }
        for row, key in zip(study.rows, _number_names([row.name for row in study.rows]), strict=True)
    ]
    return OpenStudy(study, options, folder, {**head, **tracked, "rows": rows})


def _number_names(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names with how often each came before: tables print some twice."""
    return [(name, list(names[:place]).count(name)) for place, name in enumerate(names)]


def plan_rows(opened: OpenStudy, wanted: Sequence[int]) -> list[SettledRow]:
    """Everything still to run of the rows ``wanted``, first seeds first; rows that settings do not fit are noted.

    Raises UserError where no row fits, or the data is not there.
    """
    settler = _Settler(opened.study, opened.options)
    planned: list[SettledRow] = []
    refused: list[UserError] = []
    runnable = [(place, recipe) for place in wanted if (recipe := opened.study.rows[place].recipe) is not None]
    for offset in range(opened.options.num_seeds):
        for place, recipe in runnable:
            seed = recipe.seed + offset
            try:
                settled = settler.settle(place, recipe, seed)
            except UserError as error:
                refused.append(error)
                opened.note_failure(place, seed, str(error))
                continue
            entry = opened.seeds_of(place).get(str(seed))
            if entry is None or entry["status"] != "finished" or entry["key"] != settled.key:
                planned.append(settled)
    if refused and len(refused) == len(runnable) * opened.options.num_seeds:
        raise refused[0]
    return planned


class _Settler:
    """Decides recipes and keys of a study's rows on one data set."""

    def __init__(self, study: Study, options: StudyOptions) -> None:
        self.study, self.options = study, options
        self.given = describe_inputs(options.data)

    def settle(self, place: int, recipe: Recipe, seed: int) -> SettledRow:
        """The row at ``place`` with one seed; UserError where a setting does not fit its recipe."""
        row, data = self.study.rows[place], self.options.data
        extra = [f"data.uri={data}"] if data else []
        whole = override(recipe, [*extra, f"seed={seed}", *self.options.settings])
        named = name_recipe(self.study, row, shorten_recipe(self.study, whole), seed)
        changes = named.model_dump(mode="json", exclude={"resources"})
        return SettledRow(place, row.name, seed, named, digest({"recipe": changes, **self.given}))

    def find_key(self, place: int, seed: int) -> str | None:
        """The key of a row and seed; None where it does not run, or settings do not fit it."""
        recipe = self.study.rows[place].recipe
        if recipe is None:
            return None
        try:
            return self.settle(place, recipe, seed).key
        except UserError:
            return None


def mark_stale(opened: OpenStudy, planned: Sequence[SettledRow]) -> None:
    """Mark kept seeds whose recipe, data or step version has changed as stale, which the table leaves out.

    Those that fit again count again. Names once the rows that this call does not run again.
    """
    settler = _Settler(opened.study, opened.options)
    running = {(row.place, row.seed) for row in planned}
    names: dict[str, int] = {}
    for place, row in enumerate(opened.study.rows):
        for seed, entry in opened.seeds_of(place).items():
            if entry["status"] not in ("finished", STALE):
                continue
            key = settler.find_key(place, int(seed))
            entry["status"] = "finished" if key is not None and key == entry.get("key") else STALE
            if entry["status"] == STALE and (place, int(seed)) not in running:
                names[row.name] = names.get(row.name, 0) + 1
    if names:
        listed = ", ".join(f"{name} ({count})" for name, count in names.items())
        log.warning(
            f"{opened.study.name}: seeds of an older recipe, data or version do not count until they run again "
            f"(choose them with --rows and --seeds): {listed}",
        )


def keep_startable(opened: OpenStudy, planned: Sequence[SettledRow]) -> list[SettledRow]:
    """What passes the checks before Ray; rows that do not (missing weights, for one) are noted and shown at once."""
    ready = []
    for row in planned:
        try:
            check_recipe(row.recipe)
        except UserError as error:
            opened.note_failure(row.place, row.seed, str(error), row.key)
            log.warning(f"{row.name}: cannot run: {error}")
        else:
            ready.append(row)
    return ready


def name_recipe(study: Study, row: Row, recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the name and tags its run is found by."""
    tags = {**recipe.tags, "study": study.name, "row": row.name, "seed": str(seed)}
    return recipe.model_copy(update={"name": f"{study.name}.{make_slug(row.name)}", "seed": seed, "tags": tags})
