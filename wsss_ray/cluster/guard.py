# SPDX-License-Identifier: Apache-2.0
"""What a command depends on while it runs: this machine's own part of Ray, and the head of the cluster.

Without them Ray waits for a minute or prints its own dumps; here their loss ends the command in one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from wsss_ray.config import UserError

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""Between two looks."""
HEAD_SECONDS = 30.0
"""How long the head of a cluster that was joined may be silent: one that comes back in time is gone on with. Ray itself
ends the process after 60 s."""
SIGNAL = signal.SIGUSR1
"""By which what blocks the main thread is interrupted; nobody else sends it to a command."""
AGAIN_SECONDS = 5.0
"""After which the main thread is interrupted again: an exception that comes in a callback or a destructor is lost."""
END_SECONDS = 20.0
"""After which a main thread that hears nothing is not waited for; with the head's patience it is less than Ray's 60 s.
"""
REFUSED = 2
"""The exit code of a command that cannot do its work."""
AGAIN = "run the same command to resume"
MARK = "WSSS_OWN_RAY"
"""In the environment of all that a command's own Ray starts."""


class ClusterLostError(UserError):
    """Ray is gone under a command."""


@dataclass
class Guard:
    """Where the parts of Ray listen that a command cannot do without, and what was lost."""

    node: str
    """The socket of this machine's raylet."""
    head: str
    """HOST:PORT."""
    address: str | None
    """As it was asked for; None for a Ray of the command's own."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the handler is taken away, which nothing may be sent to afterwards."""
    silent_since: float | None = None

    def find_lost(self, patience: float = HEAD_SECONDS) -> str | None:
        """What is gone, in a line; None where all answers, or where the head may come back within its patience."""
        if not _answers(self.node, socket.AF_UNIX):
            return f"Ray on this machine has ended (it was killed, or memory ran out); {AGAIN}"
        if _answers(self.head, socket.AF_INET):
            self.silent_since = None
            return None
        if self.address in (None, "local"):
            return f"Ray's head on this machine has ended (it was killed, or memory ran out); {AGAIN}"
        if self.silent_since is None:
            self.silent_since = time.monotonic()
            if patience:
                log.warning(f"the head of the Ray cluster at {self.head} does not answer; waiting {patience:.0f} s")
        if time.monotonic() - self.silent_since < patience:
            return None
        return f"the head of the Ray cluster at {self.head} is gone; start it again, then {AGAIN}"

    def watch(self) -> None:
        """Look until the command has ended; interrupt its main thread where something is gone, until it hears."""
        lost = None
        while lost is None:
            if self.ended.wait(LOOK_SECONDS):
                return
            lost = self.find_lost()
        for _ in range(int(END_SECONDS / AGAIN_SECONDS)):
            if not self.interrupt() or self.ended.wait(AGAIN_SECONDS):
                return
        end_process(lost)

    def interrupt(self) -> bool:
        """Send the main thread its signal; whether it still waited for something."""
        main = threading.main_thread().ident
        with self.lock:
            if main is None or self.ended.is_set():
                return False
            signal.pthread_kill(main, SIGNAL)
        return True

    def hear(self, number: int, frame: Any) -> None:
        """The handler of the signal."""
        if not self.ended.is_set():
            raise KeyboardInterrupt


@contextlib.contextmanager
def guard_cluster(address: str | None) -> Iterator[None]:
    """While what runs inside depends on Ray: UserError in its place where Ray is gone, whatever it came to.

    Outside the main thread nothing is interrupted: Ray's own errors come first there.
    """
    guard = _open_guard(address)
    if guard is None:
        yield
        return
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(SIGNAL, guard.hear) if is_main else None
    if is_main:
        threading.Thread(target=guard.watch, daemon=True).start()
    try:
        with _mute_dumps():
            yield
    except BaseException as error:
        guard.ended.set()
        # Errors of the user's own are said; any other one has come of a head that is gone just now.
        lost = guard.find_lost(HEAD_SECONDS if isinstance(error, UserError) else 0.0)
        if lost is None:
            raise
        end_own_ray()
        raise ClusterLostError(lost) from error
    finally:
        guard.ended.set()
        if is_main:
            with guard.lock:
                signal.signal(SIGNAL, before or signal.SIG_DFL)


def mark_own_ray() -> None:
    """Let all processes that are started from now on be known as this command's."""
    os.environ[MARK] = f"{os.getpid()}-{time.monotonic_ns()}"


def end_own_ray() -> None:
    """End what is left of a Ray of the command's own: its agents notice the end of their raylet after many seconds."""
    mark = os.environ.get(MARK)
    for place in Path("/proc").glob("[0-9]*") if mark else ():
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and f"{MARK}={mark}\0".encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)


def end_process(lost: str) -> NoReturn:
    """End a command whose main thread cannot be reached, in its line, as Ray would soon without one.

    What it has finished is on disk, and its run is closed in MLflow by the next command.
    """
    end_own_ray()
    print(f"wsss: {lost}", file=sys.stderr, flush=True)
    os._exit(REFUSED)


def _open_guard(address: str | None) -> Guard | None:
    """The guard of the session that this process is in; None where Ray does not say where its parts listen."""
    with contextlib.suppress(Exception):  # Ray's own, which another version may lack
        from ray._private.worker import _global_node as node

        if node is not None and node.raylet_socket_name and node.gcs_address:
            return Guard(str(node.raylet_socket_name), str(node.gcs_address), address)
    return None


@contextlib.contextmanager
def _mute_dumps() -> Iterator[None]:
    """Without Ray's own messages on what died, which come with tracebacks and ends of its logs: here it is a line."""
    try:
        from ray._private import worker

        before = worker.print_to_stdstream
    except (ImportError, AttributeError):  # Ray's own, which another version may lack
        yield
        return
    data_errors = logging.getLogger("ray.data.exceptions")
    level = data_errors.level
    worker.print_to_stdstream = lambda data, **options: log.debug("%s", data)
    if not log.isEnabledFor(logging.DEBUG):
        data_errors.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        worker.print_to_stdstream = before
        data_errors.setLevel(level)


def _answers(place: str, family: socket.AddressFamily) -> bool:
    """Whether something listens there; one that is merely slow does."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(LOOK_SECONDS)
        host, _, port = place.rpartition(":")
        try:
            probe.connect(place if family == socket.AF_UNIX else (host.strip("[]"), int(port)))
        except (TimeoutError, BlockingIOError):
            return True
        except OSError:
            return False
    return True
