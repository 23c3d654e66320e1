"""A sweep of a recipe: what its trials are, what each came to, and the folder that remembers them. No Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean, stdev
from typing import Any, Literal

from PIL import Image

from wsss_ray import storage
from wsss_ray.artifacts.store import digest
from wsss_ray.config import UserError
from wsss_ray.experiments.sweep_space import Axis, Point, grid, num_points, sample, short_keys, text_of
from wsss_ray.recipe import Recipe, replaced, up_to
from wsss_ray.reports.chart_png import Mark, Series, beside, chart
from wsss_ray.score.names import STEPS

Search = Literal["grid", "random", "tpe"]
State = Literal["finished", "failed", "stopped"]
ANSWERED = ("score.background",)
"""Keys whose values one pass over the maps answers: trials that differ only here are one job."""
CHANGED_BY = {"refine": "masks", "affinity": "masks", "segment": "segmentation", "predict": "segmentation"}
"""Part of a recipe -> the first scored step it changes; the others change seeds."""
STOPPING_IMAGES = 32
"""Validation images whose seeds are scored after each epoch with early stopping."""


@dataclass(frozen=True)
class Plan:
    """A sweep before anything runs; its folder's name follows from all of it."""

    recipe: Recipe
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    search: Search
    trials: int
    """Points of random and tpe."""
    metric: str
    """``seeds``, ``masks`` or ``segmentation``, or one variant of them (``seeds.fixed``)."""
    stopping: bool = False
    """Trials whose seeds lag behind are stopped early (ASHA)."""

    @property
    def name(self) -> str:
        """The recipe's name and a digest of what decides the results: the same command finds its folder again."""
        what = self.recipe.model_dump(mode="json", exclude={"resources"})
        axes = [asdict(axis) for axis in self.axes]
        rest = [list(self.seeds), self.search, self.metric, self.stopping]
        return f"{self.recipe.name}-{digest([what, axes, *rest])[:8]}"

    def points(self) -> list[Point]:
        """All points of a grid or random search; tpe finds its own."""
        return grid(self.axes) if self.search == "grid" else sample(self.axes, self.trials, self.recipe.seed)

    def draws(self) -> int:
        """How many points tpe draws in all: no more than there are."""
        return min(self.trials, num_points(self.axes) or self.trials)


@dataclass
class Outcome:
    """One point with one seed, run or answered."""

    point: Point
    seed: int
    state: State
    value: float | None = None
    """The sweep's metric, in [0, 1]."""
    reason: str = ""
    """Why it failed or was stopped."""
    scores: dict[str, float] = field(default_factory=dict)
    """mIoU of every scored variant: ``seeds/best`` ..."""
    computed: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    """Titles of the steps, as they were run or loaded."""
    seconds: float = 0.0
    folder: str = ""
    mlflow_run: str = ""
    watched: float | None = None
    """Seed score of the last epoch, with early stopping."""
    draws: int = 1
    """How often tpe drew its point."""

    @property
    def key(self) -> str:
        """What it is known by."""
        return outcome_key(self.point, self.seed)


def outcome_key(point: Point, seed: int) -> str:
    """One text per point and seed."""
    return json.dumps([point, seed], sort_keys=True)


def plan(
    recipe: Recipe,
    axes: tuple[Axis, ...],
    num_seeds: int = 1,
    search: str = "grid",
    trials: int | None = None,
    metric: str | None = None,
    stopping: bool = False,
) -> Plan:
    """A checked plan, of the recipe up to the last step that the metric or an axis needs.

    Raises UserError for a bad search, metric or key, before anything starts.
    """
    if search not in ("grid", "random", "tpe"):
        raise UserError(f"--search {search}: choose grid, random or tpe")
    if search == "grid" and trials is not None:
        raise UserError("--trials: a grid runs every point; leave it out, or use --search random or tpe")
    step, _, variant = (metric or usual_metric(recipe, axes)).partition(".")
    if step not in STEPS or (variant and variant not in STEPS[step].variants):
        known = ", ".join(f"{name}[.{'|'.join(one.variants)}]" for name, one in STEPS.items())
        raise UserError(f"--metric {metric}: choose one of {known}")
    recipe = up_to(recipe, _last_step(step, axes))
    if stopping and num_seeds > 1:
        raise UserError(
            f"--asha with --seeds {num_seeds}: it would stop unlucky seeds and keep the mean of the lucky ones; use "
            "--asha with one seed, then run the best points with --seeds and without --asha"
        )
    if stopping:
        changed = {"train.validate_seeds": recipe.train.validate_seeds or STOPPING_IMAGES}
        recipe = replaced(recipe, changed)
    if any(axis.key == "seed" for axis in axes):
        raise UserError("--over seed: seeds are repeats of every point, give --seeds N instead")
    seeds = tuple(range(recipe.seed, recipe.seed + num_seeds))
    full = f"{step}.{variant}" if variant else step
    made = Plan(recipe, axes, seeds, search, trials or 20, full, stopping)  # type: ignore[arg-type]
    probes = [{axis.key: axis.values[0] if axis.listed else axis.low for axis in axes}]
    failures = []
    for point in made.points() if search != "tpe" else probes:
        try:
            recipe_at(made.recipe, point, seeds[0])
            return made
        except UserError as error:
            failures.append(error)
    raise failures[0]


def usual_metric(recipe: Recipe, axes: Sequence[Axis] = ()) -> str:
    """What a recipe ends in; what comes of the maps alone where nothing else varies: refiners are judged by masks,
    inference by seeds, a threshold by seeds at it."""
    roots = {_root(axis) for axis in axes}
    if roots and roots <= {"score", "localize", "refine", "affinity"} and not recipe.method.single_stage:
        if roots & set(CHANGED_BY):
            return "masks"
        return "seeds.fixed" if any(axis.key in ANSWERED for axis in axes) else "seeds"
    if any(axis.key in ANSWERED for axis in axes):
        return "seeds.fixed"
    return "segmentation" if recipe.predicts else "seeds" if recipe.refine is None else "masks"


def _last_step(step: str, axes: Sequence[Axis]) -> str:
    """The last scored step that the metric or what varies hangs on."""
    order = list(STEPS)
    return max([step, *(CHANGED_BY.get(_root(axis), "seeds") for axis in axes)], key=order.index)


def _root(axis: Axis) -> str:
    return axis.key.partition(".")[0]


def recipe_at(recipe: Recipe, point: Point, seed: int) -> Recipe:
    """The recipe of one trial; UserError where the point is none."""
    return replaced(recipe, {**point, "seed": seed})


def jobs(points: Sequence[Point], seeds: Sequence[int], done: Sequence[Outcome]) -> list[list[tuple[Point, int]]]:
    """What is left to do: (point, seed) pairs, together where one run answers them all."""
    over = {outcome.key for outcome in done if outcome.state != "failed"}
    groups: dict[str, list[tuple[Point, int]]] = {}
    for point in points:
        for seed in seeds:
            if outcome_key(point, seed) not in over:
                rest = {key: value for key, value in point.items() if key not in ANSWERED}
                groups.setdefault(outcome_key(rest, seed), []).append((point, seed))
    return list(groups.values())


def merged(outcomes: Sequence[Outcome], new: Sequence[Outcome]) -> list[Outcome]:
    """``outcomes`` and ``new``, one per point and seed; what is finished stays and counts the draws that repeat it."""
    kept = {outcome.key: outcome for outcome in outcomes}
    for one in new:
        before = kept.get(one.key)
        if before is not None:
            one = replace(before if before.state == "finished" else one, draws=before.draws + one.draws)
        kept[one.key] = one
    return list(kept.values())


def num_drawn(outcomes: Sequence[Outcome]) -> int:
    """How many trials of tpe these outcomes are, points that were drawn again counted again."""
    return sum(max(one.draws for one in line.outcomes) for line in lines(outcomes))


def value_of(scores: dict[str, dict[str, Any]], metric: str) -> float | None:
    """The metric among the scores of a run; without a variant the one a paper usually prints."""
    step, _, variant = metric.partition(".")
    found = scores.get(step, {})
    name = variant or next((one for one in STEPS[step].variants if one in found), "")
    value: float | None = found.get(name, {}).get("miou")
    return value


def flat_scores(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``seeds/best`` -> mIoU, of everything that was scored."""
    return {
        f"{step}/{variant}": values["miou"]
        for step, variants in scores.items()
        for variant, values in variants.items()
        if values.get("miou") is not None and "protocol" in values
    }


@dataclass(frozen=True)
class Line:
    """One point over its seeds."""

    point: Point
    values: tuple[float, ...]
    """Per cent, one per finished seed."""
    outcomes: tuple[Outcome, ...]

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return mean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample, None for fewer than two seeds."""
        return stdev(self.values) if len(self.values) > 1 else None


def lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """Outcomes by point, in the order in which the points came."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(json.dumps(outcome.point, sort_keys=True), []).append(outcome)
    made = []
    for group in groups.values():
        values = tuple(100 * one.value for one in group if one.state == "finished" and one.value is not None)
        made.append(Line(group[0].point, values, tuple(group)))
    return made


def best(found: Sequence[Line]) -> Line | None:
    """The line with the highest mean, the first of equals."""
    return max((line for line in found if line.mean is not None), key=lambda line: line.mean or 0.0, default=None)


def remark(line: Line) -> str:
    """Which steps were computed and which loaded, or why there is no number."""
    bad = dict.fromkeys(f"{one.state}: {one.reason}" for one in line.outcomes if one.state != "finished")
    if bad:
        return "; ".join(bad)
    computed = list(dict.fromkeys(title for one in line.outcomes for title in one.computed))
    reused = [title for title in dict.fromkeys(t for one in line.outcomes for t in one.reused) if title not in computed]
    parts = [f"computed {', '.join(computed)}"] if computed else []
    parts += [f"reused {', '.join(reused)}"] if reused else []
    return "; ".join(parts)


def order(outcomes: Sequence[Outcome], points: Sequence[Point]) -> list[Outcome]:
    """Outcomes as their points are planned, then by seed; others behind, as they came."""
    place = {json.dumps(point, sort_keys=True): number for number, point in enumerate(points)}
    last = len(place)
    return sorted(outcomes, key=lambda one: (place.get(json.dumps(one.point, sort_keys=True), last), one.seed))


def save(folder: str, made: Plan, outcomes: Sequence[Outcome], mlflow_run: str | None, made_with: str) -> None:
    """``sweep.json``, written atomically after every trial; ``made_with`` is a digest of the data and the steps."""
    value = {
        "made_with": made_with,
        "recipe": made.recipe.model_dump(mode="json"),
        "axes": [asdict(axis) for axis in made.axes],
        "seeds": list(made.seeds),
        "search": made.search,
        "metric": made.metric,
        "stopping": made.stopping,
        "mlflow_run": mlflow_run,
        "trials": [asdict(outcome) for outcome in outcomes],
    }
    storage.write_json(storage.join(folder, "sweep.json"), value)


def load(folder: str, made_with: str) -> tuple[list[Outcome], str | None]:
    """Trials of an earlier call and its MLflow run; nothing where there was none, or one of other data or steps."""
    path = storage.join(folder, "sweep.json")
    if not storage.exists(path):
        return [], None
    value = storage.read_json(path)
    if value.get("made_with") != made_with:
        return [], None
    outcomes = [Outcome(**trial) for trial in value["trials"]]
    for one in outcomes:
        # The file's keys are sorted.
        one.point = {axis["key"]: one.point[axis["key"]] for axis in value["axes"]}
    return outcomes, value["mlflow_run"]


def headings(axes: Sequence[Axis], metric: str) -> list[str]:
    """Column titles of ``rows``."""
    return [*short_keys([axis.key for axis in axes]).values(), f"{metric} mIoU %", "± (seeds)", "seconds", "steps"]


def rows(found: Sequence[Line], axes: Sequence[Axis]) -> list[list[str]]:
    """The closing table as text, one line per point."""
    table = []
    for line in found:
        spread = f"{line.std:.1f} ({len(line.values)})" if line.std is not None else ""
        number = "-" if line.mean is None else f"{line.mean:.1f}"
        seconds = f"{sum(one.seconds for one in line.outcomes):.0f}"
        table.append([*(text_of(line.point[axis.key]) for axis in axes), number, spread, seconds, remark(line)])
    return table


def draw_figure(made: Plan, found: Sequence[Line]) -> Image.Image:
    """The metric over the swept keys: one chart with a line per value of a second axis, or a chart per key."""
    label = f"{made.metric} mIoU %"
    names = short_keys([axis.key for axis in made.axes])
    shown = [line for line in found if line.values]

    def marks(lines: Sequence[Line], key: str) -> tuple[Mark, ...]:
        return tuple(Mark(_at(line.point[key]), line.values) for line in lines)

    if made.search == "grid" and len(made.axes) <= 2:
        *others, first = sorted((axis.key for axis in made.axes), key=lambda key: _size(made.axes, key))
        series = [Series("", marks(shown, first))]
        if others:
            groups: dict[str, list[Line]] = {}
            for line in shown:
                groups.setdefault(f"{names[others[0]]} {text_of(line.point[others[0]])}", []).append(line)
            series = [Series(name, marks(lines, first)) for name, lines in groups.items()]
        return chart(made.recipe.name, series, names[first], label)
    charts = [
        chart(made.recipe.name, [Series("", marks(shown, axis.key), joined=False)], names[axis.key], label, axis.log)
        for axis in made.axes
    ]
    return beside(charts)


def _at(value: Any) -> float | str:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else text_of(value)


def _size(axes: Sequence[Axis], key: str) -> tuple[bool, int]:
    """Sorts the axis that is drawn along x last: numbers before words, then the one with most values."""
    values = next(axis.values for axis in axes if axis.key == key)
    return all(not isinstance(_at(value), str) for value in values), len(values)
