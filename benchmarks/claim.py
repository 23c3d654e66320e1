# SPDX-License-Identifier: Apache-2.0
"""What a benchmark declares: a claim, and pairs of sides whose readings are divided by each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Reading = Mapping[str, float]
"""What one call of a side came to, by measure: ``CPU s``, ``wall s``, ``MB``, ``mIoU %``."""
Run = Callable[[], Reading]
CPU, WALL, MEMORY = "CPU s", "wall s", "MB"


@dataclass(frozen=True)
class Goal:
    """The bound a ratio shall keep."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, ratio: float) -> bool:
        """Whether it is kept."""
        return not (self.at_least is not None and ratio < self.at_least) and not (
            self.at_most is not None and ratio > self.at_most
        )

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Pair:
    """Two sides of the same work; the ratio of a round is ``top`` divided by ``bottom``."""

    case: str
    top: Run
    bottom: Run
    goals: Mapping[str, Goal] = field(default_factory=dict)
    """Measure -> the bound of its ratio."""
    rounds: int = 3
    warm: bool = True
    """Whether both sides are called once before they count."""
    describe: Callable[[], str] = lambda: ""
    """A remark for the table, asked after the last round."""


@dataclass(frozen=True)
class Given:
    """What a benchmark is called with."""

    scratch: Path
    """A folder of this call, shared by its benchmarks."""
    quick: bool = False
    data: str | None = None
    """Prepared data, or a folder with photographs (JPEG); None: generated images."""


@dataclass(frozen=True)
class Claim:
    """One module's benchmark."""

    says: str
    """The claim, one sentence."""
    ratio: str
    """What a ratio means: top side / bottom side."""
    measure: Callable[[Given], Iterator[Pair]]
    """Sets up, yields each pair to be measured, and cleans up behind the last one."""
    seconds: float
    """About what it takes with ``--quick`` on two cores: once they are gone, the pairs left have one round each."""
    quick: bool = True
    """Whether ``--quick`` runs it."""


def timed(work: Callable[[], object]) -> Run:
    """A side that is read as the CPU time of this process and the time on the clock."""

    def run() -> Reading:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        return {CPU: time.process_time() - cpu, WALL: time.perf_counter() - wall}

    return run
