# SPDX-License-Identifier: Apache-2.0
"""A real MLflow server that is killed under a run: the run goes on, what it logs waits, and all of it is sent when the
server is back, by the run itself or by ``wsss track sync``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.processes import SETTINGS, Command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
RUN = ("run", "cam", *SETTINGS, "--out", "out")


class Server:
    """``mlflow server`` over SQLite, on the loopback address, with all that it starts in one group of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        store = f"sqlite:///{self.folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "files"), "--host", "127.0.0.1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            assert time.monotonic() < until, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9 of all of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def read_runs(self) -> list[tuple[str, str]]:
        """(id, state) of all runs in the order of their start, as they lie in the database."""
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as store:
            return list(store.execute("select run_uuid, status from runs order by start_time"))

    def read_names(self, run: str, table: str) -> set[str]:
        """The names of the metrics or params of a run."""
        with contextlib.closing(sqlite3.connect(self.folder / "server.db")) as store:
            return {name for (name,) in store.execute(f"select key from {table} where run_uuid = ?", (run,))}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """Commands that are ended whatever happens."""
    begun: list[Command] = []
    yield begun
    for command in begun:
        command.kill()


def finish(command: Command, code: int = 0) -> str:
    """What a command printed, to its end."""
    command.process.wait(timeout=300)
    assert command.process.returncode == code, command.text
    assert "Traceback" not in command.text
    return command.text


def test_a_server_that_dies_costs_nothing(server: Server, tmp_path: Path, commands: list[Command]) -> None:
    def begin(*arguments: str) -> Command:
        commands.append(Command(tmp_path, *arguments, MLFLOW_TRACKING_URI=server.uri))
        return commands[-1]

    # Killed in mid-run, back before its end.
    first = begin(*RUN)
    first.wait_for("train: 6/6 steps")
    server.kill()
    first.wait_for("the run goes on, what it logs waits in")
    assert list((tmp_path / "out" / ".mlflow-waiting").glob("*/entries.jsonl"))
    first.process.send_signal(signal.SIGSTOP)  # so that it does not end before the server is back
    server.start()
    first.process.send_signal(signal.SIGCONT)
    text = finish(first)
    assert text.count("does not answer") == 1
    assert "MLflow is back: what waited has been sent" in text
    assert not (tmp_path / "out" / ".mlflow-waiting").exists()

    # Killed in mid-run, dead at its end.
    second = begin(*RUN)
    second.wait_for("data: reused")
    server.kill()
    text = finish(second)
    assert text.count("does not answer") == 1
    assert "wsss track sync" in text
    waiting = list((tmp_path / "out" / ".mlflow-waiting").iterdir())
    assert len(waiting) == 1
    told = finish(begin("track", "sync", "--out", "out"), 1)
    assert "0 runs sent to MLflow, 1 still wait" in told
    assert len([line for line in told.splitlines() if "does not answer" in line]) == 1

    # A run that begins while it is dead says so in one line.
    refused = finish(begin(*RUN), 2)
    assert len(refused.strip().splitlines()) <= 2
    assert "does not answer" in refused.splitlines()[-1]

    server.start()
    assert "1 runs sent to MLflow, 0 still wait" in finish(begin("track", "sync", "--out", "out"))
    assert not (tmp_path / "out" / ".mlflow-waiting").exists()
    (one, state), (other, again) = server.read_runs()
    assert (state, again) == ("FINISHED", "FINISHED")
    metrics = server.read_names(one, "metrics")
    assert {"miou/segmentation", "seeds/best/miou", "predict/seconds", "train/mean_ap"} <= metrics
    assert server.read_names(other, "metrics") == metrics
    assert server.read_names(other, "params") == server.read_names(one, "params")
    for run in (one, other):
        files = {path.name for path in (tmp_path / "files").rglob(f"{run}/artifacts/**/*") if path.is_file()}
        assert {"recipe.yaml", "train.png", "val.png"} <= files
