"""The notice board of a training; alone in a file, so that its process does not spend seconds on importing torch."""

from __future__ import annotations

from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave word for the driver: how far they are and what each epoch reported."""

    def __init__(self) -> None:
        self.step, self.num_steps, self.loss = 0, 0, float("nan")
        self.epochs: dict[int, dict[str, Any]] = {}
        self.error = ""

    def at(self, step: int, num_steps: int, loss: float) -> None:
        """Progress within the run."""
        self.step, self.num_steps, self.loss = step, num_steps, loss

    def epoch(self, report: dict[str, Any]) -> None:
        """A finished epoch."""
        self.epochs[report["epoch"]] = report

    def fail(self, message: str) -> None:
        """A user's error inside a worker, word for word."""
        self.error = message

    def read(self) -> tuple[int, int, float, dict[int, dict[str, Any]], str]:
        """All of it."""
        return self.step, self.num_steps, self.loss, self.epochs, self.error
