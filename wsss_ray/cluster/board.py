# SPDX-License-Identifier: Apache-2.0
"""The notice board of a driver's trainings; alone in a file, so that its process does not spend seconds on importing
torch.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass
class Notices:
    """How far a training is."""

    step: int = 0
    num_steps: int = 0
    loss: float = float("nan")
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Epoch -> its record."""
    num_before: int | None = None
    """Epochs that an earlier run had done; None until it is known."""
    steps_before: int = 0
    """Steps that it had done."""
    error: str = ""
    """A user's error inside a worker, word for word."""
    nodes: dict[int, str] = field(default_factory=dict)
    """Worker -> the node it is on."""
    request: int = 0
    """What the driver asks of the training (``engine.train.Request``)."""
    left: bool = False
    """Whether it ended before its end, as it was asked to."""


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Where workers leave word for the driver: how far they are and what each epoch reported."""

    def __init__(self) -> None:
        self.notices: defaultdict[str, Notices] = defaultdict(Notices)

    def note_step(self, training: str, step: int, num_steps: int, loss: float) -> None:
        """Progress within a training."""
        notices = self.notices[training]
        notices.step, notices.num_steps, notices.loss = step, num_steps, loss

    def note_epoch(self, training: str, record: dict[str, Any]) -> None:
        """A finished epoch."""
        self.notices[training].epochs[record["epoch"]] = record

    def note_history(self, training: str, records: list[dict[str, Any]], steps: int) -> None:
        """The epochs and steps done as workers begin: of those of this run, what a worker that died could not note."""
        notices = self.notices[training]
        if notices.num_before is None:
            notices.num_before, notices.steps_before = len(records), steps
        for record in records[notices.num_before :]:
            notices.epochs.setdefault(record["epoch"], record)

    def note_error(self, training: str, message: str) -> None:
        """A user's error inside a worker."""
        self.notices[training].error = message

    def note_seat(self, training: str, rank: int, size: int, node: str) -> None:
        """Where a worker begins, and how many they are now."""
        notices = self.notices[training]
        notices.nodes = {other: where for other, where in notices.nodes.items() if other < size} | {rank: node}
        notices.left = False

    def note_left(self, training: str) -> None:
        """The workers ended as they were asked to."""
        self.notices[training].left = True

    def ask(self, training: str, request: int) -> None:
        """Ask something of the training; what is asked for stays until it is taken."""
        notices = self.notices[training]
        notices.request = max(notices.request, request)

    def take_request(self, training: str) -> int:
        """What is asked, once."""
        notices = self.notices[training]
        asked, notices.request = notices.request, 0
        return asked

    def read(self, training: str) -> Notices:
        """All of one training."""
        return self.notices[training]

    def close(self, training: str) -> None:
        """A training is over."""
        self.notices.pop(training, None)


@dataclass(frozen=True)
class Notes:
    """One training's part of the board; travels to its workers."""

    board: Any
    training: str

    def note_step(self, step: int, num_steps: int, loss: float) -> None:
        """Progress, without waiting."""
        self.board.note_step.remote(self.training, step, num_steps, loss)

    def note_epoch(self, record: dict[str, Any]) -> None:
        """A finished epoch; it is there when this returns."""
        ray.get(self.board.note_epoch.remote(self.training, record))

    def note_history(self, records: list[dict[str, Any]], steps: int) -> None:
        """The epochs and steps done as workers begin; it is there when this returns."""
        ray.get(self.board.note_history.remote(self.training, records, steps))

    def note_error(self, message: str) -> None:
        """A user's error; it is there when this returns."""
        ray.get(self.board.note_error.remote(self.training, message))

    def note_seat(self, rank: int, size: int, node: str) -> None:
        """Where a worker begins; it is there when this returns."""
        ray.get(self.board.note_seat.remote(self.training, rank, size, node))

    def note_left(self) -> None:
        """The workers ended as they were asked to; it is there when this returns."""
        ray.get(self.board.note_left.remote(self.training))

    def ask(self, request: int) -> None:
        """Ask something of the training, without waiting."""
        self.board.ask.remote(self.training, request)

    def take_request(self) -> int:
        """What the driver asks, once."""
        asked: int = ray.get(self.board.take_request.remote(self.training))
        return asked

    def read(self) -> Notices:
        """All that was noted so far."""
        found: Notices = ray.get(self.board.read.remote(self.training))
        return found

    def close(self) -> None:
        """Let the board forget this training."""
        self.board.close.remote(self.training)


_boards: dict[tuple[str, str], Any] = {}
"""The board of this process in the session of Ray it is in: one process for all its trainings."""


def open_notes() -> Notes:
    """A new training's part of the board."""
    context = ray.get_runtime_context()
    session = context.get_node_id(), context.get_job_id()
    if session not in _boards:
        _boards.clear()
        # Beside the driver, where no other node's end is its own.
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        _boards[session] = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    return Notes(_boards[session], uuid.uuid4().hex)
