# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: what differs in their recipes, their scores with protocol, and whether a gap is significant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wsss_ray.artifacts.record import RunFolder
from wsss_ray.config import UserError
from wsss_ray.score.bootstrap import Difference, compare_counts
from wsss_ray.score.names import STEPS
from wsss_ray.tracking import flatten

IDLE = {"name", "resources", "tags", "version"}
"""Parts of a recipe that change no result."""


@dataclass(frozen=True)
class ScoreLine:
    """One scored variant over all runs."""

    step: str
    variant: str
    values: tuple[float | None, ...]
    """mIoU in [0, 1], None where a run has no such score."""
    protocols: tuple[str | None, ...]

    @property
    def one_protocol(self) -> bool:
        """Whether all runs that have this score were scored alike."""
        return len({text for text in self.protocols if text is not None}) <= 1


@dataclass(frozen=True)
class PairedTest:
    """The paired bootstrap of one run against the first."""

    step: str
    variant: str
    run: int
    """Index of the run that is compared with run 0."""
    result: Difference | None
    reason: str = ""
    """Why there is no result."""

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.result is None:
            return self.reason
        if self.result.low > 0:
            return "higher, statistically significant"
        if self.result.high < 0:
            return "lower, statistically significant"
        return "not significant"


@dataclass(frozen=True)
class Comparison:
    """Everything ``wsss compare`` prints."""

    names: tuple[str, ...]
    differing: dict[str, tuple[Any, ...]]
    """Flattened recipe key -> its value in every run (None where a run has no such key)."""
    scores: list[ScoreLine]
    labels: tuple[str, ...]
    iou: dict[str, list[tuple[float | None, ...]]] = field(default_factory=dict)
    """``step/variant`` -> for every label the IoU in every run."""
    tests: list[PairedTest] = field(default_factory=list)


def compare_runs(runs: Sequence[RunFolder], num_resamples: int = 1000, seed: int = 0) -> Comparison:
    """Compare two or more runs; every one is tested against the first.

    Raises UserError for fewer than two runs, or runs over different classes.
    """
    if len(runs) < 2:
        raise UserError("compare needs at least two runs")
    labels = runs[0].labels
    for run in runs[1:]:
        if run.labels != labels:
            raise UserError(f"{run.name} and {runs[0].name} have different classes: compare runs on the same data")
    lines = [line for step in STEPS for line in collect_scores(runs, step)]
    iou = {
        f"{line.step}/{line.variant}": [
            tuple(run.scored(line.step).get(line.variant, {}).get("iou", {}).get(label) for run in runs)
            for label in labels
        ]
        for line in lines
    }
    return Comparison(
        names=tuple(run.name for run in runs),
        differing=find_differences([run.recipe for run in runs]),
        scores=lines,
        labels=tuple(labels),
        iou=iou,
        tests=[test for step in STEPS for test in bootstrap_runs(runs, step, num_resamples, seed)],
    )


def find_differences(recipes: Sequence[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Flattened keys whose values are not equal in all recipes, in the order of the recipes."""
    flat = [flatten(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one if key.split(".")[0] not in IDLE)
    values = {key: tuple(one.get(key) for one in flat) for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found[1:])}


def collect_scores(runs: Sequence[RunFolder], step: str) -> list[ScoreLine]:
    """The variants of a step that any run has."""
    found = [run.scored(step) for run in runs]
    return [
        ScoreLine(
            step,
            variant,
            tuple(one[variant]["miou"] if variant in one else None for one in found),
            tuple(one[variant]["protocol"] if variant in one else None for one in found),
        )
        for variant in STEPS[step].variants
        if any(variant in one for one in found)
    ]


def bootstrap_runs(runs: Sequence[RunFolder], step: str, num_resamples: int, seed: int) -> list[PairedTest]:
    """The paired bootstrap over images of every run against the first, for every variant both have counts of."""
    first = runs[0].counts(step)
    tests = []
    for place, run in enumerate(runs[1:], start=1):
        other = run.counts(step)
        for variant in STEPS[step].variants:
            if variant not in first or variant not in other:
                continue
            (names, counts), (other_names, other_counts) = first[variant], other[variant]
            absent = runs[0].recipe.get("score", {}).get("absent", "skip")
            if names != other_names:
                tests.append(PairedTest(step, variant, place, None, "scored on different images"))
                continue
            try:
                result = compare_counts(counts, other_counts, num_resamples, seed=seed, absent=absent)
            except UserError as error:
                tests.append(PairedTest(step, variant, place, None, str(error)))
            else:
                tests.append(PairedTest(step, variant, place, result))
    return tests
