# SPDX-License-Identifier: Apache-2.0
"""The Ray of a local run listens on the loopback address alone: the driver, its services and its workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import ray

from benchmarks.machine import list_tree
from wsss_ray.cluster.join import join_cluster

pytestmark = pytest.mark.faults
LISTENS = "0A"
"""The state of a socket in the kernel's tables that waits for callers."""


def list_listening(processes: Iterable[int]) -> dict[str, str]:
    """Socket -> address, in the kernel's hexadecimal, of all sockets of these processes that listen."""
    sockets = set()
    for process in processes:
        try:
            sockets |= {os.readlink(handle) for handle in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:
            continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == LISTENS and f"socket:[{cells[9]}]" in sockets:
                found[cells[9]] = cells[1].split(":")[0]
    return found


def test_all_that_listens_is_on_loopback() -> None:
    """Of this process and all below it: tests beside this one have nodes with other addresses."""
    with join_cluster():

        @ray.remote
        def tell_process() -> int:
            return os.getpid()

        worker = ray.get(tell_process.remote())
        processes = list_tree(os.getpid())
        found = list_listening(processes)
        assert worker in processes
        assert list_listening([worker])
    assert len(found) > 3
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(found.values()) <= loopback, found
