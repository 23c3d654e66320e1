# SPDX-License-Identifier: Apache-2.0
"""A sweep over many background thresholds against the same sweep at one threshold, from a trained network on.

Both make the class maps and the masks of every CRF anew; the further points re-read what these left.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.claim import WALL, Claim, Given, Goal, Pair, Reading, timed
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_run import run_sweep
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.recipe import Recipe, Scale, replace_settings
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.studies import resolve

PRESETS = ("psa", "irn", "deeplab_v2", "wsfcn")
REMADE = ("histogram", "localize", "refine", "runs", "score", "sweeps")
"""What every call makes anew; it finds the data, the trained network, and MLflow's database, which is open."""


def train_once(scale: Scale, out: Path) -> Recipe:
    """The recipe up to masks by a CRF, its network trained below ``out``."""
    recipe = resolve("cam", scale=scale)
    parts = {"refine": CRFRefinerConfig(background="constant"), "affinity": None, "segment": None}
    short = replace_settings(recipe, parts)
    run(replace_settings(short, {"refine": None}), RunOptions(str(out)))
    return short


def sweep(recipe: Recipe, out: Path, thresholds: str) -> Reading:
    """Seconds of one sweep over these thresholds and all presets."""
    for name in REMADE:
        shutil.rmtree(out / name, ignore_errors=True)
    axes = parse_space([f"score.background={thresholds}", f"refine.crf={','.join(PRESETS)}"])

    def work() -> None:
        outcomes = run_sweep(plan_sweep(recipe, axes, SweepOptions(metric="masks")), str(out))
        failed = [outcome for outcome in outcomes if outcome.state != "finished"]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(outcomes)} points failed")

    return {WALL: timed(work)()[WALL]}


def measure(given: Given) -> Iterator[Pair]:
    """400 points against four."""
    out = given.scratch / "sweep"
    recipe = train_once("toy", out)
    yield Pair(
        f"100 thresholds, {len(PRESETS)} CRFs",
        top=partial(sweep, recipe, out, "0:0.99:0.01"),
        bottom=partial(sweep, recipe, out, "0.2"),
        goals={WALL: Goal(at_most=1.2)},
        rounds=1 if given.quick else 3,
        warm=False,
    )


CLAIM = Claim(
    says="a sweep over many thresholds costs little more than one threshold",
    ratio="100 thresholds / one threshold",
    measure=measure,
    seconds=180,
    quick=False,
)
