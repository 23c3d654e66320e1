# SPDX-License-Identifier: Apache-2.0
"""The driver's memory in each step while a data set grows: shards with names and counts, workers that return at once.

The steps' own functions run, on a manifest of that many rows; only the workers on the other side of Ray are empty. Each
size is a driver of its own, which runs the steps one after the other and resets its peak before each.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.claim import MEMORY, Claim, Given, Goal, Pair, Reading
from benchmarks.machine import read_peak_mb, reset_peak
from wsss_ray.artifacts.store import Artifact, Store
from wsss_ray.cluster.join import Machines, join_cluster, plan_machines
from wsss_ray.data.manifest import SHARD, DataSet, Manifest, ShardInfo, SplitInfo
from wsss_ray.data.source import Item, Row, Source
from wsss_ray.data.tally import Facts
from wsss_ray.recipe import Resources, SettledRecipe
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.score.curve import ThresholdCurve
from wsss_ray.stages import localize, predict, prepare, refine, score
from wsss_ray.stages.run import Run, Steps
from wsss_ray.studies import resolve

STEPS = ("localize", "refine", "predict", "score", "prepare")
"""``prepare`` last: it holds most, and what a process has held it may not give back."""
SMALL, ROWS = 10_000, 128
"""Rows of the small data set, and of a shard, as ``prepare`` packs a large one."""
NUM_CLASSES = 20


class Nothing:
    """A worker that returns at once."""

    def __init__(self, *settings: Any) -> None:
        """Whatever a worker is given."""

    def make_table(self, shard: str) -> pa.Table:
        """So many rows as the shard of this name has, without anything in them."""
        return pa.table({"image_id": [f"{shard}-{row:05d}" for row in range(ROWS)]})


class NoScores:
    """A score worker that returns the sums of one small image for every shard."""

    def __init__(self, data: str, results: str, kind: str, config: Any, num_labels: int) -> None:
        curve = ThresholdCurve(config.curve_thresholds, num_labels)
        truth = np.tile(np.array([0, 1], np.uint8), (8, 4))
        curve.add(truth, np.array([0], np.int32), truth[None].astype(np.float32))
        sums = {"curve": curve.counts, "values": curve.values, "parts": np.zeros((2, 256), np.int64)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, fixed=np.ones((num_labels, num_labels + 1), np.int64), **sums)  # type: ignore[arg-type]
        self.sums = buffer.getvalue()

    def make_table(self, shard: str) -> pa.Table:
        """The sums, where a step looks for them."""
        return pa.table({"image_id": [shard]}).replace_schema_metadata({b"wsss.totals": self.sums})


@dataclass(frozen=True)
class Counted:
    """So many items, made while they are iterated, as a source of any size is."""

    number: int

    def __iter__(self) -> Iterator[Item]:
        for index in range(self.number):
            name = f"{index:08d}.jpg"
            yield Item(f"image_{index:08d}", f"/images/{name}", (index % NUM_CLASSES,), splits=("train",), file=name)


def load_nothing(item: Item) -> Row:
    """Never called: ``skip_reading`` stands in for the reading of images."""
    raise AssertionError(item)


def skip_reading(part: Mapping[str, Any], load: bytes, out: str) -> dict[str, Any]:
    """What a prepare task answers, without having read anything."""
    name = str(part["name"])
    number = int(name.split("-")[1].split(".")[0])
    info = describe_shard(number, splits=list(part["splits"]))
    facts = [
        asdict(Facts(f"{name}-{row}", ("train",), (row % NUM_CLASSES,), content=f"{number * ROWS + row:016x}"))
        for row in range(ROWS)
    ]
    return {
        "info": SHARD.dump_json(info).decode(),
        "facts": json.dumps(facts),
        "bad": "[]",
        "items": ROWS,
        "kept": False,
    }


def describe_shard(number: int, splits: list[str]) -> ShardInfo:
    """A line of a manifest."""
    return ShardInfo(
        path=f"shard-{number:05d}.parquet",
        num_rows=ROWS,
        digest=f"{number:064x}",
        content=f"{number:064x}",
        splits=tuple(splits),
        num_masks=ROWS,
    )


def make_run(num_rows: int, out: str, machines: Machines) -> Run:
    """A run over a data set of so many rows that is nothing but its manifest."""
    shards = tuple(describe_shard(number, ["train", "val"]) for number in range(-(-num_rows // ROWS)))
    split = SplitInfo(num_images=num_rows, digest="0" * 16, has_masks=True, has_saliency=False)
    manifest = Manifest(
        source="synthetic",
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        palette=tuple((number, 0, 0) for number in range(NUM_CLASSES + 1)),
        splits={"train": split, "val": split},
        shards=shards,
        num_images=num_rows,
        has_masks=True,
        has_saliency=False,
    )
    recipe = resolve("cam", scale="small", settings=("data.train_split=train", "data.score_split=train"))
    settled = SettledRecipe.model_validate(recipe.model_dump(mode="json"))
    return Run(settled, DataSet(out, manifest), Steps(Store(out)), machines)


def list_steps(num_rows: int, out: str, machines: Machines) -> dict[str, Callable[[], object]]:
    """The steps' own functions, their workers empty."""
    run = make_run(num_rows, out, machines)
    network = Artifact("train", "1" * 16, f"{out}/train", {})
    maps = Artifact("localize", "2" * 16, f"{out}/maps", {})
    for module, worker in ((localize, "LocalizeWorker"), (refine, "RefineWorker"), (predict, "SplitWorker")):
        setattr(module, worker, Nothing)
    setattr(score, "ScoreWorker", NoScores)  # noqa: B010 (as above)
    setattr(prepare, "_write", skip_reading)  # noqa: B010
    source = Source("synthetic", list(run.data.manifest.classes), Counted(num_rows), load_nothing, ("train",))
    refiner = CRFRefinerConfig(background="constant")
    return {
        "localize": partial(localize.localize, run, "localize", run.recipe, network),
        "refine": partial(refine.refine_maps, run, "refine", maps, refiner),
        "predict": partial(predict.predict, run, network),
        "score": partial(score.score, run, "seeds", maps),
        "prepare": partial(prepare.prepare, source, f"{out}/data", machines),
    }


def drive(num_rows: int, wanted: list[str]) -> dict[str, tuple[float, float]]:
    """Step -> (peak memory in MB, seconds) of this process, a driver."""
    found = {}
    with tempfile.TemporaryDirectory() as out, join_cluster():
        steps = list_steps(num_rows, out, plan_machines(Resources(gpus=False)))
        for name in wanted:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            reset_peak()
            start = time.monotonic()
            steps[name]()
            found[name] = (read_peak_mb(), time.monotonic() - start)
    return found


@cache
def drive_apart(num_rows: int) -> dict[str, tuple[float, float]]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", str(num_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    answer: dict[str, tuple[float, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def measure(given: Given) -> Iterator[Pair]:
    """A large data set against one of ten thousand rows, step by step."""
    large = 50_000 if given.quick else 1_000_000
    for step in STEPS:

        def read(num_rows: int, step: str = step) -> Reading:
            return {MEMORY: drive_apart(num_rows)[step][0]}

        yield Pair(
            f"{step}, {large:,} rows",
            top=partial(read, large),
            bottom=partial(read, SMALL),
            goals={MEMORY: Goal(at_most=1.05)},
            rounds=1,
            warm=False,
            describe=partial(describe_speed, large, SMALL, step),
        )


def describe_speed(large: int, small: int, step: str) -> str:
    """What one more shard costs, with a worker that returns at once."""
    seconds = drive_apart(large)[step][1] - drive_apart(small)[step][1]
    return f"{1e3 * seconds * ROWS / (large - small):.0f} ms a shard"


CLAIM = Claim(
    says="the driver's memory does not grow with the data set, in any step",
    ratio="many rows / 10,000 rows",
    measure=measure,
    seconds=70,
)


def main() -> None:
    """One driver; prints {step: [MB, seconds]} as its last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=int)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    given = parser.parse_args()
    print(json.dumps(drive(given.rows, given.steps)))


if __name__ == "__main__":
    main()
