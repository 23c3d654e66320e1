# SPDX-License-Identifier: Apache-2.0
"""A real command in a process of its own: waited for by its own messages, stopped, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
MARK = "WSSS_FAULT_MARK"
SETTINGS = [part for setting in TINY for part in ("--set", setting)]


def _hear_signals() -> None:
    """What starts the tests in the background has signals ignored, which is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def read_states(folder: Path) -> list[str]:
    """The states of all MLflow runs of the results in a folder."""
    if not (folder / "out" / "mlflow.db").exists():
        return []
    with contextlib.closing(sqlite3.connect(folder / "out" / "mlflow.db")) as store:
        return [state for (state,) in store.execute("select status from runs")]


class Command:
    """``wsss ARGUMENTS`` in ``folder``, called through ``wrap``; all that it starts inherits a mark, by which it is
    found again.
    """

    def __init__(self, folder: Path, *arguments: str, wrap: tuple[str, ...] = (), **environment: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.log = folder / f"log-{self.mark[:6]}.txt"
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*wrap, sys.executable, "-m", "cli.main", *arguments],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT), MARK: self.mark, "COLUMNS": "200", **environment},
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_hear_signals,
            )

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, seconds: float = 900) -> None:
        """Until it printed ``words``."""
        until = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.05)

    def stop(self, number: signal.Signals) -> float:
        """Send a signal; seconds until it had ended."""
        start = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=120)
        return time.monotonic() - start

    def list_left(self, seconds: float = 3.0) -> list[str]:
        """Command lines of the processes that are left after at most so many seconds."""
        until = time.monotonic() + seconds
        while (left := self.find_processes()) and time.monotonic() < until:
            time.sleep(0.1)
        return list(left.values())

    def find_processes(self) -> dict[int, str]:
        """The command and all that it started: number -> command line."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes():
                    found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
            except OSError:
                continue
        return found

    def kill(self) -> None:
        """End whatever is left of it."""
        for _ in range(20):
            left = self.find_processes()
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
            if not left:
                break
            time.sleep(0.1)
        self.process.wait()
