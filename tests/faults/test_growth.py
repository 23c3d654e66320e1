# SPDX-License-Identifier: Apache-2.0
"""Work over shards on a cluster whose nodes come and go: who did which shard is in the shards themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray")

import ray

from tests.faults.clusters import add_node, count_on, drain, start_cluster, wait_until
from wsss_ray.cluster.join import plan_machines
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.cluster.split import Split, SplitWorker
from wsss_ray.recipe import Resources

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
NUM_SHARDS = 16
SHARDS = [(f"shard-{number:02d}.parquet", 1) for number in range(NUM_SHARDS)]
SECONDS = 1.0
"""Of work in each."""


class Worker:
    """Writes where and when it began."""

    def make_table(self, shard: str) -> pa.Table:
        row = {"image_id": shard, "node": ray.get_runtime_context().get_node_id(), "start": time.time()}
        time.sleep(SECONDS)
        return pa.Table.from_pylist([row])


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def run_beside(out: Path) -> threading.Thread:
    """The shards in a thread of their own."""
    job, machines = ShardJob("localize", Worker, SHARDS, str(out)), plan_machines(Resources())
    thread = threading.Thread(target=run_shards, args=(job, machines), daemon=True)
    thread.start()
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= 3)
    return thread


def test_a_node_added_in_the_middle_takes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_cluster({"num_cpus": 1}) as (cluster, _):
        thread = run_beside(tmp_path)
        added = add_node(cluster, 2, num_cpus=1)
        joined = time.time()
        thread.join(timeout=200)
        rows = read_rows(tmp_path)
        assert len(rows) == NUM_SHARDS
        theirs = [row for row in rows if row["node"] == added.node_id]
        with capsys.disabled():
            first = min((row["start"] for row in theirs), default=0) - joined
            print(
                f"\nadded in the middle: shards by node {count_on([row['node'] for row in rows])}, {first:.1f} s after"
            )
        assert len(theirs) >= 2


def test_a_drained_node_is_left_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_cluster({"num_cpus": 1}, {"num_cpus": 1}) as (cluster, (_, second)):
        thread = run_beside(tmp_path)
        wait_until(lambda: any(row["node"] == second.node_id for row in read_rows(tmp_path)))
        drain(cluster, second.node_id)
        drained = time.time()
        thread.join(timeout=200)
        rows = read_rows(tmp_path)
        assert [row["image_id"] for row in rows] == [name for name, _ in SHARDS]
        late = [row["start"] - drained for row in rows if row["node"] == second.node_id and row["start"] > drained]
        with capsys.disabled():
            print(f"\ndrained: shards by node {count_on([row['node'] for row in rows])}, begun there afterwards {late}")
        assert all(seconds < 2 * SECONDS for seconds in late), "no more than what was handed out"
        assert any(row["node"] == second.node_id for row in rows)


class Reader:
    """The side of the network."""

    def read_parts(self, shard: str) -> Iterator[tuple[int, Any]]:
        time.sleep(2 * SECONDS)
        for place in range(6):
            yield place, (f"{shard}/{place}", ray.get_runtime_context().get_node_id())


class Finisher:
    def make_row(self, part: Any) -> dict[str, Any]:
        time.sleep(0.1)
        return {"image_id": part[0], "network": part[1], "rest": ray.get_runtime_context().get_node_id()}


SCHEMA = pa.schema([(name, pa.string()) for name in ("image_id", "network", "rest")])


def test_networks_go_to_gpus_and_the_rest_to_all_cores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A node with a GPU and one without; a second one with a GPU joins in the middle."""
    split = Split(Reader, Finisher, SCHEMA)
    shards = [(name, 6) for name, _ in SHARDS]
    job = ShardJob("predict", partial(SplitWorker, split), shards, str(tmp_path), network=True, split=split)
    nodes = [{"num_cpus": 0}, {"num_cpus": 2, "num_gpus": 0}, {"num_cpus": 1, "num_gpus": 1}]
    with start_cluster(*nodes) as (cluster, (_, plain, gpu)):
        machines = plan_machines(Resources())
        assert (machines.gpus, machines.cpu_workers) == (1, 3)
        thread = threading.Thread(target=run_shards, args=(job, machines), daemon=True)
        thread.start()
        wait_until(lambda: len(list(tmp_path.glob("*.parquet"))) >= 2)
        other = add_node(cluster, 4, num_cpus=2, num_gpus=1)
        thread.join(timeout=200)
        rows = read_rows(tmp_path)
        assert len(rows) == 6 * NUM_SHARDS
        networks, rest = [row["network"] for row in rows], [row["rest"] for row in rows]
        with capsys.disabled():
            names = {plain.node_id[:6]: "cpu", gpu.node_id[:6]: "gpu", other.node_id[:6]: "gpu that joined"}
            print(f"\nnetwork by node {count_on(networks)}, the rest {count_on(rest)}; {names}")
        assert gpu.node_id in networks
        assert plain.node_id not in networks
        assert plain.node_id in rest
        assert other.node_id in networks, "the node that joined is used"
