# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real job server that are stopped or killed, or whose head goes: how their log ends, and how they go on."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("aiohttp_cors")

from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

from tests.cluster.test_submit import find_port
from tests.faults.clusters import start_head, wait_until
from tests.faults.processes import SETTINGS, Command
from wsss_ray.cluster import submit
from wsss_ray.config import UserError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(550)]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, str]]:
    """A cluster of one node that takes jobs, and its address for them."""
    # A job joins the cluster that this folder names: by default the last one that was started on this machine.
    folder = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    port = find_port()
    listens = {"dashboard_host": "127.0.0.1", "dashboard_port": port, "dashboard_agent_listen_port": find_port()}
    cluster = start_head(num_cpus=2, include_dashboard=True, **listens)
    try:
        yield cluster, f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def hand_in(folder: Path, address: str) -> Command:
    arguments = ["run", "cam", *SETTINGS, "--out", str(folder / "out")]
    return Command(folder, "submit", "--address", address, "--folder", "", "--", *arguments)


def find_driver(folder: Path) -> int:
    """The process of the job itself."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "wsss_ray.cli.main" in words and "run" in words and str(folder / "out") in words:
            return int(place.name)
    raise AssertionError("no job is there")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_its_log_ends_with_a_line_and_it_goes_on_when_handed_in_again(
    how: str, head: tuple[Cluster, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, address = head
    first = hand_in(tmp_path, address)
    try:
        first.wait_for("localize: ")
        if how == "stopped":
            client = JobSubmissionClient(address)
            (job,) = [job.submission_id for job in client.list_jobs() if job.submission_id]
            client.stop_job(job)  # what ``ray job stop`` calls
        else:
            os.kill(find_driver(tmp_path), signal.SIGKILL)
        code = first.process.wait(timeout=120)
        last = first.text.strip().splitlines()[-1]
        with capsys.disabled():
            print(f"\n{how}: exit code {code}, its log ends: {last}")
        assert "Traceback" not in first.text
        assert "hand in the same command again" in last
        assert code == {"stopped": 143, "killed": 137}[how]
        # The classifier's; the job may have come as far as the segmenter.
        trained = min((tmp_path / "out" / "train").glob("*/artifact.json"), key=lambda path: path.stat().st_mtime_ns)
        made = trained.stat().st_mtime_ns
        wait_until(lambda: not is_running(tmp_path), 60)
        again = hand_in(tmp_path, address)
        try:
            assert again.process.wait(timeout=400) == 0, again.text
            assert trained.stat().st_mtime_ns == made, "what was finished stays"
            assert list((tmp_path / "out" / "runs").glob("*/run.json"))
        finally:
            again.kill()
    finally:
        first.kill()


def is_running(folder: Path) -> bool:
    try:
        find_driver(folder)
    except AssertionError:
        return False
    return True


def test_a_head_that_is_gone_is_said_at_once_and_given_up(
    head: tuple[Cluster, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, address = head
    monkeypatch.setattr(submit, "PATIENCE", 6.0)
    client = submit.connect(address)
    job = submit.hand_in_job(client, address, entrypoint="echo begun; sleep 600")
    threading.Timer(5, lambda: cluster.remove_node(cluster.head_node, allow_graceful=False)).start()
    with caplog.at_level(logging.INFO, "wsss_ray"), pytest.raises(UserError, match=r"no answer for 6 s .*when it is"):
        submit.follow_job(client, job, address)
    assert "no answer; trying for up to 6 s" in caplog.text
