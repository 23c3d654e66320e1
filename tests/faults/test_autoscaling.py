# SPDX-License-Identifier: Apache-2.0
"""A head without cores and Ray's own autoscaler, with nodes that it starts on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.cluster.test_submit import find_port
from tests.faults.clusters import count_on, wait_until
from tests.faults.processes import ROOT
from tests.faults.test_growth import NUM_SHARDS, SHARDS, Worker, read_rows
from wsss_ray.cluster.join import plan_machines, refuse_silent
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import UserError
from wsss_ray.resources import Resources

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[str]:
    """The address of a head without cores that may start two nodes of one core."""
    address = f"127.0.0.1:{find_port()}"
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "core": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        **{name: {} for name in ("auth", "head_node", "worker_nodes", "file_mounts", "docker")},
        **{name: [] for name in ("cluster_synced_files", "file_mounts_sync_continuously", "rsync_exclude")},
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        "rsync_filter": [],
    }
    (tmp_path / "autoscaler.json").write_text(json.dumps(config))
    port = address.rpartition(":")[2]
    start = ["ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with (tmp_path / "head.txt").open("wb") as log:
        head = subprocess.Popen(
            [*start, "--include-dashboard=false", f"--autoscaling-config={tmp_path}/autoscaler.json"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(address))
        ray.init(address=address, log_to_driver=False)
        yield address
    finally:
        ray.shutdown()
        head.terminate()  # it ends what it started
        head.wait(timeout=60)


def answers(address: str) -> bool:
    try:
        refuse_silent(address)
    except UserError:
        return False
    return True


def test_a_head_without_cores_plans_with_what_it_can_start(
    growing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until(lambda: plan_machines(Resources()).cpus == 2)
    assert ray.cluster_resources().get("CPU", 0) == 0
    out = tmp_path / "out"
    run_shards(ShardJob("localize", Worker, SHARDS, str(out)), plan_machines(Resources()))
    rows = read_rows(out)
    with capsys.disabled():
        print(f"\nstarted by the autoscaler: shards by node {count_on([row['node'] for row in rows])}")
    assert len(rows) == NUM_SHARDS
    assert len({row["node"] for row in rows}) == 2
