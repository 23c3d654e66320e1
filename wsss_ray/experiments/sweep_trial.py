# SPDX-License-Identifier: Apache-2.0
"""One trial of a sweep: its runs over the seeds, the epochs it reports, and what it writes down about itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from ray import tune

from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.config import Config
from wsss_ray.experiments import log
from wsss_ray.experiments.failures import describe_failure
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.experiments.sweep import build_recipe
from wsss_ray.experiments.sweep_outcomes import Outcome, collect_mious
from wsss_ray.experiments.sweep_search import WATCHED, read_point
from wsss_ray.experiments.sweep_space import Axis, Point, name_point
from wsss_ray.experiments.tags import tag_run
from wsss_ray.recipe import Recipe
from wsss_ray.score.names import explain_missing, read_miou
from wsss_ray.stages.run import Listener
from wsss_ray.stages.score import rescore
from wsss_ray.tracking import Tracker

METRIC = "sweep/value"
"""What every trial logs its own metric as, whatever that is: parallel coordinates want one name for all."""
Scores = Mapping[str, Mapping[str, Any]]


class Context(Config):
    """What every trial of a sweep needs to know."""

    recipe: Recipe
    out: str
    parent: str
    share: int
    metric: str
    seeds: tuple[int, ...]
    folder: str
    """The working folder of the sweep's driver, which relative paths mean."""

    def label(self, point: Point, seed: int) -> str:
        """The name of a trial in MLflow."""
        return f"{self.recipe.name} {name_point(point)} seed={seed}"


class _Watch:
    """Reports the seed score of every epoch of the main training to Tune."""

    def __init__(self) -> None:
        self.epoch, self.seed_miou = 0, 0.0

    @property
    def values(self) -> dict[str, float]:
        """What Tune's scheduler reads."""
        return {"epoch": self.epoch, WATCHED: self.seed_miou}

    @property
    def watched(self) -> float | None:
        """The seed score of the last epoch, None where none was scored."""
        return self.seed_miou if self.epoch else None

    def hear(self, title: str, epoch: Mapping[str, Any]) -> None:
        """Report one epoch of a training."""
        if title == "train" and epoch.get("seed_miou") is not None and epoch["epoch"] >= self.epoch:
            self.epoch, self.seed_miou = epoch["epoch"] + 1, epoch["seed_miou"]
            tune.report({**self.values, "value": 0.0, "outcomes": ""})


def run_trial(config: dict[str, Any]) -> None:
    """One trial, in its own process: its runs one after another, then one report of what they came to."""
    context = Context.model_validate_json(config["context"])
    if Path(context.folder).is_dir():
        os.chdir(context.folder)
    if "job" in config:
        groups = [[(point, seed) for point, seed in json.loads(config["job"])]]
    else:
        axes = [Axis(**{**axis, "values": tuple(axis["values"])}) for axis in config["axes"]]
        point = read_point(axes, config["over"])
        groups = [[(point, seed)] for seed in context.seeds]
    outcomes = []
    watch = _Watch()
    for group in groups:
        watch = _Watch()
        outcomes += _run_group(context, group, watch)
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    value = mean(values) if values else 0.0
    tune.report({**watch.values, "value": value, "outcomes": json.dumps([asdict(outcome) for outcome in outcomes])})


def _run_group(context: Context, pairs: Sequence[tuple[Point, int]], watch: _Watch) -> list[Outcome]:
    """The outcomes of points that differ in their seed threshold alone: the first is run, the others read off its
    curve.
    """
    start = time.monotonic()
    try:
        recipes = [build_recipe(context.recipe, *pair) for pair in pairs]
        first = recipes[0]
        if len(pairs) > 1:
            places = tuple(sorted({recipe.background for recipe in recipes}))
            first = first.model_copy(update={"score": first.score.model_copy(update={"at": places})})
        done = _run(context, first, context.label(*pairs[0]), watch.hear)
        outcome, tracker = _log_run(context, *pairs[0], done)
        outcome.watched = watch.watched
        outcomes = [outcome]
        for pair, recipe in zip(pairs[1:], recipes[1:], strict=True):
            outcomes.append(_log_read_off(context, *pair, recipe, done, tracker))
    except Exception as error:
        reason, trace = describe_failure(error)
        return [Outcome(*pair, state="failed", reason=reason, traceback=trace) for pair in pairs]
    outcomes[0].seconds = time.monotonic() - start
    return outcomes


def _run(
    context: Context, recipe: Recipe, label: str, on_epoch: Callable[[str, Mapping[str, Any]], None]
) -> FinishedRun:
    options = RunOptions(
        context.out, share=context.share, parent=context.parent, label=label, listeners=(_EpochListener(on_epoch),)
    )
    return run(recipe, options)


class _EpochListener(Listener):
    """Passes epochs on."""

    def __init__(self, on_epoch: Callable[[str, Mapping[str, Any]], None]) -> None:
        self.on_epoch = on_epoch

    def hear_epoch(self, title: str, epoch: Mapping[str, Any]) -> None:
        """One epoch of a training."""
        self.on_epoch(title, epoch)


def _log_run(context: Context, point: Point, seed: int, done: FinishedRun) -> tuple[Outcome, Tracker]:
    """The outcome of a point that was run, its metric logged under the name that all trials share, and its tracker."""
    outcome = _score_outcome(context.metric, point, seed, done.scores)
    outcome.computed = [title for title, artifact in done.steps if not artifact.reused]
    outcome.reused = [title for title, artifact in done.steps if artifact.reused]
    outcome.folder, outcome.mlflow_run = done.folder, done.mlflow_run
    tracker = Tracker(context.out, done.recipe.name, {}, context.parent, resume=done.mlflow_run)
    tracker.log_metrics({METRIC: outcome.value})
    tracker.finish()
    return outcome, tracker


def _log_read_off(
    context: Context, point: Point, seed: int, recipe: Recipe, done: FinishedRun, beside: Tracker
) -> Outcome:
    """The outcome of a point that differs only in its seed threshold, as an MLflow run of its own.

    What no threshold changes is logged as its mIoU alone; the run it is read off has the rest.
    """
    scores = rescore_seeds(done, recipe)
    outcome = _score_outcome(context.metric, point, seed, scores)
    outcome.reused, outcome.folder = ["curve of seeds"], done.folder
    tracker = Tracker(context.out, context.label(point, seed), tag_run(recipe), context.parent, beside=beside)
    outcome.mlflow_run = tracker.run_id
    tracker.log_params({**point, "seed": seed}, later=True)
    for step, found in scores.items():
        tracker.log_metrics(dict(log.flatten_scores(step, found, without=done.scores[step])))
    tracker.log_metrics({METRIC: outcome.value})
    tracker.finish()
    return outcome


def rescore_seeds(done: FinishedRun, recipe: Recipe) -> Scores:
    """The scores of a finished run at another seed threshold, from its counts: no map is read again."""
    scores = dict(done.scores)
    if "seeds" in scores:
        asked = done.recipe.model_copy(update={"score": recipe.score})
        scores["seeds"] = rescore(done.artifacts["score seeds"], asked, done.data)
    return scores


def _score_outcome(metric: str, point: Point, seed: int, scores: Scores) -> Outcome:
    value = read_miou(scores, metric)
    reason = "" if value is not None else explain_missing(scores, metric)
    return Outcome(point, seed, "finished", value, reason, collect_mious(scores))
