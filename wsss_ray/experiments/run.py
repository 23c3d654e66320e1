# SPDX-License-Identifier: Apache-2.0
"""``wsss run``: every step of one recipe, from images to scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsss_ray import storage
from wsss_ray.artifacts.network import SegmenterSpec
from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.artifacts.store import Artifact, Store, digest
from wsss_ray.cluster.join import Machines, join_cluster, plan_machines
from wsss_ray.cluster.probe import list_places
from wsss_ray.experiments.log import CodeLog, MlflowLog, PanelLog, StepLog
from wsss_ray.experiments.settle import check_recipe, open_run
from wsss_ray.experiments.tags import tag_run
from wsss_ray.recipe import Recipe, dump
from wsss_ray.stages.localize import localize
from wsss_ray.stages.predict import predict
from wsss_ray.stages.refine import refine
from wsss_ray.stages.run import Listener, Run, Steps
from wsss_ray.stages.score import score
from wsss_ray.stages.train import TrainInputs, train, train_localizer
from wsss_ray.tracking import Tracker


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes and who hears of it; none of it changes a result."""

    out: str = "results"
    """Folder or URI of artifacts, runs and the default MLflow store."""
    address: str | None = None
    """Ray cluster to join; None starts a local one."""
    share: int = 1
    """How many runs share the cluster."""
    parent: str | None = None
    """The MLflow run of its study or sweep."""
    label: str | None = None
    """Its name in MLflow; None takes the recipe's."""
    listeners: tuple[Listener, ...] = ()


def run(recipe: Recipe, options: RunOptions) -> FinishedRun:
    """Run a recipe: finished steps are loaded, the others computed.

    Raises UserError for anything the user can fix, before Ray starts where that is possible.
    """
    check_recipe(recipe)
    store = Store(options.out)
    tracker = Tracker(store.uri, options.label or recipe.name, tag_run(recipe), options.parent)
    with tracker, join_cluster(options.address, list_places(store.uri, recipe.data.uri)):
        listeners = (StepLog(), CodeLog(tracker, recipe), MlflowLog(tracker), PanelLog(tracker), *options.listeners)
        machines = plan_machines(recipe.resources, options.share)
        steps = Steps(store, listeners)
        return mend_and_retry(steps, lambda: _finish(recipe, steps, machines, tracker.run_id))


MAX_MENDS = 20
"""A disk that damages as fast as artifacts are made again ends the run."""


def mend_and_retry(steps: Steps, compute: Callable[[], FinishedRun]) -> FinishedRun:
    """``compute``, which goes through ``steps``; where it fails and artifacts of theirs are damaged, these are computed
    again, and it begins anew.
    """
    for _ in range(MAX_MENDS):
        try:
            return compute()
        except Exception:
            if not steps.reopen_damaged():
                raise
    return compute()


def _finish(recipe: Recipe, steps: Steps, machines: Machines, mlflow_run: str) -> FinishedRun:
    opened = open_run(recipe, steps, machines)
    folder = open_folder(opened)
    for listener in steps.listeners:
        listener.hear_start(opened)
    artifacts = run_steps(opened)
    finished = FinishedRun(folder, opened.recipe, opened.data, artifacts, tuple(steps.finished), mlflow_run)
    finished.write()
    for listener in steps.listeners:
        listener.hear_end(finished)
    return finished


def run_steps(run: Run) -> dict[str, Artifact]:
    """Every step of the recipe, in order; returns what each left behind, by name."""
    recipe = run.recipe
    made: dict[str, Artifact] = {}
    network = made["network"] = train_localizer(run, recipe)
    if recipe.refine is not None or not recipe.predicts:
        maps = made["maps"] = localize(run, "localize", recipe, network)
        _add_score(run, "seeds", maps, made)
        if recipe.refine is not None:
            masks = made["masks"] = refine(run, maps, recipe.refine, recipe.affinity)
            _add_score(run, "masks", masks, made)
            if recipe.segment is not None:
                spec = SegmenterSpec(num_classes=run.data.num_classes, segment=recipe.segment)
                network = made["segmenter"] = train(run, "segment", spec, TrainInputs(masks=masks))
    if recipe.predicts:
        predictions = made["predictions"] = predict(run, network)
        _add_score(run, "segmentation", predictions, made)
    return made


def _add_score(run: Run, name: str, results: Artifact, made: dict[str, Artifact]) -> None:
    scored = score(run, name, results)
    if scored is not None:
        made[f"score {name}"] = scored


def open_folder(run: Run) -> str:
    """The run's folder, named by its settled recipe, with ``recipe.yaml`` in it."""
    recipe = run.recipe
    name = f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}"
    folder = storage.join(run.steps.store.uri, "runs", name)
    storage.write_bytes(storage.join(folder, "recipe.yaml"), dump(recipe).encode())
    return folder
