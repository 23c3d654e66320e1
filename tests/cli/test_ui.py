# SPDX-License-Identifier: Apache-2.0
"""``wsss ui`` ends all that it started, and says in one line that a port cannot be had."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.installed import SCRIPT, make_environment, run_wsss


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def list_group(leader: int) -> list[int]:
    """Processes whose parents lead to ``leader``, itself left out."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {leader}
    for _ in parents:
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {leader})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_nothing_is_left_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    port = find_port()
    server = subprocess.Popen(
        [str(SCRIPT), "ui", "--out", str(tmp_path / "results"), "--port", str(port)],
        cwd=tmp_path,
        env=make_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell that starts the tests in the background has SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 400
        while time.monotonic() < until:
            assert server.poll() is None
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).close()
                break
            time.sleep(0.5)
        started = list_group(server.pid)
        assert started
        server.send_signal(number)
        assert server.wait(timeout=60) == 128 + number
        assert not listens(port)
        assert [pid for pid in started if Path(f"/proc/{pid}/cmdline").exists() and is_alive(pid)] == []
    finally:
        server.kill()


def is_alive(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has collected."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_taken_port_is_one_line(taken: int, tmp_path: Path) -> None:
    told = run_wsss("ui", "--port", str(taken), cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert f"--port {taken}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_bad_port_is_one_line(port: str, tmp_path: Path) -> None:
    told = run_wsss("ui", "--port", port, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert "--port" in line
