# SPDX-License-Identifier: Apache-2.0
"""Nodes that cannot work with the others are named before work begins, in one line."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from tests.faults.clusters import start_cluster, start_odd_node, wait_until
from tests.faults.processes import SETTINGS, Command
from wsss_ray.cluster import probe
from wsss_ray.cluster.probe import SharedPlaces, probe_nodes, watch_nodes
from wsss_ray.config import UserError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]


def test_a_run_names_the_node_that_does_not_share_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    out.mkdir()
    with (
        start_cluster({"num_cpus": 1}, {"num_cpus": 1}) as (cluster, _),
        start_odd_node(cluster, "127.0.0.9", f"mount -t tmpfs none {out}"),
    ):
        command = Command(tmp_path, "run", "cam", *SETTINGS, "--out", str(out), "--address", cluster.address)
        assert command.process.wait(timeout=300) == 2, command.text
        with capsys.disabled():
            print(f"\n{command.text}")
        (line,) = [line for line in command.text.splitlines() if "127.0.0.9" in line]
        assert f"node 127.0.0.9: cannot read --out {out}" in line
        assert "all nodes must share --out" in line
        assert not list(out.glob(".tmp-probe*")), "no mark is left"


def test_nodes_that_reach_everything_are_asked_in_passing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LOOK_SECONDS", 1.0)
    (tmp_path / "data").mkdir()
    places = SharedPlaces(str(tmp_path / "out"), (str(tmp_path / "data"),))
    with start_cluster({"num_cpus": 1}, {"num_cpus": 1}) as (cluster, _):
        start = time.monotonic()
        probe_nodes(places)
        assert time.monotonic() - start < probe.PROBE_SECONDS
        with pytest.raises(UserError, match=r"^node 127\S+|^node \S+: does not see .*/none; all nodes must share"):
            probe_nodes(SharedPlaces(read=(str(tmp_path / "none"),)))
        read_only = f"mount --bind {tmp_path}/out {tmp_path}/out && mount -o remount,ro,bind {tmp_path}/out"
        with caplog.at_level(logging.INFO, "wsss_ray"), watch_nodes(places):
            time.sleep(2)
            with start_odd_node(cluster, "127.0.0.9", read_only):
                wait_until(lambda: "127.0.0.9 joined" in caplog.text)
            wait_until(lambda: "127.0.0.9 left" in caplog.text)
        assert "joined, and what runs there will fail: cannot write --out" in caplog.text
