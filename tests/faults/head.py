# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of one node, started by ``ray start`` on the loopback address, with ports and a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""The environment of all that has to do with it: no token is needed on the loopback address."""


class Head:
    """``ray start --head --block`` and all that it starts, one group of processes."""

    def __init__(self, num_cpus: int = 2, dashboard: bool = False, folder: Path | None = None) -> None:
        # Sockets lie in it, whose names may not be long.
        self.folder = Path(tempfile.mkdtemp(prefix="wr", dir="/tmp"))
        port, client, agent, board = (find_port() for _ in range(4))
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{board}"
        self.log = self.folder / "head.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
                    *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"),
                    *(f"--dashboard-agent-listen-port={agent}", f"--include-dashboard={str(dashboard).lower()}"),
                    *("--dashboard-host=127.0.0.1", f"--dashboard-port={board}"),
                    *(f"--num-cpus={num_cpus}", f"--temp-dir={self.folder}", "--disable-usage-stats"),
                ],
                env={**os.environ, **OPEN},
                stdout=stream,
                stderr=stream,
                cwd=folder,
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while b"--block" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)

    def kill(self, words: str = "") -> None:
        """kill -9 of all its processes, or of those with words in their command lines."""
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (place / "cmdline").read_bytes()
                if str(self.folder).encode() in line and words.encode() in line:
                    os.kill(int(place.name), signal.SIGKILL)

    def end(self) -> None:
        """End all of it."""
        self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def find_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
