# SPDX-License-Identifier: Apache-2.0
"""The notice board of a training; alone in a file, so that its process does not spend seconds on importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray


@dataclass
class Notices:
    """How far a training is."""

    step: int = 0
    num_steps: int = 0
    loss: float = float("nan")
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Epoch -> its record."""
    error: str = ""
    """A user's error inside a worker, word for word."""


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave word for the driver: how far they are and what each epoch reported."""

    def __init__(self) -> None:
        self.notices = Notices()

    def note_step(self, step: int, num_steps: int, loss: float) -> None:
        """Progress within the run."""
        self.notices.step, self.notices.num_steps, self.notices.loss = step, num_steps, loss

    def note_epoch(self, record: dict[str, Any]) -> None:
        """A finished epoch."""
        self.notices.epochs[record["epoch"]] = record

    def note_error(self, message: str) -> None:
        """A user's error inside a worker."""
        self.notices.error = message

    def read(self) -> Notices:
        """All of it."""
        return self.notices
