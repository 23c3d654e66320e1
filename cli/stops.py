# SPDX-License-Identifier: Apache-2.0
"""ctrl-C, SIGTERM and a closed terminal: a command ends in one line, with the usual exit code, and leaves no process.

The signal becomes a ``KeyboardInterrupt``, which runs, sweeps and servers clean up after. What takes longer than
``PATIENCE`` is cut off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 8.0
"""Seconds that a stopped command has to end by itself."""
SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended with its terminal (SIGHUP)",
}
"""What stops a command, and how that is said."""
Child = tuple[int, str]
"""A process and the time it was started at, since numbers are used again."""


class Stop:
    """Which signal has come, if any, and what the command began."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._children: set[Child] = set()
        self._lock = threading.Lock()

    @property
    def code(self) -> int:
        """The exit code of a stopped command, as shells have it: 130, 143 or 129."""
        return 128 + (self.number or signal.SIGINT)

    def hear(self, number: int, frame: Any) -> None:
        """The handler of the signals: the first one interrupts, a second one ends at once."""
        if self.number is not None:
            self.end()
        self.number = signal.Signals(number)
        self._children |= list_descendants()
        threading.Thread(target=self._watch, daemon=True).start()
        raise KeyboardInterrupt

    def _watch(self) -> None:
        time.sleep(PATIENCE)
        self.end()

    def end(self) -> None:
        """Say it in one line, end what is left of the command's processes, and exit."""
        with self._lock:  # whoever comes second waits for the exit
            words = SIGNALS[self.number or signal.SIGINT]
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                print(f"wsss: {words}; run the same command to resume", file=sys.stderr, flush=True)
            for pid, began in self._children | list_descendants():
                if read_start(pid) == began:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            os._exit(self.code)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """The signals that stop a command interrupt what runs inside; those that ``nohup`` or a shell ignores stay so.

    An interrupt that comes in a destructor or a callback of Python is lost, without Python's traceback of it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop.hear)
    show = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if issubclass(lost.exc_type, KeyboardInterrupt) else show(lost)
    try:
        yield stop
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            signal.signal(number, handler)


def list_descendants() -> set[Child]:
    """All processes that this one, or one of them, has started; empty where the system shows none."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(place.name)] = int(_read_stat(int(place.name))[1])
    found, grown = {os.getpid()}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return {(pid, read_start(pid)) for pid in found - {os.getpid()}}


def read_start(pid: int) -> str:
    """When a process was started; empty for one that is gone."""
    with contextlib.suppress(OSError, IndexError):
        return _read_stat(pid)[19]
    return ""


def _read_stat(pid: int) -> list[str]:
    """The fields of a process from its state on: parent 1, start 19."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
