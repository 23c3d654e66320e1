# SPDX-License-Identifier: Apache-2.0
"""What the engine costs: the localize step through Ray against a plain PyTorch loop in as many processes.

The same network, one thread a process, the same allocator settings, processes that have imported everything on both
sides; each side loads the network in every call. CPU time is that of all processes: workers, driver and Ray's own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.baselines.localize_loop import Processes, Protocol
from benchmarks.claim import CPU, WALL, Claim, Given, Goal, Pair, Reading
from benchmarks.images import list_images, write_images
from benchmarks.machine import list_tree, read_cpu_seconds
from wsss_ray.artifacts.network import MODEL, NETWORK, LocalizerSpec, encode_state, open_localizer
from wsss_ray.artifacts.tables import decode_maps, name_part, read_table
from wsss_ray.cluster.join import join_cluster, plan_machines
from wsss_ray.cluster.process import begin_work
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.data.manifest import load_manifest
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import Localization, NetConfig, Resources
from wsss_ray.stages.localize import LocalizeWorker

SCALES, SIZE, NUM_CLASSES, ROWS = (0.5, 1.0), (240, 320), 20, 16
BATCH = 8


def write_network(folder: Path) -> Localization:
    """A localizer with random weights, as a train step leaves it."""
    torch.manual_seed(0)
    localization = Localization(
        method=CAMConfig(), net=NetConfig(backbone="squeezenet"), localize=LocalizeConfig(scales=SCALES)
    )
    spec = LocalizerSpec(num_classes=NUM_CLASSES, localization=localization)
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(encode_state(spec.build()))
    (folder / NETWORK).write_text(spec.model_dump_json(), encoding="utf-8")
    return localization


def load_maps(folder: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network of that folder, as the loop wants it."""
    return open_localizer(folder).localizer.maps


class Sides:
    """Both sides over the same shards."""

    def __init__(self, scratch: Path, data: str, localization: Localization, network: Path) -> None:
        self.scratch, self.data, self.localization, self.network = scratch, data, localization, str(network)
        self.shards = [(info.path, info.num_rows) for info in load_manifest(data).shards]
        told = localization.net.normalize.describe()
        mean, std = tuple(told["mean"]), tuple(told["std"])
        self.protocol = Protocol(SCALES, mean, std, localization.localize.stride)

    def warm(self, workers: int, processes: Processes) -> None:
        """Both sides over a few shards, so that every process has imported what it needs."""
        every, self.shards = self.shards, self.shards[: 2 * workers]
        self.run_ray(workers)
        self.run_loop(processes)
        self.shards = every

    def run_ray(self, workers: int) -> Reading:
        """The localize step's work through Ray; CPU time of this process and all of Ray's on this machine."""
        out = self._empty("ray")
        worker = partial(LocalizeWorker, self.data, self.network, self.localization, BATCH)
        machines = plan_machines(Resources(inference_workers=workers, gpus=False))
        members, start = list_tree(os.getpid()), time.perf_counter()
        before = read_cpu_seconds(members)
        run_shards(ShardJob("localize", worker, self.shards, str(out), network=True), machines)
        wall = time.perf_counter() - start
        return {CPU: read_cpu_seconds(members | list_tree(os.getpid())) - before, WALL: wall}

    def run_loop(self, processes: Processes) -> Reading:
        """The same by hand; CPU time of this process and the loop's."""
        out = self._empty("loop")
        start, before = time.perf_counter(), read_cpu_seconds(processes.ids)
        files = [Path(self.data, name) for name, _ in self.shards]
        processes.run(partial(load_maps, self.network), files, self.protocol, out)
        wall = time.perf_counter() - start
        return {CPU: read_cpu_seconds(processes.ids) - before, WALL: wall}

    def describe(self) -> str:
        """How far the maps of the first shard lie apart."""
        name = name_part(self.shards[0][0])
        loop = np.load(self.scratch / "loop" / f"{Path(name).stem}.npz")
        rows = read_table(str(self.scratch / "ray" / name)).to_pylist()
        gaps = [np.abs(decode_maps(row).maps - loop[row["image_id"]].astype(np.float32)).max() for row in rows]
        return f"{sum(count for _, count in self.shards)} images; maps differ by at most {max(gaps):.0e}"

    def _empty(self, name: str) -> Path:
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def measure(given: Given) -> Iterator[Pair]:
    """Engine against loop with one and two workers, then one worker against two."""
    scratch = given.scratch / "overhead"
    images = list_images(given.data, 128 if given.quick else 500, SIZE)
    data = write_images(scratch / "data", images, NUM_CLASSES, rows_per_shard=ROWS)
    sides = Sides(scratch, data, write_network(scratch / "network"), scratch / "network")
    workers = min(2, len(os.sched_getaffinity(0)))
    rounds = 2 if given.quick else 5
    processes, alone = Processes(workers, partial(begin_work, 1)), Processes(1, partial(begin_work, 1))
    try:
        with join_cluster():
            sides.warm(workers, processes)
            yield Pair(
                f"localize, {workers} workers",
                top=partial(sides.run_ray, workers),
                bottom=partial(sides.run_loop, processes),
                goals={CPU: Goal(at_most=1.05), WALL: Goal(at_most=1.10)},
                rounds=rounds,
                warm=False,
                describe=sides.describe,
            )
            if workers > 1:
                yield Pair(
                    "one worker / two workers",
                    top=partial(sides.run_ray, 1),
                    bottom=partial(sides.run_ray, 2),
                    goals={WALL: Goal(at_least=1.9)},
                    rounds=rounds,
                    warm=False,
                )
                # What the machine allows: cores share memory and, often, their clock.
                sides.run_loop(alone)
                yield Pair(
                    "the plain loop, one process / two processes",
                    top=partial(sides.run_loop, alone),
                    bottom=partial(sides.run_loop, processes),
                    rounds=rounds,
                    warm=False,
                )
    finally:
        processes.close()
        alone.close()


CLAIM = Claim(
    says="Ray takes hardly more than a plain loop with the same network, and twice the workers half the time",
    ratio="through Ray / plain PyTorch loop",
    measure=measure,
    seconds=80,
)
