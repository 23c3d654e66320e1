# SPDX-License-Identifier: Apache-2.0
"""One bar per stage on a terminal, plain lines elsewhere; the same for every stage.

Lines are messages of ``logging``; results alone go to stdout.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)
"""Set to WARNING or above it shows neither bars nor lines."""
console = Console(stderr=True, highlight=False)
"""Where messages and bars are shown."""
QUIET_SECONDS = 10.0


class Bar:
    """Progress of one stage: ``with Bar("localize", 1132) as bar: bar.advance(32)``."""

    def __init__(self, title: str, total: int, unit: str = "images") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.kept = 0
        self._text = ""
        self._last_line = self._start = time.monotonic()
        self._rich: Progress | None = None

    def __enter__(self) -> Bar:
        if console.is_terminal and log.level <= logging.INFO:
            columns = (
                TextColumn("{task.description:<10}"),
                BarColumn(),
                DownloadColumn() if self.unit == "bytes" else MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._rich = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._task = self._rich.add_task(self.title, total=self.total, note="")
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif kind is None:
            self._line()

    def set_total(self, total: int) -> None:
        """The whole length, once it is known."""
        self.total = total
        if self._rich is not None:
            self._rich.update(self._task, total=total)

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """So many more are done; ``note`` is shown beside the bar."""
        self.at(self.done + amount, note)

    def keep(self, amount: int) -> None:
        """So many more are kept of what was done before: they are shown, and are no part of the speed."""
        if amount:
            self.kept += amount
            self.advance(amount, "resumed")

    def at(self, done: int, note: str | None = None) -> None:
        """So many are done in all."""
        self.done = done
        self._text = self._text if note is None else note
        if self._rich is not None:
            self._rich.update(self._task, completed=done, note=self._text)
        elif time.monotonic() - self._last_line >= QUIET_SECONDS:
            self._line()

    def _line(self) -> None:
        if not self.total:
            return
        self._last_line = time.monotonic()
        seconds = self._last_line - self._start
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1.0, self.unit)
        rate = f"{(self.done - self.kept) / scale / seconds:.1f}/s" if seconds > 0 else ""
        log.info(f"{self.title}: {self.done / scale:.0f}/{self.total / scale:.0f} {unit} {rate} {self._text}".rstrip())
