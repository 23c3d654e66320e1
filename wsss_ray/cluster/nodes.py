# SPDX-License-Identifier: Apache-2.0
"""The nodes of the joined cluster: those that are there, those being drained, and those that may still come."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import ray

from wsss_ray.resources import NodeKind

Node = tuple[int, int]
"""CPUs and GPUs of one node."""
MOST_NODES = 1000
"""Of one kind, where the autoscaler has no limit."""


def list_nodes() -> list[Node]:
    """The nodes that are there and stay."""
    draining = list_draining()
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    return [(int(have.get("CPU", 0)), int(have.get("GPU", 0))) for have in found]


def list_draining() -> set[str]:
    """Ids of the nodes that take no more work and will be gone: preempted ones, and what ``ray drain-node`` names."""
    with contextlib.suppress(Exception):  # Ray's own, as Ray Train uses it; another version may lack it
        from ray._private.state import state

        return set(state.get_draining_nodes())
    return set()


def list_autoscaled() -> list[tuple[str, int, Node]]:
    """(name, largest number, node) of every kind of node that the cluster's autoscaler may start; [] without one.

    From what the autoscaler reports to the head. Ray has no public way to it; Ray Data and Ray Train read the same.
    """
    with contextlib.suppress(Exception):
        from ray._private.state import state

        config = state.get_cluster_config()
        return [
            (
                kind.name,
                MOST_NODES if kind.max_count < 0 else min(kind.max_count, MOST_NODES),
                (int(kind.resources.get("CPU", 0)), int(kind.resources.get("GPU", 0))),
            )
            for kind in (config.node_group_configs if config is not None else ())
        ]
    return []


def list_possible_nodes(expected: Sequence[NodeKind] = ()) -> list[Node]:
    """The nodes that are there, and those that may come: what the autoscaler may start, or what the user expects."""
    there = list_nodes()
    kinds = [(kind.count, (kind.cpus, kind.gpus)) for kind in expected]
    return add_missing(there, kinds or [(most, node) for _, most, node in list_autoscaled()])


def add_missing(there: Sequence[Node], kinds: Sequence[tuple[int, Node]]) -> list[Node]:
    """The nodes that are there, and as many of each kind as are missing in its number."""
    left, found = list(there), list(there)
    for number, node in kinds:
        for _ in range(number):
            if node in left:
                left.remove(node)
            else:
                found.append(node)
    return found


def count_places(nodes: Sequence[Node], threads: int, use_gpu: bool = False) -> int:
    """How many workers of so many CPUs, each with a GPU of its own where asked, the nodes hold at the same time."""
    return sum(min(cpus // threads, gpus) if use_gpu else cpus // threads for cpus, gpus in nodes)


def name_node(node_id: str) -> str:
    """How a node is called in messages: its address."""
    found = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id]
    return str(found[0]) if found else node_id[:12]
