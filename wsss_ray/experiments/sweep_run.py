"""``wsss sweep``: the trials of a sweep on Ray Tune, each a run of its own that shares every stage it can.

A trial's driver holds no core and sits on the node of the sweep's own driver; the stages inside it get an equal share
of the cluster. The trials' file locks see to it that a stage two of them need is computed once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from ray import tune
from rich.table import Table
from rich.text import Text

from wsss_ray import storage
from wsss_ray.artifacts.store import Store, digest, held
from wsss_ray.cluster.join import cluster, concurrency, release_orphans, this_node
from wsss_ray.cluster.progress import Bar, console
from wsss_ray.config import UserError
from wsss_ray.experiments import sweep as book
from wsss_ray.experiments.road import made_with
from wsss_ray.experiments.run import preflight, run_tags
from wsss_ray.experiments.sweep import Outcome, Plan, recipe_at
from wsss_ray.experiments.sweep_space import Axis, Point, name_of
from wsss_ray.experiments.sweep_trial import Context, run_trial
from wsss_ray.tracking import Tracker

REDUCTION = 3
"""Early stopping keeps the best third at every rung."""


def run_sweep(made: Plan, out: str, address: str | None = None, max_concurrent: int | None = None) -> list[Outcome]:
    """Run what is left of a sweep; its table, figure and state lie in ``<out>/sweeps/<name>``.

    A trial that fails is reported and stops nothing. Raises UserError where nothing can run, or where another process
    runs this sweep.
    """
    preflight(made.recipe)
    store = Store(out)
    folder = storage.join(store.uri, "sweeps", made.name)
    with held(folder, "sweep"):
        return _run_alone(made, store, folder, address, max_concurrent)


def _run_alone(made: Plan, store: Store, folder: str, address: str | None, max_concurrent: int | None) -> list[Outcome]:
    stamp = digest(made_with(made.recipe.data.uri))
    outcomes, earlier = book.load(folder, stamp)
    outcomes = [outcome for outcome in outcomes if outcome.state != "failed"]
    tags = {**run_tags(made.recipe), "kind": "sweep", "sweep": made.name, "search": made.search}
    tracker = Tracker(store.uri, f"sweep {made.name}", tags, resume=earlier)
    status = "FAILED"
    try:
        tracker.end_children()
        tracker.params({f"over.{axis.key}": _axis_text(axis) for axis in made.axes})
        kept = f" ({len(outcomes)} trials kept)" if outcomes else ""
        console.print(f"sweep: {folder}{kept}", soft_wrap=True, markup=False)
        recorder = _Recorder(made, folder, outcomes, tracker.run_id, stamp)
        with cluster(address):
            _tune(made, recorder, store.uri, max_concurrent)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end_children()
        tracker.finish(status)
    close(made, recorder.outcomes, folder, tracker)
    return recorder.outcomes


def _tune(made: Plan, recorder: _Recorder, out: str, max_concurrent: int | None) -> None:
    """All trials that are left, on the joined cluster."""
    space: dict[str, Any] = {}
    searcher = None
    if made.search == "tpe":
        num_jobs = made.draws() - book.num_drawn(recorder.outcomes)
        searcher = _optuna(made, recorder.outcomes)
    else:
        points = recorder.check(made.points())
        jobs = book.jobs(points, made.seeds, recorder.outcomes)
        num_jobs = len(jobs)
        space = {"job": tune.grid_search([json.dumps(job) for job in jobs])}
    if num_jobs <= 0:
        return
    share = concurrency(made.recipe.resources, max_concurrent, num_jobs)
    context = Context(
        recipe=made.recipe,
        out=out,
        parent=recorder.parent,
        share=share,
        metric=made.metric,
        seeds=made.seeds,
        folder=os.getcwd(),
    )
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Tune would swallow ctrl-C and end as if the sweep were over.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    scheduler = early_stopping(made.recipe.train.epochs) if made.stopping else None
    scratch = tempfile.mkdtemp(prefix="wsss-sweep-")
    console.print(f"sweep: {num_jobs} trials, {share} at a time")
    try:
        with Bar("sweep", num_jobs, "trials") as recorder.bar:
            tune.Tuner(
                tune.with_resources(run_trial, {"CPU": 0, this_node(): 0.001}),
                param_space={**space, "context": context.model_dump_json(), "axes": [asdict(a) for a in made.axes]},
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
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


def early_stopping(epochs: int) -> Any:
    """ASHA from a third of the epochs on, never at the last one, whose training is paid for; None where there is one.

    Earlier, seeds may be background alone: an L2G of the toy that has 60.5 mIoU after 15 epochs had 13.7 after the
    first, and was stopped where a worse one, 40.2 in the end, went on.
    """
    if epochs < 2:
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr="epoch",
        metric="seed_miou",
        mode="max",
        max_t=epochs - 1,
        grace_period=max(1, epochs // REDUCTION),
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )


def _optuna(made: Plan, outcomes: Sequence[Outcome]) -> Any:
    """TPE over the axes, told of the trials that are done already."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError("--search tpe needs Optuna: install it with pip install 'wsss-ray[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds: dict[str, Any] = {}
    for axis in made.axes:
        if axis.listed and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in axis.values):
            kinds[f"over/{axis.key}"] = optuna.distributions.IntDistribution(0, len(axis.values) - 1)
        elif axis.listed:
            kinds[f"over/{axis.key}"] = optuna.distributions.CategoricalDistribution(list(range(len(axis.values))))
        elif axis.whole:
            kinds[f"over/{axis.key}"] = optuna.distributions.IntDistribution(int(axis.low), int(axis.high), axis.log)
        else:
            kinds[f"over/{axis.key}"] = optuna.distributions.FloatDistribution(axis.low, axis.high, axis.log)
    points, rewards = [], []
    for line in book.lines(outcomes):
        found = [one.watched if made.stopping else one.value for one in line.outcomes]
        known = [value for value in found if value is not None]
        points.append({f"over/{axis.key}": _place(axis, line.point[axis.key]) for axis in made.axes})
        rewards.append(mean(known) if known else 0.0)
    # With the same seed it would draw the points that are known once more.
    sampler = optuna.samplers.TPESampler(seed=made.recipe.seed + book.num_drawn(outcomes))
    metric = "seed_miou" if made.stopping else "value"
    return OptunaSearch(
        kinds,
        metric=metric,
        mode="max",
        sampler=sampler,
        points_to_evaluate=points or None,
        evaluated_rewards=rewards or None,
    )


def _place(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if axis.listed else value


class _Recorder(tune.Callback):
    """Hears of every trial in the sweep's driver: one line for people, and the state on disk."""

    def __init__(self, made: Plan, folder: str, outcomes: list[Outcome], parent: str, stamp: str) -> None:
        self.made, self.folder, self.outcomes, self.parent, self.stamp = made, folder, outcomes, parent, stamp
        self.bar = Bar("sweep", 0)
        self._answered: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def check(self, points: list[Point]) -> list[Point]:
        """The points that make a recipe; the others are noted as failed."""
        good, bad = [], []
        for point in points:
            try:
                recipe_at(self.made.recipe, point, self.made.seeds[0])
                good.append(point)
            except UserError as error:
                bad += [Outcome(point, seed, "failed", reason=str(error)) for seed in self.made.seeds]
        self.add(bad)
        return good

    def add(self, new: Sequence[Outcome]) -> None:
        """Note outcomes and say so."""
        for one in new:
            told = f"{one.state}: {one.reason}"
            if one.state == "finished":
                number = "-" if one.value is None else f"{100 * one.value:.1f} %"
                ran = f"computed {', '.join(one.computed) or 'nothing'}; reused {', '.join(one.reused) or 'nothing'}"
                told = f"{self.made.metric} {number} in {one.seconds:.0f} s ({ran})"
            console.print(f"  {name_of(one.point)} seed={one.seed}: {told}", soft_wrap=True, markup=False)
        self.outcomes = book.merged(self.outcomes, new)
        book.save(self.folder, self.made, self.outcomes, self.parent, self.stamp)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The last report of a trial holds its outcomes."""
        if result.get("outcomes") and trial.trial_id not in self._answered:
            self._answered.add(trial.trial_id)
            self.add([Outcome(**outcome) for outcome in json.loads(result["outcomes"])])
            self.bar.advance()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ends without outcomes was stopped early."""
        result = trial.last_result or {}
        epochs = self.made.recipe.train.epochs
        found = f"seeds {100 * result.get('seed_miou', 0):.1f} % after epoch {result.get('epoch', 0)} of {epochs}"
        self._ended(trial, "stopped", f"{found}, behind the others", result.get("seed_miou"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died."""
        error = str(trial.get_error() or "its process died").strip().splitlines()
        self._ended(trial, "failed", error[-1][:300], None)

    def _ended(self, trial: Any, state: Literal["failed", "stopped"], reason: str, watched: float | None) -> None:
        if trial.trial_id in self._answered:
            return
        self._answered.add(trial.trial_id)
        release_orphans()
        config = trial.config
        if "job" in config:
            pairs = [(point, seed) for point, seed in json.loads(config["job"])]
        else:
            raw = config["over"]
            point = {a.key: a.values[raw[a.key]] if a.listed else raw[a.key] for a in self.made.axes}
            pairs = [(point, seed) for seed in self.made.seeds]
        self.add([Outcome(*pair, state=state, reason=reason, watched=watched) for pair in pairs])
        self.bar.advance()


def close(made: Plan, outcomes: list[Outcome], folder: str, tracker: Tracker) -> None:
    """The closing table, the figure, and both in the sweep's MLflow run."""
    points = made.points() if made.search != "tpe" else []
    found = book.lines(book.order(outcomes, points))
    console.print(closing_table(made, found))
    best = book.best(found)
    if best is not None:
        told = f"best:     {name_of(best.point)}: {made.metric} {best.mean:.1f} %"
        console.print(told, soft_wrap=True, markup=False)
        tracker.metrics({"best/value": (best.mean or 0.0) / 100})
        tracker.tags({f"best.{key}": json.dumps(value) for key, value in best.point.items()})
    buffer = io.BytesIO()
    book.draw_figure(made, found).save(buffer, "PNG", optimize=True)
    storage.write_bytes(storage.join(folder, "sweep.png"), buffer.getvalue())
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "sweep.png"
        local.write_bytes(buffer.getvalue())
        tracker.files([local], "sweep")
    tracker.text(json.dumps(storage.read_json(storage.join(folder, "sweep.json")), indent=1), "sweep/sweep.json")
    tracker.finish()
    console.print(f"figure:   {storage.join(folder, 'sweep.png')}", soft_wrap=True, markup=False)
    console.print("compare:  wsss ui")


def closing_table(made: Plan, found: Sequence[book.Line]) -> Table:
    """One row per point, as texts: Rich would take brackets in values for its markup."""
    title = f"sweep of {made.recipe.name} ({made.recipe.scale}), {made.search}"
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for column in book.headings(made.axes, made.metric):
        table.add_column(Text(column), justify="left" if column == "steps" else "right")
    for cells in book.rows(found, made.axes):
        table.add_row(*map(Text, cells))
    return table


def _axis_text(axis: Axis) -> str:
    if axis.listed:
        return ",".join(json.dumps(value) for value in axis.values)
    return f"{axis.low:g}..{axis.high:g}{':log' if axis.log else ''}"
