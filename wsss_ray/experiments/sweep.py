# SPDX-License-Identifier: Apache-2.0
"""A sweep of a recipe before anything runs: its trials, its metric and its name. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from wsss_ray.artifacts.store import digest
from wsss_ray.config import Config, Search, UserError, list_keys, suggest
from wsss_ray.experiments.sweep_space import Axis, Point, build_grid, count_points, sample_points
from wsss_ray.recipe import Recipe, cut_after, replace_settings
from wsss_ray.score.names import STEPS, describe_metrics, read_metric, split_metric

READ_OFF_CURVE = ("score.background",)
"""Keys whose values are all scored in one pass over the maps: trials that differ only here are one job."""
CHANGED_BY = {"refine": "masks", "affinity": "masks", "segment": "segmentation", "predict": "segmentation"}
"""Part of a recipe -> the first scored step it changes; the others change the first of all."""
STOPPING_IMAGES = 32
"""Validation images whose seeds are scored after each epoch with early stopping."""
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep goes through its space."""

    num_seeds: int = 1
    search: str = "grid"
    """grid, random or tpe."""
    trials: int | None = None
    """Points of random and tpe; None: ``DEFAULT_TRIALS``."""
    metric: str | None = None
    """A scored step or one of its variants (``cam.fixed``); None: what the recipe ends in or the axes change."""
    stopping: bool = False
    """Stop trials early whose seeds are worse than the others' (ASHA)."""


DEFAULTS = SweepOptions()


@dataclass(frozen=True)
class Plan:
    """A checked sweep; its folder's name follows from all of it."""

    recipe: Recipe
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    search: Search
    trials: int
    """Points of random and tpe."""
    metric: str
    """A scored step, or one of its variants (``seeds.fixed``)."""
    stopping: bool = False
    """Trials whose seeds are worse than the others' are stopped early (ASHA)."""

    @property
    def name(self) -> str:
        """The recipe's name and a digest of what decides the results: the same command finds its folder again."""
        what = self.recipe.model_dump(mode="json", exclude={"resources"})
        axes = [asdict(axis) for axis in self.axes]
        rest = [list(self.seeds), self.search, self.metric, self.stopping]
        return f"{self.recipe.name}-{digest([what, axes, *rest])[:8]}"

    def list_points(self) -> list[Point]:
        """All points of a grid or random search; tpe finds its own."""
        return (
            build_grid(self.axes) if self.search == "grid" else sample_points(self.axes, self.trials, self.recipe.seed)
        )

    def count_draws(self) -> int:
        """How many points tpe draws in all: no more than there are."""
        return min(self.trials, count_points(self.axes) or self.trials)

    def build_recipe(self, point: Point, seed: int) -> Recipe:
        """The recipe of one trial; UserError where the point does not make one."""
        return build_recipe(self.recipe, point, seed)


def build_recipe(recipe: Recipe, point: Point, seed: int) -> Recipe:
    """The recipe of one trial; UserError where the point does not make one."""
    return replace_settings(recipe, {**point, "seed": seed})


def plan_sweep(recipe: Recipe, axes: tuple[Axis, ...], options: SweepOptions = DEFAULTS) -> Plan:
    """A checked plan, of the recipe up to the last step that the metric or an axis needs.

    Raises UserError for a bad search, metric or key, before anything starts.
    """
    search = _check_search(options)
    metric = read_metric(options.metric) if options.metric else choose_metric(recipe, axes)
    step = _check_metric(metric)
    _check_seeds(options, axes)
    recipe = cut_after(recipe, _last_step(step, axes))
    if options.stopping:
        recipe = replace_settings(recipe, {"train.validate_seeds": recipe.train.validate_seeds or STOPPING_IMAGES})
    seeds = tuple(range(recipe.seed, recipe.seed + options.num_seeds))
    plan = Plan(recipe, axes, seeds, search, options.trials or DEFAULT_TRIALS, metric, options.stopping)
    _check_points(plan)
    return plan


def choose_metric(recipe: Recipe, axes: Sequence[Axis] = ()) -> str:
    """What a recipe ends in; what comes of the maps alone where nothing else varies: refiners are judged by masks,
    inference by seeds, a threshold by seeds at it.
    """
    roots = {_root(axis) for axis in axes}
    threshold = any(axis.key in READ_OFF_CURVE for axis in axes)
    if roots and roots <= {"score", "localize", "refine", "affinity"} and not recipe.method.single_stage:
        if roots & set(CHANGED_BY):
            return "masks"
        return "seeds.fixed" if threshold else "seeds"
    if threshold:
        return "seeds.fixed"
    return "segmentation" if recipe.predicts else "seeds" if recipe.refine is None else "masks"


def _last_step(step: str, axes: Sequence[Axis]) -> str:
    """The last scored step that the metric or what varies hangs on."""
    order = list(STEPS)
    return max([step, *(CHANGED_BY.get(_root(axis), order[0]) for axis in axes)], key=order.index)


def _root(axis: Axis) -> str:
    return axis.key.partition(".")[0]


def _check_search(options: SweepOptions) -> Search:
    searches: tuple[Search, ...] = get_args(Search)
    found = next((search for search in searches if search == options.search), None)
    if found is None:
        raise UserError(f"--search {options.search}: choose grid, random or tpe")
    if found == "grid" and options.trials is not None:
        raise UserError("--trials: a grid runs every point; leave it out, or use --search random or tpe")
    return found


def _check_metric(metric: str) -> str:
    """The step of a metric."""
    try:
        return split_metric(metric)[0]
    except UserError:
        raise UserError(f"--metric {metric}: choose one of {describe_metrics()}") from None


def _check_seeds(options: SweepOptions, axes: Sequence[Axis]) -> None:
    if options.stopping and options.num_seeds > 1:
        raise UserError(
            f"--asha with --seeds {options.num_seeds}: it would stop unlucky seeds and keep the mean of the lucky "
            "ones; use --asha with one seed, then run the best points with --seeds and without --asha"
        )
    if any(axis.key == "seed" for axis in axes):
        raise UserError("--over seed: seeds are repeats of every point, give --seeds N instead")


def _check_points(plan: Plan) -> None:
    """Raise UserError where not one point makes a recipe."""
    probes = [{axis.key: axis.values[0] if axis.listed else axis.low for axis in plan.axes}]
    first: UserError | None = None
    for point in plan.list_points() if plan.search != "tpe" else probes:
        try:
            plan.build_recipe(point, plan.seeds[0])
            return
        except UserError as error:
            first = first or error
    keys = [axis.key for axis in plan.axes]
    for key in keys:
        if not any(other != key and key.startswith(f"{other}.") for other in keys):
            _check_key(plan.recipe, key)
    if first is not None:
        raise first


def _check_key(recipe: Recipe, key: str) -> None:
    """Raise UserError where a recipe has no such setting, with the one that was probably meant."""
    here: object = recipe
    for name in key.split("."):
        if not isinstance(here, Config):
            return
        if name not in type(here).model_fields:
            fix = suggest(key, list_keys(recipe)) or "'wsss show RECIPE' lists the known ones"
            raise UserError(f"--over {key}: unknown key, {fix}")
        here = getattr(here, name)
