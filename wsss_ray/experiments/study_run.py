# SPDX-License-Identifier: Apache-2.0
"""``wsss study run``: every row of a table with every seed, some at a time; finished ones are not run again."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from wsss_ray import storage
from wsss_ray.artifacts.network import read_spec
from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.artifacts.store import hold_folder
from wsss_ray.cluster.join import choose_concurrency, find_this_node, join_cluster, release_orphans
from wsss_ray.cluster.probe import list_places
from wsss_ray.contracts import Trainable
from wsss_ray.experiments.failures import describe_failure
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.experiments.study import Study
from wsss_ray.experiments.study_plan import (
    OpenStudy,
    SettledRow,
    StudyOptions,
    choose_rows,
    keep_startable,
    mark_stale,
    open_study,
    plan_rows,
)
from wsss_ray.experiments.tags import name_data, read_commit
from wsss_ray.reports.figure import encode_figure
from wsss_ray.reports.study_results import RESULTS, locate_study
from wsss_ray.reports.study_table import summarize_study
from wsss_ray.reports.study_text import draw_figure, write_markdown
from wsss_ray.score.names import list_kept_numbers, take_scored
from wsss_ray.tracking import Tracker

log = logging.getLogger(__name__)
TABLE = "table.md"
FIGURE = "figure.png"


def run_study(
    study: Study,
    options: StudyOptions,
    out: str,
    address: str | None = None,
    max_concurrent: int | None = None,
) -> dict[str, Any]:
    """Run the rows of ``study`` that are not done yet, and return its results (``summarize_study`` reads them).

    ``max_concurrent`` rows run at the same time, each on its share of the cluster (default as for sweeps); what two of
    them need is computed once. A row that fails is noted with its reason and the others go on. Raises UserError for
    unknown rows, where not one of them can start, or where another process runs this study.
    """
    wanted = choose_rows(study, options.rows)
    folder = locate_study(out, study.name, options.scale)
    with hold_folder(folder, "study"):
        opened = open_study(study, options, folder)
        planned = keep_startable(opened, plan_rows(opened, wanted))
        mark_stale(opened, planned)
        save_study(opened)
        if planned or opened.results["mlflow_status"] not in ("", "FINISHED"):
            run_rows(opened, planned, out, address, max_concurrent)
            return opened.results
    log.info(_explain_nothing(opened, wanted))
    return opened.results


def _explain_nothing(opened: OpenStudy, wanted: Sequence[int]) -> str:
    """Why a call runs nothing."""
    study = opened.study
    places = range(len(study.rows))
    if any(entry["status"] == "failed" for place in places for entry in opened.seeds_of(place).values()):
        what = "no other row is left to run"
    elif all(study.rows[place].recipe is None for place in wanted):
        what = "these rows are quoted and none of them runs"
    else:
        what = "every row asked for is finished"
    return f"{study.name}: {what}; 'wsss study report {study.name}' shows the table"


def run_rows(
    opened: OpenStudy, planned: Sequence[SettledRow], out: str, address: str | None, max_concurrent: int | None
) -> None:
    """Run the planned rows into the results, as children of the MLflow run that earlier calls began."""
    results = opened.results
    tags = build_tags(opened.study, opened.options)
    tracker = Tracker(storage.make_absolute(out), opened.study.name, tags, resume=results["mlflow_run"])
    results |= {"mlflow_run": tracker.run_id, "mlflow_status": "RUNNING"}
    save_study(opened)
    try:
        with tracker.hold_children():
            if planned:
                places = list_places(storage.make_absolute(out), planned[0].recipe.data.uri)
                with join_cluster(address, places):
                    share = choose_concurrency(planned[0].recipe.resources, max_concurrent, len(planned))
                    for row, entry in run_concurrently(opened.study, planned, out, tracker.run_id, share):
                        _keep_result(opened, row, entry)
            log_study(tracker, results)
    finally:
        results["mlflow_status"] = tracker.status
        save_study(opened)


def _keep_result(opened: OpenStudy, row: SettledRow, entry: dict[str, Any]) -> None:
    """Keep what came of a row; a failure is printed, with its traceback where it is not the user's to fix."""
    trace = entry.pop("traceback", None)
    if trace:
        log.error(trace)
    opened.seeds_of(row.place)[str(row.seed)] = {**entry, "key": row.key}
    if entry["status"] == "failed":
        log.warning(f"{row.name}: failed: {entry['reason']}")
    save_study(opened)


def build_tags(study: Study, options: StudyOptions) -> dict[str, str]:
    """What a study's own run is searched by: as for runs, with every method of its rows."""
    methods = dict.fromkeys(row.recipe.method.name for row in study.rows if row.recipe is not None)
    return {
        "kind": "study",
        "study": study.name,
        "method": ", ".join(methods),
        "data": name_data(options.data),
        "scale": options.scale,
        "profile": options.profile,
        "metric": study.metric,
        "git_commit": read_commit(),
    }


def run_concurrently(
    study: Study, planned: Sequence[SettledRow], out: str, parent: str, share: int
) -> Iterator[tuple[SettledRow, dict[str, Any]]]:
    """Every planned row with what came of it, as they end; ``share`` at a time, each in a process of its own."""
    numbers = iter(range(1, len(planned) + 1))

    def announce(row: SettledRow) -> None:
        log.info(f"[{next(numbers)}/{len(planned)}] {study.name}: {row.name}, seed {row.seed}")

    if share == 1:
        for row in planned:
            announce(row)
            yield row, run_row(study, row, out, parent)
        return
    # On this node, where the locks of its files hold that keep two rows from computing the same.
    remote = ray.remote(num_cpus=0, max_retries=0, resources={find_this_node(): 0.001})(_run_row_in)
    waiting = list(planned)
    running: dict[Any, SettledRow] = {}
    while waiting or running:
        while waiting and len(running) < share:
            row = waiting.pop(0)
            announce(row)
            running[remote.remote(os.getcwd(), study, row, out, parent, share)] = row
        ended, _ = ray.wait(list(running), num_returns=1)
        row = running.pop(ended[0])
        try:
            yield row, ray.get(ended[0])
        except RayError as error:
            release_orphans()
            yield row, note_failure(error, 0.0)


def _run_row_in(folder: str, study: Study, row: SettledRow, out: str, parent: str, share: int) -> dict[str, Any]:
    """``run_row`` in a process of its own, in the working folder that relative paths mean."""
    if Path(folder).is_dir():
        os.chdir(folder)
    return run_row(study, row, out, parent, share)


def run_row(study: Study, row: SettledRow, out: str, parent: str, share: int = 1) -> dict[str, Any]:
    """Run one row with one seed, on one of ``share`` parts of the cluster: what the results keep, or why it failed."""
    start = time.monotonic()
    try:
        done = run(row.recipe, RunOptions(out, share=share, parent=parent))
        counted = "params" in (study.metric, *study.also, *study.rows[row.place].published)
        params = count_parameters(done) if counted else None
    except Exception as error:  # whatever a row runs into, the others go on
        return note_failure(error, time.monotonic() - start)
    return {
        "status": "finished",
        "scores": keep_scores(done.scores),
        "params": params,
        "train_seconds": done.train_seconds,
        **keep_last_epoch(done.history.get("train", ())),
        "run": done.folder.rsplit("/", 1)[-1],
        "mlflow_run": done.mlflow_run,
        "seconds": time.monotonic() - start,
    }


def keep_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Step -> variant -> the numbers that a study's columns read, with their protocol."""
    kept = (*list_kept_numbers(), "protocol")
    return {
        step: {variant: {key: values.get(key) for key in kept} for variant, values in take_scored(step, found).items()}
        for step, found in scores.items()
    }


def keep_last_epoch(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of the localizer's last epoch what a study's columns read: its average precision and its monitors by name."""
    if not history:
        return {}
    last = history[-1]
    monitors = {name: value for name, value in last["losses"].items() if name.startswith("monitor/")}
    return {"mean_ap": last.get("mean_ap"), **monitors}


def note_failure(error: Exception, seconds: float) -> dict[str, Any]:
    """What the results keep of a failure, and its traceback where it has one, which the driver prints."""
    reason, trace = describe_failure(error)
    return {"status": "failed", "reason": reason, "seconds": seconds, **({"traceback": trace} if trace else {})}


def count_parameters(done: FinishedRun) -> float:
    """Millions of trainable parameters of the network that predicts, or else localizes: what WS-FCN's tables count."""
    network = done.artifacts.get("segmenter") or done.artifacts["network"]
    groups = cast(Trainable, read_spec(network.uri).build()).param_groups()
    return sum(parameter.numel() for group in groups for parameter in group.params) / 1e6


def save_study(opened: OpenStudy) -> None:
    """Results, table and figure, each written atomically."""
    storage.write_json(storage.join(opened.folder, RESULTS), opened.results)
    table = summarize_study(opened.results)
    storage.write_bytes(storage.join(opened.folder, TABLE), write_markdown(table).encode())
    figure = draw_figure(table)
    if figure is not None:
        storage.write_bytes(storage.join(opened.folder, FIGURE), encode_figure(figure))


def log_study(tracker: Tracker, results: Mapping[str, Any]) -> None:
    """The study's own run in MLflow: ours and published over the rows in their order, tau, and the table."""
    table = summarize_study(results)
    for step, line in enumerate(table.lines):
        cell = line.cells[table.metric]
        tracker.log_metrics(
            {f"rows/{table.metric}/ours": cell.mean, f"rows/{table.metric}/published": cell.published}, step
        )
        tracker.log_metrics({f"row/{line.name}/{table.metric}": cell.mean})
    if table.ranking is not None:
        tracker.log_metrics({"order/tau_b": table.ranking.tau, "order/p_value": table.ranking.p_value})
    tracker.log_params({"data": table.data or "toy", "settings": " ".join(table.settings)})
    # A tag, since a later version of the study may have more, and MLflow refuses another value of a parameter.
    tracker.set_tags({"rows": str(len(table.lines))})
    tracker.log_text(write_markdown(table), TABLE)
    figure = draw_figure(table)
    if figure is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FIGURE).write_bytes(encode_figure(figure))
            tracker.log_files([Path(folder) / FIGURE])
    tracker.flush()
