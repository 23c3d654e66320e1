# SPDX-License-Identifier: Apache-2.0
"""An address at which no Ray answers is one line within seconds, whatever listens there."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from wsss_ray.cluster.join import explain_start, join_cluster
from wsss_ray.config import UserError


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes callers and never says a word."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("from_environment", [False, True])
def test_a_dead_address(scheme: str, from_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{scheme}127.0.0.1:9"
    if from_environment:
        monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with (
        pytest.raises(UserError, match=r"nothing answers at 127\.0\.0\.1:9 .*--address local"),
        join_cluster(None if from_environment else address),
    ):
        raise AssertionError("joined nothing")
    assert time.monotonic() - begun < 15
    assert not ray.is_initialized()


def test_a_listener_that_is_no_ray(silent: int) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match="does not answer as Ray does"), join_cluster(f"127.0.0.1:{silent}"):
        raise AssertionError("joined nothing")
    assert time.monotonic() - begun < 15
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["nonsense", ":1", "host:", "host:x", "host:99999"])
def test_no_address(address: str) -> None:
    with pytest.raises(UserError, match="no HOST:PORT"), join_cluster(address):
        raise AssertionError("joined nothing")


def test_a_folder_too_long_for_sockets_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own message, from Ray itself, and what to do."""
    long = tmp_path / ("l" * 90)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="AF_UNIX path length .*; set TMPDIR to a shorter folder"), join_cluster():
        raise AssertionError("started nothing")
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("[Errno 30] Read-only file system: '/home/x/.ray'", "HOME and TMPDIR"),
        ("no room in /dev/shm", "--shm-size"),
        ("anything else", "too busy"),
    ],
)
def test_what_to_do(said: str, fix: str) -> None:
    assert fix in explain_start(RuntimeError(said))
