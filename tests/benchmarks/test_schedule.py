# SPDX-License-Identifier: Apache-2.0
"""The simulation of the schedule: sums by hand on one worker, bounds on many, and the table's sources."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.schedule import (
    Cluster,
    ShardStep,
    Start,
    TrainStep,
    compute_step_seconds,
    run_shards,
    run_training,
)
from benchmarks.simulate import COSTS, NODES, SETUPS, simulate, write_tables

START = Start(step=1.0, worker=2.0, training=3.0, shard=0.0)
STEP = ShardStep("maps", num_images=100, rows=10, gpu_seconds=0.5)
TRAIN = TrainStep("train", 10, 8, device_seconds=1.0, overhead_seconds=0.5, loader_seconds=0.0, bytes=4e9)


def test_one_worker_takes_the_sum() -> None:
    spent = run_shards(STEP, Cluster(nodes=1), START)
    assert (spent.seconds, spent.workers) == (pytest.approx(1 + 2 + 100 * 0.5), 1)


def test_the_last_shards_leave_workers_idle() -> None:
    """Ten shards on four workers: three rounds, of which the last one has two shards."""
    assert run_shards(STEP, Cluster(nodes=4), START).seconds == pytest.approx(3 + 3 * 5)
    assert run_shards(STEP, Cluster(nodes=64), START).seconds == pytest.approx(3 + 5)
    assert run_shards(STEP, Cluster(nodes=64), START).workers == 10


def test_an_unfull_shard_is_shorter() -> None:
    step = dataclasses.replace(STEP, num_images=15)
    assert run_shards(step, Cluster(nodes=1), START).seconds == pytest.approx(3 + 15 * 0.5)


def test_the_driver_hands_out_one_shard_after_the_other() -> None:
    slow = dataclasses.replace(START, shard=4.0)
    assert run_shards(STEP, Cluster(nodes=64), slow).seconds == pytest.approx(1 + 10 * 4 + 5)


def test_the_slower_of_two_streams_decides() -> None:
    step = dataclasses.replace(STEP, cpu_seconds=80.0)
    assert run_shards(step, Cluster(nodes=1, cores=10), START).seconds == pytest.approx(3 + 10 * 80)


def test_training_adds_the_reduction_of_gradients() -> None:
    cluster = Cluster(nodes=4, bandwidth=1e9, latency=0.0)
    assert compute_step_seconds(TRAIN, 1, cluster) == pytest.approx(0.5 + 8)
    assert compute_step_seconds(TRAIN, 4, cluster) == pytest.approx(0.5 + 2 + 2 * 3 / 4 * 4)
    slow = dataclasses.replace(TRAIN, loader_seconds=100.0)
    assert compute_step_seconds(slow, 4, cluster) == pytest.approx(2 * 100 / cluster.cores)


def test_training_uses_no_more_workers_than_help() -> None:
    slow = Cluster(nodes=64, bandwidth=1e6)
    assert run_training(TRAIN, slow, START).workers == 1
    fast = Cluster(nodes=64, bandwidth=1e15, latency=0.0)
    assert run_training(TRAIN, fast, START).workers == 8, "no more than images in a batch"


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_more_nodes_are_never_slower_and_never_more_than_proportional(setup: object) -> None:
    totals = [sum(step.seconds for step in simulate(setup, nodes)) for nodes in NODES]  # type: ignore[arg-type]
    assert totals == sorted(totals, reverse=True)
    assert all(totals[0] / total <= nodes + 1e-6 for nodes, total in zip(NODES, totals, strict=True))


def test_every_cost_has_a_source() -> None:
    for name, cost in COSTS.items():
        assert cost.source.split()[0].strip(":,") in ("measured", "published", "assumed"), name
    text = write_tables()
    assert all(f"| {name} |" in text for name in COSTS)
    assert text.count("counted here") == 4
