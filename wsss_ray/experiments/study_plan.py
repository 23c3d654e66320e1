"""What a study has and what is left to run of it: its kept results and their keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wsss_ray import storage
from wsss_ray.artifacts.store import digest
from wsss_ray.cluster.progress import console
from wsss_ray.config import UserError
from wsss_ray.experiments import run as runs
from wsss_ray.experiments.road import made_with
from wsss_ray.experiments.study import Row, Study, needed
from wsss_ray.recipe import Recipe, override

RESULTS = "results.json"
STALE = "stale"
"""State of a seed that was finished with another recipe, data or version."""
Todo = tuple[int, int, Recipe, str]
"""Row, seed, recipe and key of something still to run."""


def study_folder(out: str, name: str, scale: str) -> str:
    """Where a study keeps its results."""
    return storage.join(storage.absolute(out), "studies", f"{name}-{scale}")


def slug(name: str) -> str:
    """A row's name as part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"


def chosen_rows(study: Study, wanted: Sequence[str]) -> list[int]:
    """Indices of the rows asked for by name, by name as in folders, or by number from 1; all for an empty list."""
    places = []
    for text in wanted:
        fits = [
            place
            for place, row in enumerate(study.rows)
            if text.lower() == row.name.lower() or slug(text) == slug(row.name) or text == str(place + 1)
        ]
        exact = [place for place in fits if study.rows[place].name.lower() == text.lower()]
        if not fits:
            names = ", ".join(f"{place + 1} {row.name!r}" for place, row in enumerate(study.rows))
            raise UserError(f"--rows {text}: {study.name} has no such row; it has {names}")
        places.append((exact or fits)[0])
    return sorted(set(places)) if wanted else list(range(len(study.rows)))


def opened(
    study: Study, scale: str, profile: str, folder: str, data: str | None, settings: Sequence[str]
) -> dict[str, Any]:
    """The results kept for the same data, settings and profile, laid over the study's rows; others are set aside."""
    head = {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "metric": study.metric,
        "variant": study.variant,
        "axis": study.axis,
        "also": list(study.also),
        "scale": scale,
        "profile": profile,
        "data": data,
        "settings": list(settings),
    }
    tracked: dict[str, Any] = {"mlflow_run": None, "mlflow_status": ""}
    known: dict[tuple[str, int], Any] = {}
    where = storage.join(folder, RESULTS)
    if storage.exists(where):
        before = storage.read_json(where)
        if all(before.get(key) == head[key] for key in ("profile", "data", "settings")):
            known = dict(zip(_told_apart([row["name"] for row in before["rows"]]), before["rows"], strict=True))
            tracked = {key: before.get(key, value) for key, value in tracked.items()}
        else:
            aside = f"results-{digest([before.get(key) for key in ('profile', 'data', 'settings')])[:8]}.json"
            storage.write_json(storage.join(folder, aside), before)
            console.print(f"{study.name}: results of other settings are kept as {aside}")
    rows = [
        {
            "name": row.name,
            "published": dict(row.published),
            "note": row.note,
            "runs": row.recipe is not None,
            "seeds": known.get(key, {"seeds": {}})["seeds"],
        }
        for row, key in zip(study.rows, _told_apart([row.name for row in study.rows]), strict=True)
    ]
    return {**head, **tracked, "rows": rows}


def _told_apart(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names with how often each came before: tables print some twice."""
    return [(name, list(names[:place]).count(name)) for place, name in enumerate(names)]


def planned(
    study: Study,
    wanted: Sequence[int],
    results: dict[str, Any],
    num_seeds: int,
    data: str | None,
    settings: Sequence[str],
) -> list[Todo]:
    """(row, seed, recipe, key) of everything still to run, first seeds first; rows that settings do not fit are noted.

    Raises UserError where no row fits, or the data is not there.
    """
    given = made_with(data)
    todo: list[Todo] = []
    refused: list[UserError] = []
    runnable = [place for place in wanted if study.rows[place].recipe is not None]
    for offset in range(num_seeds):
        for place in runnable:
            row, seeds = study.rows[place], results["rows"][place]["seeds"]
            assert row.recipe is not None
            seed = row.recipe.seed + offset
            try:
                recipe, key = settled(study, row, seed, data, given, settings)
            except UserError as error:
                refused.append(error)
                seeds[str(seed)] = {"status": "failed", "reason": str(error), "key": ""}
                continue
            entry = seeds.get(str(seed))
            if entry is None or entry["status"] != "finished" or entry["key"] != key:
                todo.append((place, seed, recipe, key))
    if refused and len(refused) == len(runnable) * num_seeds:
        raise refused[0]
    return todo


def settled(
    study: Study, row: Row, seed: int, data: str | None, given: dict[str, Any], settings: Sequence[str]
) -> tuple[Recipe, str]:
    """The recipe of one row and seed, and the key its result is known by; UserError where a setting does not fit."""
    assert row.recipe is not None
    extra = [f"data.uri={data}"] if data else []
    whole = override(row.recipe, [*extra, f"seed={seed}", *settings])
    recipe = named(study, row, needed(study, whole), seed)
    changes = recipe.model_dump(mode="json", exclude={"resources"})
    return recipe, digest({"recipe": changes, **given})


def left_out(
    study: Study, results: dict[str, Any], todo: Sequence[Todo], data: str | None, settings: Sequence[str]
) -> None:
    """Mark kept seeds whose recipe, data or stage version has changed as stale, which the report leaves out.

    Those that fit again count again. Names once the rows that this call does not run anew.
    """
    given = made_with(data)
    names: dict[str, int] = {}
    for place, (row, kept) in enumerate(zip(study.rows, results["rows"], strict=True)):
        for seed, entry in kept["seeds"].items():
            if entry["status"] not in ("finished", STALE):
                continue
            try:
                fits = row.recipe is not None and settled(study, row, int(seed), data, given, settings)[1]
            except UserError:
                fits = False
            entry["status"] = "finished" if fits == entry.get("key") else STALE
            if entry["status"] == STALE and (place, int(seed)) not in [one[:2] for one in todo]:
                names[row.name] = names.get(row.name, 0) + 1
    if names:
        listed = ", ".join(f"{name} ({count})" for name, count in names.items())
        console.print(
            f"{study.name}: seeds of an older recipe, data or version do not count until they run again, by --rows and "
            f"--seeds: {listed}",
            markup=False,
            soft_wrap=True,
        )


def startable(todo: Sequence[Todo], results: dict[str, Any]) -> list[Todo]:
    """What passes the checks before Ray; rows that do not (weights that are not there) are noted and shown at once."""
    ready = []
    for place, seed, recipe, key in todo:
        row = results["rows"][place]
        try:
            runs.preflight(recipe)
        except UserError as error:
            row["seeds"][str(seed)] = {"status": "failed", "reason": str(error), "key": key}
            console.print(f"{row['name']}: cannot run: {error}", markup=False, soft_wrap=True)
        else:
            ready.append((place, seed, recipe, key))
    return ready


def named(study: Study, row: Row, recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the name and tags its run is found by."""
    tags = {**recipe.tags, "study": study.name, "row": row.name, "seed": str(seed)}
    return recipe.model_copy(update={"name": f"{study.name}.{slug(row.name)}", "seed": seed, "tags": tags})
