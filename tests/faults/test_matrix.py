# SPDX-License-Identifier: Apache-2.0
"""Faults that come to every step of a run: each ends the command in one line or heals, nothing is left behind, and the
same command goes on to artifacts that are equal bit for bit to those of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.chain import ATTEMPTS, RUN, TITLES, Chain, Whole, list_told, run_beside
from tests.faults.disk import SmallDisk
from tests.faults.head import OPEN, Head
from tests.faults.processes import Command, read_states

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
STOP_SECONDS = 10
"""From a signal to the end of the command."""
WORKING = ("ray::_work", "ray::Map", "ray::_run", "ray::_write")
"""How processes are called that work on a step."""


def send(number: signal.Signals) -> Callable[[Command], None]:
    """A signal to the driver, which it ends by in time, its run closed."""

    def stop(command: Command) -> None:
        command.process.send_signal(number)
        command.process.wait(timeout=STOP_SECONDS)
        if number != signal.SIGKILL:
            assert set(read_states(command.folder)) <= {"KILLED"}

    return stop


def kill_named(*words: str) -> Callable[[Command], None]:
    """kill -9 of the command's processes that are called like that, as soon as there is one."""

    def kill(command: Command) -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            found = [pid for pid, line in command.find_processes().items() if any(word in line for word in words)]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if found:
                return
        raise LookupError(command.find_processes())

    return kill


def expect_line(code: int, words: str) -> Callable[[Command, str], None]:
    """The exit code, and one line that holds these words and says how to go on."""

    def check(command: Command, new: str) -> None:
        told = list_told(new)
        assert command.process.returncode == code, command.text
        assert len(told) == 1, new
        assert told[0].startswith("wsss: ")
        assert words in told[0]
        assert "run the same command to resume" in told[0]

    return check


def expect_nothing(command: Command, new: str) -> None:
    """A killed driver says nothing more."""
    assert command.process.returncode == -signal.SIGKILL
    assert list_told(new) == []


STOPS = {
    "driver": (send(signal.SIGKILL), expect_nothing),
    "sigterm": (send(signal.SIGTERM), expect_line(143, "ended by SIGTERM")),
    "ctrl-c": (send(signal.SIGINT), expect_line(130, "interrupted")),
    "terminal": (send(signal.SIGHUP), expect_line(129, "ended with its terminal")),
    "raylet": (kill_named("raylet/raylet"), expect_line(2, "Ray on this machine has ended")),
    "gcs": (kill_named("gcs_server"), expect_line(2, "head on this machine has ended")),
}
"""What ends a command: the fault, and how it ends."""


@pytest.mark.parametrize("names", [("driver", "raylet"), ("sigterm", "gcs"), ("ctrl-c", "terminal")])
def test_what_ends_a_command(names: tuple[str, ...], whole: Whole, tmp_path: Path) -> None:
    def disturb_all(name: str) -> None:
        fault, check = STOPS[name]
        chain = Chain(whole, tmp_path / name)
        for step in TITLES:
            chain.disturb(step, fault, check)
        chain.finish()

    run_beside(disturb_all, names)


def test_a_full_disk(whole: Whole, tmp_path: Path) -> None:
    """All results lie on a small disk, full in the middle of every step, and free again for the next command."""
    disk = SmallDisk(tmp_path / "disk", 64)
    try:
        place = RUN.index("--out") + 1
        arguments = (*RUN[:place], str(disk.folder / "out"), *RUN[place + 1 :])
        chain = Chain(whole, tmp_path, arguments, disk.wrap, disk.seen)
        for step in TITLES:
            chain.disturb(step, lambda _: disk.fill(), expect_full)
            disk.free()
        chain.finish()
    finally:
        disk.close()


def expect_full(command: Command, new: str) -> None:
    """One line for the disk; MLflow's store, which is on it, may have one of its own."""
    told = [line for line in list_told(new) if not line.startswith("MLflow") and "MLflow's database" not in line]
    assert command.process.returncode == 2, command.text
    assert len(told) == 1, new
    assert told[0].startswith("wsss: ")
    assert "free some space" in told[0] or "no space left on the disk" in told[0]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[[], Head]]:
    """Heads of clusters of this test's own, one after another."""
    begun: list[Head] = []

    def begin() -> Head:
        for one in begun:
            one.end()
        begun.append(Head())
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def test_the_head_of_a_cluster_that_was_joined(head: Callable[[], Head], whole: Whole, tmp_path: Path) -> None:
    """kill -9 of all there is of the head's machine; in localize of its own process alone, which is waited for then."""
    chain = Chain(whole, tmp_path, environment=OPEN)
    for step in TITLES:
        cluster = head()
        chain.arguments = (*RUN, "--address", cluster.address)
        words = "gcs_server" if step == "localize" else ""
        chain.disturb(step, lambda _, cluster=cluster, words=words: cluster.kill(words), expect_lost)
    chain.arguments = (*RUN, "--address", head().address)
    chain.finish()


def expect_lost(command: Command, new: str) -> None:
    """A line at once that it is waited for, or the end of this machine's own part; then the end."""
    told = [line for line in list_told(new) if "does not answer; waiting" not in line]
    assert command.process.returncode == 2, command.text
    assert len(told) == 1, new
    assert told[0].startswith("wsss: ")
    assert "run the same command to resume" in told[0]


def test_a_worker_that_is_killed(whole: Whole, tmp_path: Path) -> None:
    """One command, whose workers are killed in every step: it heals each time. Steps that were over are met again."""
    chain = Chain(whole, tmp_path)
    missed = list(TITLES)
    for _ in range(ATTEMPTS):
        chain.forget(missed[0])
        command = chain.start()
        try:
            for step in list(missed):
                if chain.meet(command, step):
                    with contextlib.suppress(LookupError):
                        kill_named(*WORKING)(command)
                        missed.remove(step)
            command.process.wait(timeout=900)
            assert command.process.returncode == 0, command.text
            assert "Traceback" not in command.text
            assert command.list_left() == []
        finally:
            command.kill()
        whole.check_equal(chain.out)
        if not missed:
            return
    raise AssertionError(f"no worker was met in {missed}")
