# SPDX-License-Identifier: Apache-2.0
"""``wsss sweep``: the trials of a sweep on Ray Tune, each a run of its own that shares every step it can.

A trial's driver holds no core and sits on the node of the sweep's own driver; the steps inside it get an equal share
of the cluster. The trials' file locks see to it that a step two of them need is computed once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ray import tune

from wsss_ray import storage
from wsss_ray.artifacts.store import Store, digest, hold_folder
from wsss_ray.cluster.join import choose_concurrency, find_this_node, join_cluster, release_orphans
from wsss_ray.cluster.probe import list_places
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.experiments.settle import check_recipe, describe_inputs
from wsss_ray.experiments.sweep import Plan
from wsss_ray.experiments.sweep_outcomes import (
    Outcome,
    SweepFolder,
    count_draws,
    find_best,
    group_jobs,
    merge_outcomes,
)
from wsss_ray.experiments.sweep_search import WATCHED, build_scheduler, build_searcher, read_point
from wsss_ray.experiments.sweep_space import Axis, Point, name_point
from wsss_ray.experiments.sweep_table import FIGURE, describe_metric, draw_figure, list_lines
from wsss_ray.experiments.sweep_trial import Context, run_trial
from wsss_ray.experiments.tags import tag_run
from wsss_ray.reports.figure import encode_figure
from wsss_ray.tracking import Tracker

log = logging.getLogger(__name__)


def run_sweep(plan: Plan, out: str, address: str | None = None, max_concurrent: int | None = None) -> list[Outcome]:
    """Run what is left of a sweep; its table, figure and state lie in ``<out>/sweeps/<name>``.

    A trial that fails is reported and stops nothing. Raises UserError where nothing can run, or where another process
    runs this sweep.
    """
    check_recipe(plan.recipe)
    store = Store(out)
    place = locate_sweep(plan, out)
    with hold_folder(place, "sweep"):
        folder = SweepFolder(place, digest(describe_inputs(plan.recipe.data.uri)))
        return _run_alone(plan, store.uri, folder, address, max_concurrent)


def locate_sweep(plan: Plan, out: str) -> str:
    """Where the state, the table and the figure of a sweep lie."""
    return storage.join(Store(out).uri, "sweeps", plan.name)


def _run_alone(
    plan: Plan, out: str, folder: SweepFolder, address: str | None, max_concurrent: int | None
) -> list[Outcome]:
    outcomes, earlier = folder.load()
    outcomes = [outcome for outcome in outcomes if outcome.state != "failed"]
    tags = {**tag_run(plan.recipe), "kind": "sweep", "sweep": plan.name, "search": plan.search}
    tracker = Tracker(out, f"sweep {plan.name}", tags, resume=earlier)
    with tracker.hold_children():
        tracker.log_params({f"over.{axis.key}": _axis_text(axis) for axis in plan.axes})
        kept = f" ({len(outcomes)} trials kept)" if outcomes else ""
        log.info(f"sweep: {folder.folder}{kept}")
        recorder = _Recorder(plan, folder, outcomes, tracker.run_id)
        with join_cluster(address, list_places(storage.make_absolute(out), plan.recipe.data.uri)):
            _run_trials(plan, recorder, out, max_concurrent)
    close_sweep(plan, recorder.outcomes, folder, tracker)
    return recorder.outcomes


def _run_trials(plan: Plan, recorder: _Recorder, out: str, max_concurrent: int | None) -> None:
    """All trials that are left, on the joined cluster."""
    space: dict[str, Any] = {}
    searcher = None
    if plan.search == "tpe":
        num_jobs = plan.count_draws() - count_draws(recorder.outcomes)
        searcher = build_searcher(plan, recorder.outcomes)
    else:
        jobs = group_jobs(recorder.check(plan.list_points()), plan.seeds, recorder.outcomes)
        num_jobs = len(jobs)
        space = {"job": tune.grid_search([json.dumps(job) for job in jobs])}
    if num_jobs <= 0:
        return
    share = choose_concurrency(plan.recipe.resources, max_concurrent, num_jobs)
    context = Context(
        recipe=plan.recipe,
        out=out,
        parent=recorder.parent,
        share=share,
        metric=plan.metric,
        seeds=plan.seeds,
        folder=os.getcwd(),
    )
    _silence_tune()
    scratch = tempfile.mkdtemp(prefix="wsss-sweep-")
    log.info(f"sweep: {num_jobs} trials, {share} at a time")
    try:
        with Bar("sweep", num_jobs, "trials") as recorder.bar:
            tune.Tuner(
                tune.with_resources(run_trial, {"CPU": 0, find_this_node(): 0.001}),
                param_space={**space, "context": context.model_dump_json(), "axes": [asdict(a) for a in plan.axes]},
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=build_scheduler(plan.recipe.train.epochs) if plan.stopping else None,
                    num_samples=num_jobs if searcher is not None else 1,
                    max_concurrent_trials=share,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[recorder],
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _silence_tune() -> None:
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Tune would swallow ctrl-C and end as if the sweep were over.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


class _Recorder(tune.Callback):
    """Hears of every trial in the sweep's driver: one line for people, and the state on disk."""

    def __init__(self, plan: Plan, folder: SweepFolder, outcomes: list[Outcome], parent: str) -> None:
        self.plan, self.folder, self.outcomes, self.parent = plan, folder, outcomes, parent
        self.bar = Bar("sweep", 0)
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def check(self, points: list[Point]) -> list[Point]:
        """The points that make a recipe; the others are noted as failed."""
        good, bad = [], []
        for point in points:
            try:
                self.plan.build_recipe(point, self.plan.seeds[0])
                good.append(point)
            except UserError as error:
                bad += [Outcome(point, seed, "failed", reason=str(error)) for seed in self.plan.seeds]
        self.add(bad)
        return good

    def add(self, new: Sequence[Outcome]) -> None:
        """Note outcomes and print them, what several share of a failure once."""
        for trace in dict.fromkeys(one.traceback for one in new if one.traceback):
            log.error(trace)
        new = [replace(one, traceback="") for one in new]
        for one in new:
            text = f"{one.state}: {one.reason}"
            if one.state == "finished":
                number = "-" if one.value is None else f"{100 * one.value:.1f}"
                steps = f"computed {', '.join(one.computed) or 'nothing'}; reused {', '.join(one.reused) or 'nothing'}"
                text = f"{describe_metric(self.plan.metric)} {number} in {one.seconds:.0f} s ({steps})"
            log.info(f"  {name_point(one.point)} seed={one.seed}: {text}")
        self.outcomes = merge_outcomes(self.outcomes, new)
        self.folder.save(self.plan, self.outcomes, self.parent)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The last report of a trial holds its outcomes."""
        if result.get("outcomes") and trial.trial_id not in self._ended:
            self._ended.add(trial.trial_id)
            self.add([Outcome(**outcome) for outcome in json.loads(result["outcomes"])])
            self.bar.advance()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ends without outcomes was stopped early."""
        result = trial.last_result or {}
        epochs = self.plan.recipe.train.epochs
        found = f"CAM seeds {100 * result.get(WATCHED, 0):.1f} % after epoch {result.get('epoch', 0)} of {epochs}"
        self._note_end(trial, "stopped", f"{found}, worse than the others", result.get(WATCHED))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died."""
        error = str(trial.get_error() or "its process died").strip().splitlines()
        self._note_end(trial, "failed", error[-1][:300], None)

    def _note_end(self, trial: Any, state: Literal["failed", "stopped"], reason: str, watched: float | None) -> None:
        if trial.trial_id in self._ended:
            return
        self._ended.add(trial.trial_id)
        release_orphans()
        config = trial.config
        if "job" in config:
            pairs = [(point, seed) for point, seed in json.loads(config["job"])]
        else:
            pairs = [(read_point(self.plan.axes, config["over"]), seed) for seed in self.plan.seeds]
        self.add([Outcome(*pair, state=state, reason=reason, watched=watched) for pair in pairs])
        self.bar.advance()


def close_sweep(plan: Plan, outcomes: list[Outcome], folder: SweepFolder, tracker: Tracker) -> None:
    """The best point and the figure, in its folder and in the sweep's MLflow run."""
    lines = list_lines(plan, outcomes)
    best = find_best(lines)
    if best is not None:
        tracker.log_metrics({"best/value": (best.mean or 0.0) / 100})
        tracker.set_tags({f"best.{key}": json.dumps(value) for key, value in best.point.items()})
    drawn = encode_figure(draw_figure(plan, lines))
    figure = storage.join(folder.folder, FIGURE)
    storage.write_bytes(figure, drawn)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / FIGURE
        local.write_bytes(drawn)
        tracker.log_files([local], "sweep")
    tracker.log_text(json.dumps(storage.read_json(folder.state), indent=1), "sweep/sweep.json")
    tracker.finish()


def _axis_text(axis: Axis) -> str:
    if axis.listed:
        return ",".join(json.dumps(value) for value in axis.values)
    return f"{axis.low:g}..{axis.high:g}{':log' if axis.log else ''}"
