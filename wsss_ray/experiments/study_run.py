"""``wsss study run``: every row of a table with every seed, some at a time; finished ones are not run again."""

from __future__ import annotations

import io
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from wsss_ray import storage
from wsss_ray.artifacts import network as build
from wsss_ray.artifacts.network import NetworkSpec
from wsss_ray.artifacts.store import held
from wsss_ray.cluster.join import cluster, concurrency, release_orphans, this_node
from wsss_ray.cluster.progress import console
from wsss_ray.config import UserError
from wsss_ray.experiments import run as runs
from wsss_ray.experiments.study import Row, Study
from wsss_ray.experiments.study_plan import (
    RESULTS,
    Todo,
    chosen_rows,
    left_out,
    opened,
    planned,
    startable,
    study_folder,
)
from wsss_ray.recipe import Recipe
from wsss_ray.reports.study_table import drawn, markdown, summarize
from wsss_ray.tracking import Tracker

KEPT = (
    *("miou", "pixel_accuracy", "mean_precision", "mean_recall", "precision_foreground", "recall_foreground"),
    *("part_recall", "protocol"),
)
"""What the results keep of every scored variant."""
TABLE = "table.md"
FIGURE = "figure.png"


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
    unknown ``rows``, where not one of them can start, or where another process runs this study.
    """
    wanted = chosen_rows(study, rows)
    folder = study_folder(out, study.name, scale)
    with held(folder, "study"):
        results = opened(study, scale, profile, folder, data, settings)
        todo = startable(planned(study, wanted, results, num_seeds, data, settings), results)
        left_out(study, results, todo, data, settings)
        save(folder, results)
        if todo or results["mlflow_status"] not in ("", "FINISHED"):
            run_rows(study, results, todo, folder, out, address, max_concurrent)
            return results
    failed = any(entry["status"] == "failed" for row in results["rows"] for entry in row["seeds"].values())
    quoted = all(study.rows[place].recipe is None for place in wanted)
    what = "these rows are quoted and none of them runs" if quoted else "every row asked for is done"
    what = "no other row is left to run" if failed else what
    console.print(f"{study.name}: {what}; 'wsss study report {study.name}' shows the table", soft_wrap=True)
    return results


def run_rows(
    study: Study,
    results: dict[str, Any],
    todo: Sequence[Todo],
    folder: str,
    out: str,
    address: str | None,
    max_concurrent: int | None,
) -> None:
    """Run ``todo`` into ``results``, as children of the MLflow run that earlier calls began."""
    tracker = Tracker(storage.absolute(out), study.name, study_tags(study, results), resume=results["mlflow_run"])
    results |= {"mlflow_run": tracker.run_id, "mlflow_status": "RUNNING"}
    save(folder, results)
    status = "FAILED"
    try:
        tracker.end_children()
        if todo:
            with cluster(address):
                share = concurrency(todo[0][2].resources, max_concurrent, len(todo))
                for (place, seed, _, key), entry in finished_rows(study, todo, out, tracker.run_id, share):
                    trace = entry.pop("traceback", None)
                    if trace:
                        console.print(trace, markup=False, soft_wrap=True)
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
        tracker.end_children()
        tracker.finish(status)
        results["mlflow_status"] = status
        save(folder, results)


def study_tags(study: Study, results: dict[str, Any]) -> dict[str, str]:
    """What a study's own run is searched by: as for runs, with every method of its rows."""
    methods = dict.fromkeys(row.recipe.method.name for row in study.rows if row.recipe is not None)
    return {
        "kind": "study",
        "study": study.name,
        "method": ", ".join(methods),
        "data": runs.data_name(results["data"]),
        "scale": results["scale"],
        "profile": results["profile"],
        "metric": study.metric,
        "git_commit": runs.git_commit(),
    }


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
            release_orphans()
            yield one, failure(error, 0.0)


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
        return failure(error, time.monotonic() - start)
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


def failure(error: Exception, seconds: float) -> dict[str, Any]:
    """One line for the table; the traceback of what is not the user's to mend, for the driver, whom prints reach."""
    line = next((line for line in str(error).splitlines() if line.strip()), "no message")[:400]
    if isinstance(error, UserError):
        return {"status": "failed", "reason": line, "seconds": seconds}
    whole = "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": f"{type(error).__name__}: {line}", "seconds": seconds, "traceback": whole}


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
    image = drawn(report)
    if image is not None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
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
    tracker.params({"data": report.data or "toy", "settings": " ".join(report.settings)})
    # A tag, since a later version of the study may have more, and MLflow refuses another value of a parameter.
    tracker.tags({"rows": str(len(report.lines))})
    tracker.text(markdown(report), TABLE)
    image = drawn(report)
    if image is not None:
        with tempfile.TemporaryDirectory() as folder:
            image.save(Path(folder) / FIGURE, optimize=True)
            tracker.files([Path(folder) / FIGURE])
    tracker.flush()
