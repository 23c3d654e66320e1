# SPDX-License-Identifier: Apache-2.0
"""Hundreds of bad inputs, the same for a seed: each command ends well or in one line, never in a traceback or late."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.command import Told, call
from tests.faults.fuzz import Case, Fuzzer

SECONDS = 20


class TookTooLong(BaseException):
    """A command did not end."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_case(case: Case, cwd: Path) -> Told:
    """What a case ends with; a folder is opened as ``wsss data prepare`` does before it starts its workers."""
    if case.call[0] != "fuzz-open":
        return call(*case.call, cwd=cwd)
    return call("data", "prepare", *case.call[1:], "--out", str(cwd / "prepared"), cwd=cwd)


class NoWorkersError(Exception):
    """In place of a cluster: what comes after it is another test's."""


def judge(told: Told) -> str:
    if "NoWorkersError" in told.err:
        return "good"
    if told.code == -1 or "Traceback" in told.err:
        return "traceback"
    if told.code in (0, 1):
        return "good" if told.code == 0 else "bad, said"
    if told.code == 2 and told.err.strip():
        return "refused" if len(told.err.strip().splitlines()) <= 30 else "long"
    return f"code {told.code}"


def fuzz(root: Path, seed: int, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Outcomes and their numbers; a traceback or a command that does not end fails with its case."""

    def join_cluster(*args: Any) -> Any:
        raise NoWorkersError

    for module in ("stages.prepare", "stages.saliency", "serve.predict", "experiments.run", "experiments.sweep_run"):
        monkeypatch.setattr(f"wsss_ray.{module}.join_cluster", join_cluster)
    fuzzer = Fuzzer(root, seed)
    outcomes: Counter[str] = Counter()
    failed = []
    for number in range(count):
        case = fuzzer.make(number)
        begun = time.monotonic()
        try:
            with at_most(3 * SECONDS):  # a machine may be three times as slow as it should be
                told = run_case(case, root / f"case-{number}")
            outcome = judge(told)
        except TookTooLong:
            told, outcome = Told(-1, "", "did not end"), "too long"
        outcomes[outcome] += 1
        if outcome not in ("good", "refused", "bad, said"):
            took = time.monotonic() - begun
            failed.append(f"{number} {case.kind} {case.what} {case.call} {took:.0f} s: {outcome}\n{told.err[-1500:]}")
    print(f"seed {seed}, {count} inputs: {dict(outcomes)}")
    assert not failed, f"{len(failed)} of {count}\n" + "\n".join(failed)
    return outcomes


def test_sixty_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = fuzz(tmp_path, 1, 60, monkeypatch)
    assert outcomes["refused"] > 15
    assert outcomes["good"] > 5


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_five_hundred_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(tmp_path, 2, 500, monkeypatch)
