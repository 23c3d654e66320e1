# SPDX-License-Identifier: Apache-2.0
"""``wsss ui``: the MLflow server over the runs below --out, and the end of all that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.tracking import choose_artifact_root, choose_store

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 5.0
"""Seconds that processes have to end by themselves."""


def serve_ui(out: str, port: int) -> int:
    """The MLflow UI over the store of ``out`` on the loopback address, until ctrl-C, SIGTERM or SIGHUP; its exit code.

    The server and all it starts are one group of processes, which is gone when this returns. Raises UserError where the
    port is taken.
    """
    refuse_taken(port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", choose_store(out)]
    root = choose_artifact_root(out)
    if root is not None:
        command += ["--default-artifact-root", root]
    # Its job runner starts processes outside of the group, for evaluations of language models alone.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    with end_on_signals():
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, start_new_session=True
        )
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            for number in ENDING:  # a second one must not leave half of them running
                signal.signal(number, signal.SIG_IGN)
            end_group(server)


def refuse_taken(port: int) -> None:
    """UserError where something listens at a port of the loopback address, or nobody may."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror} (127.0.0.1); choose another port") from None


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end what runs inside as ctrl-C does, by KeyboardInterrupt; what ``nohup`` ignores stays so."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and its whole group, gently first; returns when none of them is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                os.killpg(leader.pid, number)
            except ProcessLookupError:
                return
            leader.poll()
            time.sleep(0.1)
