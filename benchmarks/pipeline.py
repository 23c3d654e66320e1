# SPDX-License-Identifier: Apache-2.0
"""What the pipeline costs: Ray against a bare loop, all thresholds against one, ten times the images against one.

Run: ``python benchmarks/pipeline.py DATA NETWORK [--split val] [--workers 2]`` with prepared shards and the folder of a
trained localizer (``results/train/...``). Both sides run in one call; ratios are printed, start-up is given apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.tables import decode_maps, name_part, read_table, write_table
from wsss_ray.cluster.join import join_cluster, plan_machines
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.contracts import FusionRule
from wsss_ray.data.image import decode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import Localization, Resources
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.score.confusion import count_confusion, make_matrix
from wsss_ray.score.curve import ThresholdCurve
from wsss_ray.stages.localize import LocalizeWorker

SCALES = (0.5, 1.0)


class Timed:
    """A localize worker that leaves the time each shard began and ended."""

    def __init__(self, times: str, *settings: Any) -> None:
        self.times, self.worker = times, LocalizeWorker(*settings)

    def make_table(self, shard: str) -> pa.Table:
        """The maps of a shard."""
        start = time.time()
        made = self.worker.make_table(shard)
        Path(self.times, f"{shard}.time").write_text(f"{start} {time.time()}")
        return made


def span(folder: str) -> tuple[float, float]:
    """First beginning and last end of all shards."""
    both = [tuple(map(float, path.read_text().split())) for path in Path(folder).glob("*.time")]
    return min(start for start, _ in both), max(end for _, end in both)


def bare(queue: Any, factory: Any, out: str) -> None:
    """A process of the bare loop: takes shards until there are none."""
    import torch

    torch.set_num_threads(1)
    worker = factory()
    while (shard := queue.get()) is not None:
        write_table(worker.make_table(shard), storage.join(out, name_part(shard)))


def localize_both(data: str, network: str, split: str, workers: int, scratch: str) -> str:
    """The same shards through Ray and through plain processes; prints the ratio and returns the maps' folder."""
    chosen = LocalizeConfig(scales=SCALES, precision="bf16", fusion=FusionRule())
    localization = Localization(method=CAMConfig(), localize=chosen)
    shards = [(info.path, info.num_rows) for info in load_manifest(data).shards_of(split)]
    images = sum(count for _, count in shards)
    seconds = {}
    for side in ("bare loop", "Ray"):
        times, out = tempfile.mkdtemp(dir=scratch), tempfile.mkdtemp(dir=scratch)
        factory = partial(Timed, times, data, network, localization, 8)
        called = time.time()
        if side == "Ray":
            with join_cluster():
                layout = plan_machines(Resources(inference_workers=workers))
                run_shards(ShardJob("localize", factory, shards, out, network=True), layout)
        else:
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            for name, _ in shards:
                queue.put(name)
            for _ in range(workers):
                queue.put(None)
            processes = [context.Process(target=bare, args=(queue, factory, out)) for _ in range(workers)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        start, end = span(times)
        seconds[side] = end - start
        print(f"localize, {side}: {images / seconds[side]:.2f} images/s, start-up {start - called:.1f} s", flush=True)
    print(f"localize: Ray takes {seconds['Ray'] / seconds['bare loop']:.3f} of the bare loop's time")
    return out


def thresholds_both(data: str, maps: str, split: str) -> None:
    """Scoring at 100 thresholds in one pass against scoring at one."""
    manifest = load_manifest(data)
    num_labels = len(manifest.classes) + 1
    loaded = []
    for info in manifest.shards_of(split):
        truths = {row["image_id"]: row["mask"] for row in read_shard(data, info.path, ["image_id", "mask"])}
        for row in read_table(storage.join(maps, name_part(info.path))).to_pylist():
            loaded.append((decode_maps(row), truths[row["image_id"]]))
    start = time.perf_counter()
    matrix = make_matrix(num_labels)
    for one, truth in loaded:
        mask = make_mask(pick_winners(add_constant_background(one.full(), 0.2)), one.classes)
        matrix += count_confusion(decode_mask(truth), mask, num_labels)
    single = time.perf_counter() - start
    start = time.perf_counter()
    curve = ThresholdCurve(np.arange(100) / 100, num_labels)
    for one, truth in loaded:
        curve.add(decode_mask(truth), one.classes, one.full())
    every = time.perf_counter() - start
    assert np.array_equal(curve.matrices()[20], matrix)
    print(f"score: 1 threshold {single:.2f} s, 100 thresholds {every:.2f} s, ratio {every / single:.2f}")


class Nothing:
    """A worker that does next to nothing, so that only the driver's own cost remains."""

    def make_table(self, shard: str) -> pa.Table:
        """One row."""
        return pa.table({"image_id": [shard]})


def driver_memory(count: int) -> None:
    """Peak memory of a driver that runs ``count`` shards of 32 images (in a process of its own)."""
    with tempfile.TemporaryDirectory() as out, join_cluster():
        shards = [(f"shard-{number:05d}.parquet", 32) for number in range(count)]
        run_shards(ShardJob("nothing", Nothing, shards, out), plan_machines(Resources()))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory_both() -> None:
    """Driver memory at 320 and at 3,200 images."""
    found = []
    for count in (10, 100):
        command = [sys.executable, __file__, "--driver", str(count)]
        answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
        found.append(float(answer.stdout.strip().splitlines()[-1]))
    print(f"driver: {found[0]:.0f} MB at 320 images, {found[1]:.0f} MB at 3,200, ratio {found[1] / found[0]:.3f}")


def main() -> None:
    """All three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?")
    parser.add_argument("network", nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--driver", type=int)
    given = parser.parse_args()
    if given.driver:
        driver_memory(given.driver)
        return
    if not given.data or not given.network:
        parser.error("give DATA and NETWORK")
    data, network = storage.make_absolute(given.data), storage.make_absolute(given.network)
    with tempfile.TemporaryDirectory() as scratch:
        maps = localize_both(data, network, given.split, given.workers, scratch)
        thresholds_both(data, maps, given.split)
    memory_both()


if __name__ == "__main__":
    main()
