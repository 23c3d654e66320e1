# SPDX-License-Identifier: Apache-2.0
"""How work is laid out over nodes, and what is given back of trainings whose driver died."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group, placement_group_table

from tests.local_ray import start_ray
from wsss_ray.cluster.join import fit_runs, fit_training, lay_out, plan_machines, release_orphans
from wsss_ray.cluster.nodes import MOST_NODES, Node, add_missing
from wsss_ray.config import UserError
from wsss_ray.recipe import Resources


@pytest.fixture
def two_cores() -> Iterator[None]:
    """A Ray with two cores."""
    start_ray(2)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("nodes", "workers", "share", "threads"),
    [
        ([(8, 0)], 1, 1, 8),
        ([(8, 0)], 2, 2, 2),
        ([(2, 0)] * 4, 1, 1, 2),
        ([(16, 0), (2, 0)], 1, 1, 16),
        ([(3, 0), (3, 0)], 1, 3, 1),
        ([(0, 0), (4, 0), (4, 0)], 3, 1, 2),
        ([(64, 0), (4, 1)], 1, 1, 4),
        ([(8, 4), (32, 0)], 4, 1, 2),
    ],
)
def test_every_training_worker_fits_on_a_node(
    nodes: list[tuple[int, int]], workers: int, share: int, threads: int
) -> None:
    made = lay_out(nodes, Resources(train_workers=workers), share)
    assert made.train_cpus == threads
    fitting = [min(cpus // threads, gpus) if made.use_gpu else cpus // threads for cpus, gpus in nodes]
    assert sum(fitting) >= workers * share


@pytest.mark.parametrize(
    ("there", "kinds", "found"),
    [
        ([(0, 0)], [(2, (8, 0))], [(0, 0), (8, 0), (8, 0)]),
        ([(0, 0), (8, 0)], [(2, (8, 0))], [(0, 0), (8, 0), (8, 0)]),
        ([(4, 0)], [(1, (16, 4)), (1, (4, 0))], [(4, 0), (16, 4)]),
        ([(4, 0)], [], [(4, 0)]),
    ],
)
def test_nodes_that_may_come_are_added_to_those_there(
    there: list[Node], kinds: list[tuple[int, Node]], found: list[Node]
) -> None:
    assert add_missing(there, kinds) == found


def test_the_plan_is_for_what_the_cluster_can_become() -> None:
    """A head without cores, and one without a GPU: neither is all there will be."""
    assert lay_out(add_missing([(0, 0)], [(3, (8, 0))]), Resources()).cpus == 24
    grown = lay_out(add_missing([(4, 0)], [(2, (16, 1))]), Resources())
    assert (grown.gpus, grown.inference_workers, grown.cpu_workers, grown.train_cpus) == (2, 2, 36, 16)


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"),
    [([(2, 0), (2, 0)], 2, 2), ([(2, 0)], 1, 2), ([(1, 0)], 1, 1), ([(0, 0)], 2, 2)],
)
def test_a_training_fits_on_the_nodes_that_stay(nodes: list[Node], workers: int, threads: int) -> None:
    whole = lay_out([(2, 0), (2, 0)], Resources(train_workers=2))
    fitting = fit_training(whole, nodes)
    assert (fitting.train_workers, fitting.train_cpus) == (workers, threads)


def test_what_the_autoscaler_reports_is_planned_with(two_cores: None) -> None:
    """Told to the head as Ray's autoscaler does; the user's own word goes before it."""
    kinds = {"small": ({"CPU": 4}, 2), "large": ({"CPU": 16, "GPU": 2}, -1), "head": ({"CPU": 2}, 0)}
    report = autoscaler_pb2.ClusterConfig(
        node_group_configs=[
            autoscaler_pb2.NodeGroupConfig(name=name, resources=resources, max_count=most)
            for name, (resources, most) in kinds.items()
        ]
    )
    assert plan_machines(Resources()).cpus == 2
    GcsClient(address=ray.get_runtime_context().gcs_address).report_cluster_config(report.SerializeToString())
    planned = plan_machines(Resources())
    assert (planned.cpus, planned.gpus) == (2 + 2 * 4 + MOST_NODES * 16, 2 * MOST_NODES)
    said = plan_machines(Resources(nodes=[{"count": 3, "cpus": 8}]))  # type: ignore[arg-type,list-item]
    assert (said.cpus, said.gpus) == (26, 0)


@pytest.mark.parametrize(
    ("nodes", "workers", "limit", "usual"),
    [
        ([(8, 0)], 1, 8, 4),
        ([(3, 0), (3, 0)], 1, 6, 2),
        ([(1, 0)] * 4, 1, 4, 4),
        ([(2, 4), (8, 0)], 1, 2, 2),
        ([(8, 2), (8, 2)], 2, 2, 2),
    ],
)
def test_runs_at_the_same_time_are_counted_per_node(
    nodes: list[tuple[int, int]], workers: int, limit: int, usual: int
) -> None:
    resources = Resources(train_workers=workers)
    assert fit_runs(nodes, resources, None, 100) == usual
    assert fit_runs(nodes, resources, limit, 100) == limit
    with pytest.raises(UserError, match=f"room for {limit} runs"):
        fit_runs(nodes, resources, limit + 1, 100)


@pytest.mark.parametrize(
    ("nodes", "asked", "networks", "others"),
    [
        ([(16, 2)], None, 2, 16),
        ([(16, 2)], 1, 1, 16),
        ([(16, 4), (32, 0)], None, 4, 48),
        ([(8, 0)], None, 8, 8),
        ([(8, 0)], 3, 3, 3),
    ],
)
def test_steps_without_a_network_use_all_cores(
    nodes: list[tuple[int, int]], asked: int | None, networks: int, others: int
) -> None:
    made = lay_out(nodes, Resources(inference_workers=asked))
    assert (made.inference_workers, made.cpu_workers) == (networks, others)


def test_more_workers_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(UserError, match="resources.train_workers: 3 .* has 2 CPUs"):
        lay_out([(1, 0), (1, 0)], Resources(train_workers=3))
    with pytest.raises(UserError, match="no GPU"):
        lay_out([(4, 0)], Resources(gpus=True))


@ray.remote(num_cpus=0)
class Controller:
    """Holds cores as the controller of a Ray Train run does."""

    def hold(self, cpus: int) -> str:
        group = placement_group([{"CPU": cpus}])
        ray.get(group.ready())
        return str(group.id.hex())


@ray.remote(num_cpus=0)
class Trial:
    """A run's driver, which starts a controller of its own."""

    def train(self) -> str:
        self.controller: Any = Controller.remote()  # type: ignore[attr-defined]
        return str(ray.get(self.controller.hold.remote(1)))


def test_only_what_a_dead_training_holds_is_given_back(two_cores: None) -> None:
    mine = placement_group([{"CPU": 0.5}])
    dead, alive = Trial.remote(), Trial.remote()  # type: ignore[attr-defined]
    orphan = ray.get(dead.train.remote())
    ray.get(mine.ready())
    ray.kill(dead)
    release_orphans()
    deadline = time.monotonic() + 40
    while placement_group_table()[orphan]["state"] != "REMOVED":
        assert time.monotonic() < deadline, "the cores of a dead training are still held"
        time.sleep(0.5)
    assert placement_group_table()[mine.id.hex()]["state"] == "CREATED"
    held = ray.get(alive.train.remote())
    release_orphans()
    time.sleep(6)
    assert placement_group_table()[held]["state"] == "CREATED"


def test_without_ray_there_is_nothing_to_release() -> None:
    assert not ray.is_initialized()
    release_orphans()
    assert not ray.is_initialized()


JOINED = """
import ray
from wsss_ray.cluster.join import join_cluster
with join_cluster():
    print("joined", ray.get_runtime_context().gcs_address)
"""


def test_without_an_address_nobody_elses_cluster_is_joined(two_cores: None) -> None:
    theirs = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        # Where 'ray start' leaves the address that Ray joins by itself.
        left = Path(folder) / "ray" / "ray_current_cluster"
        left.parent.mkdir()
        left.write_text(theirs)
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        told = subprocess.run(
            [sys.executable, "-c", JOINED],
            env={**environment, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            check=True,
        )
    joined = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("joined ")]
    assert len(joined) == 1
    assert joined[0] != theirs
