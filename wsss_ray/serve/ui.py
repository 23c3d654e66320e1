# SPDX-License-Identifier: Apache-2.0
"""``wsss ui``: the MLflow server over the runs below --out, and the end of all that it starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from wsss_ray.config import UserError
from wsss_ray.tracking import choose_artifact_root, choose_store, close_dead_runs

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 3.0
"""Seconds that processes have to end by themselves."""


def serve_ui(out: str, port: int) -> int:
    """The MLflow UI over the store of ``out`` on the loopback address, until a signal interrupts it; its exit code.

    The server and all it starts are one group of processes, which is gone when this returns. Raises UserError where the
    port is taken.
    """
    refuse_taken(port)
    close_dead_runs(out)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", choose_store(out)]
    root = choose_artifact_root(out)
    if root is not None:
        command += ["--default-artifact-root", root]
    # Its job runner starts processes outside of the group, for evaluations of language models alone.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, start_new_session=True
    )
    try:
        return server.wait()
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
