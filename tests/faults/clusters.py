# SPDX-License-Identifier: Apache-2.0
"""Ray clusters of several nodes on this machine, and what a test needs to drain one of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.faults.processes import ROOT
from wsss_ray.cluster.join import START_ATTEMPTS


def start_head(**options: Any) -> Cluster:
    """A head; tried again where Ray's agents are late, as they are on a busy machine."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            return Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **options})
        except Exception as error:  # Ray raises plain exceptions
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("no attempt was made")


@contextlib.contextmanager
def start_cluster(*nodes: dict[str, Any]) -> Iterator[tuple[Cluster, list[Any]]]:
    """A cluster with these nodes, the first of them its head, which this process has joined: it is on the head, since
    each of the others has an address of its own, 127.0.0.2 and so on.
    """
    cluster = start_head(**nodes[0])
    try:
        handles = [cluster.head_node, *(add_node(cluster, place + 2, **node) for place, node in enumerate(nodes[1:]))]
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, handles
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Cluster, place: int, **options: Any) -> Any:
    """One more node, at the loopback address of this number."""
    return cluster.add_node(node_ip_address=f"127.0.0.{place}", **options)


def drain(cluster: Cluster, node_id: str, seconds: float = 0.0) -> None:
    """As a cloud does that takes a node back: by ``ray drain-node``; no deadline where none is given."""
    deadline = int((time.time() + seconds) * 1000) if seconds else 0
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(node_id, reason, "taken back", deadline)
    assert accepted, why


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """AssertionError where it does not come true."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.2)


def count_on(nodes: Sequence[str]) -> dict[str, int]:
    """How often each node is in it."""
    return {node[:6]: list(nodes).count(node) for node in dict.fromkeys(nodes)}


@contextlib.contextmanager
def start_odd_node(cluster: Cluster, address: str, mounts: str) -> Iterator[None]:
    """A node of one core at another loopback address that sees the file system as ``mounts`` (shell) makes it there."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    start = f"ray start --address={cluster.address} --node-ip-address={address} --num-cpus=1 --block"
    known = len(ray.nodes())
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mounts} && exec {start}"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: len(ray.nodes()) > known)
        yield
    finally:
        node.terminate()  # it ends what it started
        node.wait(timeout=60)
