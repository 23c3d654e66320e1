# SPDX-License-Identifier: Apache-2.0
"""What the trials of a sweep came to: one outcome per point and seed, its folder's state, and lines over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean, stdev
from typing import Any, Literal

from wsss_ray import storage
from wsss_ray.experiments.sweep import READ_OFF_CURVE, Plan
from wsss_ray.experiments.sweep_space import Point
from wsss_ray.score.names import take_scored

State = Literal["finished", "failed", "stopped"]


@dataclass
class Outcome:
    """One point with one seed, run or read off the curve of another."""

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
    traceback: str = ""
    """Of what is not the user's to fix: on its way to the driver, which prints it; it is not kept."""

    @property
    def key(self) -> str:
        """What it is known by."""
        return make_key(self.point, self.seed)


def make_key(point: Point, seed: int) -> str:
    """One text per point and seed."""
    return json.dumps([point, seed], sort_keys=True)


def group_jobs(points: Sequence[Point], seeds: Sequence[int], done: Sequence[Outcome]) -> list[list[tuple[Point, int]]]:
    """What is left to do: (point, seed) pairs, together where one run has the scores of all."""
    over = {outcome.key for outcome in done if outcome.state != "failed"}
    groups: dict[str, list[tuple[Point, int]]] = {}
    for point in points:
        for seed in seeds:
            if make_key(point, seed) not in over:
                rest = {key: value for key, value in point.items() if key not in READ_OFF_CURVE}
                groups.setdefault(make_key(rest, seed), []).append((point, seed))
    return list(groups.values())


def merge_outcomes(outcomes: Sequence[Outcome], new: Sequence[Outcome]) -> list[Outcome]:
    """``outcomes`` and ``new``, one per point and seed; what is finished stays and counts the draws that repeat it."""
    kept = {outcome.key: outcome for outcome in outcomes}
    for one in new:
        before = kept.get(one.key)
        if before is not None:
            one = replace(before if before.state == "finished" else one, draws=before.draws + one.draws)
        kept[one.key] = one
    return list(kept.values())


def count_draws(outcomes: Sequence[Outcome]) -> int:
    """How many trials of tpe these outcomes are, points that were drawn again counted again."""
    return sum(max(one.draws for one in line.outcomes) for line in group_lines(outcomes))


def collect_mious(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``seeds/best`` -> mIoU, of everything that was scored."""
    return {
        f"{step}/{variant}": values["miou"]
        for step, found in scores.items()
        for variant, values in take_scored(step, found).items()
        if values.get("miou") is not None
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


def group_lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """Outcomes by point, in the order in which the points came."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(json.dumps(outcome.point, sort_keys=True), []).append(outcome)
    made = []
    for group in groups.values():
        values = tuple(100 * one.value for one in group if one.state == "finished" and one.value is not None)
        made.append(Line(group[0].point, values, tuple(group)))
    return made


def find_best(lines: Sequence[Line]) -> Line | None:
    """The line with the highest mean, the first of equals."""
    return max((line for line in lines if line.mean is not None), key=lambda line: line.mean or 0.0, default=None)


def order_outcomes(outcomes: Sequence[Outcome], points: Sequence[Point]) -> list[Outcome]:
    """Outcomes as their points are planned, then by seed; others behind, as they came."""
    place = {json.dumps(point, sort_keys=True): number for number, point in enumerate(points)}
    last = len(place)
    return sorted(outcomes, key=lambda one: (place.get(json.dumps(one.point, sort_keys=True), last), one.seed))


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep and what its state is valid for."""

    folder: str
    made_with: str
    """A digest of the data and the versions of the steps: outcomes of others do not count."""

    @property
    def state(self) -> str:
        """The file that remembers the sweep."""
        return storage.join(self.folder, "sweep.json")

    def save(self, plan: Plan, outcomes: Sequence[Outcome], mlflow_run: str | None) -> None:
        """Write ``sweep.json`` atomically; called after every trial."""
        value = {
            "made_with": self.made_with,
            "recipe": plan.recipe.model_dump(mode="json"),
            "axes": [asdict(axis) for axis in plan.axes],
            "seeds": list(plan.seeds),
            "search": plan.search,
            "metric": plan.metric,
            "stopping": plan.stopping,
            "mlflow_run": mlflow_run,
            "trials": [asdict(outcome) for outcome in outcomes],
        }
        storage.write_json(self.state, value)

    def load(self) -> tuple[list[Outcome], str | None]:
        """Trials of an earlier call and its MLflow run; nothing where there was none, or one of other data or steps."""
        if not storage.exists(self.state):
            return [], None
        value = storage.read_json(self.state)
        if value.get("made_with") != self.made_with:
            return [], None
        outcomes = [Outcome(**trial) for trial in value["trials"]]
        for one in outcomes:
            # The file's keys are sorted.
            one.point = {axis["key"]: one.point[axis["key"]] for axis in value["axes"]}
        return outcomes, value["mlflow_run"]
