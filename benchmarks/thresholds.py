# SPDX-License-Identifier: Apache-2.0
"""A sweep over 100 thresholds and four CRF presets against what it cannot do without.

    python benchmarks/thresholds.py --data URI [--out FOLDER] [RECIPE] [--scale small]

Trains once, then times the sweep from the trained network on: 400 points. Its time is printed as a ratio to that of one
localize pass and one CRF pass per preset, as their own records have it.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from pyarrow.fs import FileSelector

from wsss_ray import storage
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_run import run_sweep
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.recipe import Recipe, replace_settings
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.studies import resolve

PRESETS = ("psa", "irn", "deeplab_v2", "wsfcn")


def trained(recipe: Recipe, out: str) -> Recipe:
    """``recipe`` up to masks by a CRF, its network trained and its maps not yet made."""
    short = replace_settings(
        recipe, {"refine": CRFRefinerConfig(background="constant"), "affinity": None, "segment": None}
    )
    run(replace_settings(short, {"localize.scales": (0.25,), "localize.flip": False}), RunOptions(out))
    return short


def seconds_of(out: str, stage: str) -> dict[str, float]:
    """Artifact of a stage -> the seconds it took."""
    filesystem, path = storage.open_fs(storage.join(out, stage))
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    records = {info.base_name: storage.join(out, stage, info.base_name, "artifact.json") for info in found}
    return {name: storage.read_json(where)["seconds"] for name, where in records.items()}


def main() -> None:
    """Train, sweep, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="cam")
    parser.add_argument("--data", required=True)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--out")
    given = parser.parse_args()
    out = storage.make_absolute(given.out or tempfile.mkdtemp())
    recipe = trained(resolve(given.recipe, scale=given.scale, data=given.data), out)
    before = {stage: set(seconds_of(out, stage)) for stage in ("localize", "refine")}
    axes = parse_space(["score.background=0:0.99:0.01", f"refine.crf={','.join(PRESETS)}"])
    start = time.perf_counter()
    outcomes = run_sweep(plan_sweep(recipe, axes, SweepOptions(metric="masks")), out)
    whole = time.perf_counter() - start
    localize, refine = (
        [seconds for name, seconds in seconds_of(out, stage).items() if name not in seen]
        for stage, seen in before.items()
    )
    needed = sum(localize) + sum(refine)
    finished = sum(outcome.state == "finished" for outcome in outcomes)
    print(f"sweep: {finished} of {len(outcomes)} points in {whole:.1f} s")
    print(f"localize passes: {len(localize)} ({sum(localize):.1f} s); CRF passes: {len(refine)} ({sum(refine):.1f} s)")
    print(f"ratio: {whole / needed:.2f} of one localize pass and one CRF pass per preset")


if __name__ == "__main__":
    main()
