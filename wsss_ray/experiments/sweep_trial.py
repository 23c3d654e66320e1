"""One trial of a sweep: its runs over the seeds, the epochs it reports, and what it writes down about itself."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from ray import tune

from wsss_ray import storage
from wsss_ray.artifacts.record import Run
from wsss_ray.config import Config, UserError
from wsss_ray.experiments.run import protocols, run, run_tags
from wsss_ray.experiments.sweep import Outcome, flat_scores, recipe_at, value_of
from wsss_ray.experiments.sweep_space import Axis, Point, name_of
from wsss_ray.recipe import Recipe
from wsss_ray.stages import score
from wsss_ray.tracking import Tracker

METRIC = "sweep/value"
"""What every trial logs its own metric as, whatever that is: parallel coordinates want one name for all."""


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


def run_trial(config: dict[str, Any]) -> None:
    """One trial, in its own process: its runs one after another, then one report of what they came to."""
    context = Context.model_validate_json(config["context"])
    if Path(context.folder).is_dir():
        os.chdir(context.folder)
    last = {"epoch": 0, "seed_miou": 0.0}

    def on_epoch(title: str, epoch: dict[str, Any]) -> None:
        if title == "train" and epoch.get("seed_miou") is not None and epoch["epoch"] >= last["epoch"]:
            last.update(epoch=epoch["epoch"] + 1, seed_miou=epoch["seed_miou"])
            tune.report({**last, "value": 0.0, "outcomes": ""})

    if "job" in config:
        groups = [[(point, seed) for point, seed in json.loads(config["job"])]]
    else:
        axes = [Axis(**{**axis, "values": tuple(axis["values"])}) for axis in config["axes"]]
        raw = config["over"]
        point = {axis.key: axis.values[raw[axis.key]] if axis.listed else raw[axis.key] for axis in axes}
        groups = [[(point, seed)] for seed in context.seeds]
    outcomes = []
    for group in groups:
        last.update(epoch=0, seed_miou=0.0)
        outcomes += _answer(context, group, on_epoch, last)
    values = [outcome.value for outcome in outcomes if outcome.value is not None]
    value = mean(values) if values else 0.0
    tune.report({**last, "value": value, "outcomes": json.dumps([asdict(outcome) for outcome in outcomes])})


def _answer(context: Context, pairs: list[tuple[Point, int]], on_epoch: Any, last: dict[str, float]) -> list[Outcome]:
    """The outcomes of points that one run answers: it is made for the first, the others are read off its curve."""
    start = time.monotonic()
    point, seed = pairs[0]
    try:
        recipes = [recipe_at(context.recipe, *pair) for pair in pairs]
        first = recipes[0]
        if len(pairs) > 1:
            places = tuple(sorted({_background(recipe) for recipe in recipes}))
            first = first.model_copy(update={"score": first.score.model_copy(update={"at": places})})
        done = run(
            first,
            context.out,
            parent=context.parent,
            quiet=True,
            label=label_of(context, point, seed),
            share=context.share,
            on_epoch=on_epoch,
        )
        steps = storage.read_json(storage.join(done.folder, "run.json"))["steps"]
        computed = [step["title"] for step in steps if not step["reused"]]
        reused = [step["title"] for step in steps if step["reused"]]
        outcomes = [_outcome(context, point, seed, done.scores, computed, reused, done)]
        tracker = Tracker(context.out, first.name, {}, context.parent, resume=done.mlflow_run)
        tracker.metrics({METRIC: outcomes[0].value})
        tracker.finish()
        outcomes[0].watched = last["seed_miou"] if last["epoch"] else None
        for pair, recipe in zip(pairs[1:], recipes[1:], strict=True):
            outcomes.append(_off_curve(context, *pair, recipe, done))
    except Exception as error:
        texts = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # The first line says which step, the last one what happened in its worker.
        reason = texts[0] if isinstance(error, UserError) or len(texts) == 1 else f"{texts[0]} {texts[-1]}"
        return [Outcome(*pair, state="failed", reason=reason[:300]) for pair in pairs]
    outcomes[0].seconds = time.monotonic() - start
    return outcomes


def _outcome(
    context: Context,
    point: Point,
    seed: int,
    scores: dict[str, dict[str, Any]],
    computed: list[str],
    reused: list[str],
    done: Run,
) -> Outcome:
    value = value_of(scores, context.metric)
    return Outcome(
        point,
        seed,
        "finished",
        value,
        "" if value is not None else f"nothing scored as {context.metric}",
        flat_scores(scores),
        computed,
        reused,
        folder=done.folder,
        mlflow_run=done.mlflow_run or "",
    )


def _off_curve(context: Context, point: Point, seed: int, recipe: Recipe, done: Run) -> Outcome:
    """A point that differs only in its seed threshold, from the counts of a finished run; no map is read again."""
    scores = dict(done.scores)
    if "seeds" in scores:
        settings = done.recipe.score.model_copy(update={"background": _background(recipe)})
        names = list(scores["seeds"]["fixed"]["iou"])
        words = protocols(recipe, str(done.recipe.data.score_split))
        scores["seeds"] = score.rescored(done.artifacts["score seeds"], "maps", names, settings, words)
    tracker = Tracker(context.out, label_of(context, point, seed), run_tags(recipe), context.parent)
    tracker.params({**point, "seed": seed})
    for step, found in scores.items():
        tracker.metrics(score.flat_metrics(step, found))
    outcome = _outcome(context, point, seed, scores, [], ["curve of seeds"], done)
    outcome.mlflow_run = tracker.run_id
    tracker.metrics({METRIC: outcome.value})
    tracker.finish()
    return outcome


def _background(recipe: Recipe) -> float:
    return recipe.score.background if recipe.score.background is not None else recipe.method.background()


def label_of(context: Context, point: Point, seed: int) -> str:
    return f"{context.recipe.name} {name_of(point)} seed={seed}"
