# SPDX-License-Identifier: Apache-2.0
"""A chain of faults: the same command again and again into one folder, each time stopped in its next step.

A step is under way when its first part, or the checkpoint of its first epoch, is in its folder and its record is not.
So a chain of seven faults costs seven starts and about one run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from tests.faults.processes import SETTINGS, Command

SIZES = (
    *("--set", "data.toy.num_train=80", "--set", "data.toy.num_val=64"),
    *("--set", "train.epochs=3", "--set", "segment.train.epochs=3"),
)
"""Enough images, shards and epochs for every step to be met in its middle."""
RUN = ("run", "cam", *SETTINGS, *SIZES, "--out", "out")
TITLES = {
    "prepare": "data",
    "train": "train",
    "localize": "localize",
    "score": "score seeds",
    "refine": "refine",
    "segment": "segment",
    "predict": "predict",
}
"""Steps in the order of a run, and how its record calls them."""
LAST = "last"
"""The step after those, which reads the last one's artifact."""
PROGRESS = re.compile(r"^(prepare|train|localize|score \w+|refine|segment|predict|data|check|saliency): ")
CORE = re.compile(r"^\[[-0-9 :,]+ E \d+ \d+\] \w+\.(cc|h):\d+: ")
"""As ``[2026-01-01 12:00:00,000 E 12 34] task_manager.cc:1545: ...``."""
SECONDS = 900
DEATH_SECONDS = 180
"""Within which all notices that driver or raylet were killed: agents of Ray look every other second, five times, once
they have started, which takes a busy machine a minute.
"""
ATTEMPTS = 4
"""How often a step may be over before its fault came: some last a fifth of a second."""


@dataclass(frozen=True)
class Whole:
    """An undisturbed run."""

    out: Path
    places: dict[str, str]
    """Step -> stage/digest of its artifact."""

    def read_contents(self, out: Path) -> dict[str, bytes]:
        """All data files of all artifacts below another folder, by their paths."""
        return {
            str(path.relative_to(out)): path.read_bytes()
            for stage in {place.split("/")[0] for place in self.places.values()}
            for path in sorted((out / stage).rglob("*"))
            if path.suffix in (".parquet", ".safetensors")
        }

    def check_equal(self, out: Path) -> None:
        """Every artifact is there, and its data, scores and protocols are the same, bit for bit."""
        mine, other = self.read_contents(self.out), self.read_contents(out)
        assert mine.keys() == other.keys()
        assert [name for name in mine if mine[name] != other[name]] == []
        (first,), (second,) = ((folder / "runs").glob("*/run.json") for folder in (self.out, out))
        assert json.loads(first.read_text())["scores"] == json.loads(second.read_text())["scores"]


def make_whole(folder: Path) -> Whole:
    """Run to the end, once, whatever the number of test processes."""
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not list(folder.glob("out/runs/*/run.json")):
            command = Command(folder, *RUN)
            try:
                command.process.wait(timeout=SECONDS)
                assert command.process.returncode == 0, command.text
            finally:
                command.kill()
    (record,) = (folder / "out" / "runs").glob("*/run.json")
    steps = {step["title"]: f"{step['stage']}/{step['digest']}" for step in json.loads(record.read_text())["steps"]}
    titles = {**TITLES, LAST: "score segmentation"}
    return Whole(folder / "out", {name: steps[title] for name, title in titles.items()})


@dataclass
class Chain:
    """One folder, the faults that came to it, and what was finished before each."""

    whole: Whole
    folder: Path
    arguments: tuple[str, ...] = RUN
    wrap: tuple[str, ...] = ()
    """What the command is called through."""
    seen: Path | None = None
    """Where its folder is seen from here, where that is another place."""
    environment: dict[str, str] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    """Artifact -> when its record was written."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        """The results."""
        return (self.seen or self.folder) / "out"

    def find_place(self, step: str) -> Path:
        """The folder of a step."""
        return self.out / self.whole.places[step]

    def is_in_the_middle(self, step: str) -> bool:
        """Something of the step is done, not all."""
        place = self.find_place(step)
        with contextlib.suppress(OSError):
            names = os.listdir(place)
            if "checkpoints" in names:
                return (place / "checkpoints" / "checkpoint.json").exists()
            return "artifact.json" not in names and any(
                name.startswith("shard-") and name.endswith(".parquet") for name in names
            )
        return False

    def start(self) -> Command:
        """The command."""
        return Command(self.folder, *self.arguments, wrap=self.wrap, **self.environment)

    def meet(self, command: Command, step: str) -> bool:
        """Wait until the command is in the middle of a step; False where it is over already."""
        until = time.monotonic() + SECONDS
        record = self.find_place(step) / "artifact.json"
        while not self.is_in_the_middle(step):
            if record.exists():
                return False
            assert command.process.poll() is None, command.text
            assert time.monotonic() < until, command.text
            time.sleep(0.002)
        return True

    def disturb(self, step: str, fault: Callable[[Command], None], check: Callable[[Command, str], None]) -> None:
        """Let a fault come to a step, and check how the command ends; again where the step was over before it."""
        for _ in range(ATTEMPTS):
            command = self.start()
            try:
                if self.meet(command, step):
                    before = command.text
                    fault(command)
                    command.process.wait(timeout=SECONDS)
                    check(command, command.text.removeprefix(before))
                    left = command.list_left(DEATH_SECONDS)
                    assert left == [], left
                    self.check_reused()
                    return
                command.kill()
                self.forget(step)
            finally:
                command.kill()
        raise AssertionError(f"{step} was over before the fault came, {ATTEMPTS} times")

    def forget(self, step: str) -> None:
        """Make a step unfinished, and what comes after it."""
        order = [*TITLES, LAST]
        for name in order[order.index(step) :]:
            (self.find_place(name) / "artifact.json").unlink(missing_ok=True)
            for path in self.find_place(name).glob("*.parquet"):
                path.unlink()
            self.finished.pop(self.whole.places[name], None)

    def check_reused(self) -> None:
        """What was finished before is what is finished now; remember what has come."""
        now = {
            place: path.stat().st_mtime_ns
            for place in self.whole.places.values()
            if (path := self.out / place / "artifact.json").exists()
        }
        assert {place: now.get(place) for place in self.finished} == self.finished
        self.finished = now

    def finish(self) -> Command:
        """The command to its end: equal to the undisturbed run, and nothing that was finished made again."""
        command = self.start()
        try:
            command.process.wait(timeout=SECONDS)
            assert command.process.returncode == 0, command.text
            assert "Traceback" not in command.text
            assert command.list_left() == []
        finally:
            command.kill()
        self.check_reused()
        self.whole.check_equal(self.out)
        return command


def run_beside(chain: Callable[[str], None], names: Iterable[str]) -> None:
    """Chains at the same time, each by its name: a start of a command waits more than it works."""
    names = list(names)
    with ThreadPoolExecutor(len(names)) as pool:
        for running in [pool.submit(chain, name) for name in names]:
            running.result()


def list_told(text: str) -> list[str]:
    """What a command said, without its progress, and without a line that Ray's core prints by itself."""
    return [line for line in text.splitlines() if line.strip() and not PROGRESS.match(line) and not CORE.match(line)]
