# SPDX-License-Identifier: Apache-2.0
"""A small discrete simulation of a run: steps one after the other, shards handed to workers, data-parallel training."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Equal nodes and the network between them."""

    nodes: int
    cores: int = 16
    """Of a node."""
    gpus: int = 1
    """Of a node; 0: networks run on cores."""
    bandwidth: float = 1.25e9
    """Bytes a second between two nodes."""
    latency: float = 5e-5
    """Seconds of a message."""


@dataclass(frozen=True)
class Start:
    """What begins with every step, whatever its size."""

    step: float = 2.0
    """Seconds before the first shard is handed out: digests, the plan, Ray Data."""
    worker: float = 5.0
    """Seconds until a worker has imported everything and holds its network."""
    training: float = 20.0
    """Seconds of forming a training group and of writing its end."""
    shard: float = 0.005
    """Seconds of the driver for each shard; it hands them out one after the other."""


@dataclass(frozen=True)
class ShardStep:
    """Images in shards of equal size that workers take one after the other."""

    title: str
    num_images: int
    rows: int
    """Images of a shard."""
    gpu_seconds: float = 0.0
    """Of one image on one GPU."""
    cpu_seconds: float = 0.0
    """Of one image on one core; where there are both, the two streams run beside each other."""


@dataclass(frozen=True)
class TrainStep:
    """A training of a fixed global batch, whose share each worker computes."""

    title: str
    num_steps: int
    batch: int
    device_seconds: float
    """Of one image, forward and backward."""
    overhead_seconds: float
    """Of one step on every worker: launches, optimiser."""
    loader_seconds: float
    """CPU of one sample, on one core."""
    bytes: float
    """Of all gradients."""


@dataclass(frozen=True)
class Spent:
    """What a step took."""

    title: str
    seconds: float
    workers: int
    """That took part."""


def run_shards(step: ShardStep, cluster: Cluster, start: Start) -> Spent:
    """The time until the last shard is done."""
    places = cluster.nodes * cluster.gpus if step.gpu_seconds else cluster.nodes * cluster.cores
    seconds = _hand_out(step, step.gpu_seconds or step.cpu_seconds, places, start)
    if step.gpu_seconds and step.cpu_seconds:
        cores = cluster.nodes * cluster.cores
        seconds = max(seconds, _hand_out(step, step.cpu_seconds, cores, start))
    return Spent(step.title, seconds, min(places, math.ceil(step.num_images / step.rows)))


def _hand_out(step: ShardStep, per_image: float, places: int, start: Start) -> float:
    """Every free worker takes the next shard, as soon as the driver has handed it out."""
    num_shards = math.ceil(step.num_images / step.rows)
    free = [start.step + start.worker] * min(places, num_shards)
    end = 0.0
    for number in range(num_shards):
        rows = min(step.rows, step.num_images - number * step.rows)
        begin = max(heapq.heappop(free), start.step + (number + 1) * start.shard)
        heapq.heappush(free, begin + rows * per_image)
        end = max(end, begin + rows * per_image)
    return end


def compute_step_seconds(step: TrainStep, workers: int, cluster: Cluster) -> float:
    """One optimiser step: the largest share, then a ring all-reduce; or the loader, where that is slower."""
    share = math.ceil(step.batch / workers)
    per_node = max(1, cluster.gpus)
    compute = step.overhead_seconds + share * step.device_seconds
    load = share * step.loader_seconds * per_node / cluster.cores
    reduce = 0.0
    if workers > 1:
        reduce = 2 * (workers - 1) / workers * step.bytes / cluster.bandwidth + 2 * (workers - 1) * cluster.latency
    return max(compute + reduce, load)


def run_training(step: TrainStep, cluster: Cluster, start: Start) -> Spent:
    """With the number of workers that is fastest; never more than images in a batch."""
    limit = min(step.batch, cluster.nodes * max(1, cluster.gpus))
    times = {workers: compute_step_seconds(step, workers, cluster) for workers in range(1, limit + 1)}
    best = min(times, key=lambda workers: (times[workers], workers))
    return Spent(step.title, start.training + step.num_steps * times[best], best)


def run_all(steps: Sequence[ShardStep | TrainStep], cluster: Cluster, start: Start) -> list[Spent]:
    """Every step; each waits for the one before."""
    return [
        run_training(step, cluster, start) if isinstance(step, TrainStep) else run_shards(step, cluster, start)
        for step in steps
    ]
