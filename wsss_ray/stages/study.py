"""``wsss study run``: every row of a table with every seed, some at a time; finished ones are not run again."""

from __future__ import annotations

import io
import os
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from wsss_ray import build, storage
from wsss_ray.artifacts import digest
from wsss_ray.build import NetworkSpec
from wsss_ray.config import UserError
from wsss_ray.data.manifest import load_manifest
from wsss_ray.recipe import Recipe, override
from wsss_ray.stages import run as runs
from wsss_ray.stages.cluster import cluster, concurrency, this_node
from wsss_ray.stages.progress import console
from wsss_ray.stages.road import VERSIONS
from wsss_ray.study import Row, Study, needed
from wsss_ray.study_report import drawn, markdown, summarize
from wsss_ray.tracking import Tracker

KEPT = ("miou", "pixel_accuracy", "mean_precision", "mean_recall", "part_recall", "protocol")
"""What the results keep of every scored variant."""
RESULTS = "results.json"
TABLE = "table.md"
FIGURE = "figure.png"
Todo = tuple[int, int, Recipe, str]
"""Row, seed, recipe and key of something still to run."""


def run_study(
    study: Study,
    scale: str,
    profile: str,
    out: str,
    num_seeds: int = 1,
    data: str | None = None,
    settings: Sequence[str] = (),
    rows: Sequence[str] = (),
    address: str | None = None,
    max_concurrent: int | None = None,
) -> dict[str, Any]:
    """Run the rows of ``study`` that are not done yet, and return its results (``study_report.summarize`` reads them).

    ``max_concurrent`` rows run at the same time, each on its share of the cluster (default as for sweeps); what two of
    them need is computed once. A row that fails is noted with its reason and the others go on. Raises UserError for
    unknown ``rows``, or where not one of them can start.
    """
    wanted = chosen_rows(study, rows)
    folder = study_folder(out, study.name, scale)
    results = opened(study, scale, profile, folder, data, settings)
    todo = startable(planned(study, wanted, results, num_seeds, data, settings), results)
    save(folder, results)
    if not todo:
        failed = any(entry["status"] == "failed" for row in results["rows"] for entry in row["seeds"].values())
        quoted = all(study.rows[place].recipe is None for place in wanted)
        what = "these rows are quoted and none of them runs" if quoted else "every row asked for is done"
        what = "no other row is left to run" if failed else what
        console.print(f"{study.name}: {what}; 'wsss study report {study.name}' shows the table", soft_wrap=True)
        return results
    tags = {"kind": "study", "study": study.name, "scale": scale, "profile": profile, "metric": study.metric}
    tracker = Tracker(storage.absolute(out), study.name, tags)
    status = "FAILED"
    try:
        with cluster(address):
            share = concurrency(todo[0][2].resources, max_concurrent, len(todo))
            for (place, seed, _, key), entry in finished_rows(study, todo, out, tracker.run_id, share):
                results["rows"][place]["seeds"][str(seed)] = {**entry, "key": key}
                if entry["status"] == "failed":
                    name = study.rows[place].name
                    console.print(f"{name}: failed: {entry['reason']}", markup=False, soft_wrap=True)
                save(folder, results)
        log_study(tracker, results)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    return results


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
    known: dict[tuple[str, int], Any] = {}
    where = storage.join(folder, RESULTS)
    if storage.exists(where):
        before = storage.read_json(where)
        if all(before.get(key) == head[key] for key in ("profile", "data", "settings")):
            known = dict(zip(_told_apart([row["name"] for row in before["rows"]]), before["rows"], strict=True))
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
    return {**head, "rows": rows}


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
    given = load_manifest(storage.absolute(data)).digest if data else None
    todo: list[Todo] = []
    refused: list[UserError] = []
    runnable = [place for place in wanted if study.rows[place].recipe is not None]
    for offset in range(num_seeds):
        for place in runnable:
            row, seeds = study.rows[place], results["rows"][place]["seeds"]
            assert row.recipe is not None
            seed = row.recipe.seed + offset
            extra = [f"data.uri={data}"] if data else []
            try:
                whole = override(row.recipe, [*extra, f"seed={seed}", *settings])
                recipe = named(study, row, needed(study, whole), seed)
            except UserError as error:
                refused.append(error)
                seeds[str(seed)] = {"status": "failed", "reason": str(error), "key": ""}
                continue
            changes = recipe.model_dump(mode="json", exclude={"resources"})
            key = digest({"recipe": changes, "versions": VERSIONS, "data": given})
            entry = seeds.get(str(seed))
            if entry is None or entry["status"] != "finished" or entry["key"] != key:
                todo.append((place, seed, recipe, key))
    if refused and len(refused) == len(runnable) * num_seeds:
        raise refused[0]
    return todo


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


def finished_rows(
    study: Study, todo: Sequence[Todo], out: str, parent: str, share: int
) -> Iterator[tuple[Todo, dict[str, Any]]]:
    """Everything of ``todo`` with what came of it, as they end; ``share`` at a time, each in a process of its own."""
    told = (f"[{number}/{len(todo)}] {study.name}: " for number in range(1, len(todo) + 1))

    def say(one: Todo) -> None:
        console.print(f"{next(told)}{study.rows[one[0]].name}, seed {one[1]}", markup=False)

    if share == 1:
        for one in todo:
            say(one)
            yield one, finished_row(study, study.rows[one[0]], one[2], out, parent)
        return
    # Here, where the locks of its files hold that keep two rows from computing the same.
    remote = ray.remote(num_cpus=0, max_retries=0, resources={this_node(): 0.001})(_row_elsewhere)
    waiting = list(todo)
    running: dict[Any, Todo] = {}
    while waiting or running:
        while waiting and len(running) < share:
            one = waiting.pop(0)
            say(one)
            running[remote.remote(os.getcwd(), study, study.rows[one[0]], one[2], out, parent, share)] = one
        ended, _ = ray.wait(list(running), num_returns=1)
        one = running.pop(ended[0])
        try:
            yield one, ray.get(ended[0])
        except RayError as error:
            yield one, {"status": "failed", "reason": reason_of(error), "seconds": 0.0}


def _row_elsewhere(folder: str, *given: Any) -> dict[str, Any]:
    if Path(folder).is_dir():
        os.chdir(folder)
    return finished_row(*given)


def finished_row(study: Study, row: Row, recipe: Recipe, out: str, parent: str, share: int = 1) -> dict[str, Any]:
    """One row with one seed, on one of ``share`` parts of the cluster: what the results keep of it, or why it
    failed."""
    start = time.monotonic()
    try:
        done = runs.run(recipe, out, parent=parent, quiet=True, share=share)
        params = num_parameters(done) if "params" in {study.metric, *study.also, *row.published} else None
    except Exception as error:  # whatever a row runs into, the others go on
        return {"status": "failed", "reason": reason_of(error), "seconds": time.monotonic() - start}
    kept = {
        step: {
            variant: {key: values.get(key) for key in KEPT}
            for variant, values in scored.items()
            if "protocol" in values
        }
        for step, scored in done.scores.items()
    }
    return {
        "status": "finished",
        "scores": kept,
        "params": params,
        "train_seconds": done.train_seconds,
        "run": done.folder.rsplit("/", 1)[-1],
        "mlflow_run": done.mlflow_run,
        "seconds": time.monotonic() - start,
    }


def reason_of(error: Exception) -> str:
    """One line for the table; what is not the user's to mend is also printed whole."""
    line = next((line for line in str(error).splitlines() if line.strip()), "no message")[:400]
    if isinstance(error, UserError):
        return line
    console.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
    return f"{type(error).__name__}: {line}"


def num_parameters(done: runs.Run) -> float:
    """Millions of parameters that learn in the network that answers: what WS-FCN's tables count."""
    network = done.artifacts.get("segmenter") or done.artifacts["network"]
    spec = NetworkSpec.model_validate(storage.read_json(storage.join(network.uri, "network.json")))
    groups = build.network(spec).param_groups()  # type: ignore[operator]
    return sum(parameter.numel() for group in groups for parameter in group.params) / 1e6


def save(folder: str, results: dict[str, Any]) -> None:
    """Results, table and figure, each written atomically."""
    storage.write_json(storage.join(folder, RESULTS), results)
    report = summarize(results)
    storage.write_bytes(storage.join(folder, TABLE), markdown(report).encode())
    picture = drawn(report)
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        storage.write_bytes(storage.join(folder, FIGURE), buffer.getvalue())


def log_study(tracker: Tracker, results: dict[str, Any]) -> None:
    """The study's own run in MLflow: ours and published over the rows in their order, tau, and the table."""
    report = summarize(results)
    for step, line in enumerate(report.lines):
        cell = line.cells[report.metric]
        tracker.metrics(
            {f"rows/{report.metric}/ours": cell.mean, f"rows/{report.metric}/published": cell.published}, step
        )
        tracker.metrics({f"row/{line.name}/{report.metric}": cell.mean})
    if report.order is not None:
        tracker.metrics({"order/tau_b": report.order.tau, "order/p_value": report.order.p_value})
    tracker.params({"rows": len(report.lines), "data": report.data or "toy", "settings": " ".join(report.settings)})
    tracker.text(markdown(report), TABLE)
    picture = drawn(report)
    if picture is not None:
        with tempfile.TemporaryDirectory() as folder:
            picture.save(Path(folder) / FIGURE, optimize=True)
            tracker.files([Path(folder) / FIGURE])
    tracker.flush()
