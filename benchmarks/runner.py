# SPDX-License-Identifier: Apache-2.0
"""Measures the pairs of a claim, both sides in turn; each claim in a process of its own, which may not hang."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim import Claim, Given, Goal, Pair, Reading
from benchmarks.registry import load_claim

QUICK_SECONDS = 560.0
"""After so long ``--quick`` starts nothing more and ends what runs."""
PATIENCE = 2.5
"""A claim that takes so many times its seconds with ``--quick`` is ended, unless it was asked for by name."""
FULL_SECONDS = 3600.0
"""After which any claim is ended."""


def measure_pair(pair: Pair, until: float) -> list[dict[str, Any]]:
    """A row for every measure that both sides gave; one round at least, no new one after ``until`` (monotonic)."""
    if pair.warm:
        pair.top()
        pair.bottom()
    rounds: list[tuple[Reading, Reading]] = []
    while len(rounds) < pair.rounds and (not rounds or time.monotonic() < until):
        if len(rounds) % 2:
            bottom = pair.bottom()
            rounds.append((pair.top(), bottom))
        else:
            rounds.append((pair.top(), pair.bottom()))
    note = pair.describe()
    measures = [name for name in rounds[0][0] if name in rounds[0][1]]
    return [{"case": pair.case, "note": note, **_compare(rounds, name, pair.goals.get(name))} for name in measures]


def _compare(rounds: Sequence[tuple[Reading, Reading]], measure: str, goal: Goal | None) -> dict[str, Any]:
    tops, bottoms = ([one[side][measure] for one in rounds] for side in (0, 1))
    ratios = [top / max(bottom, 1e-9) for top, bottom in zip(tops, bottoms, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "measure": measure,
        "ratio": ratio,
        "low": find_percentile(ratios, 0.1),
        "high": find_percentile(ratios, 0.9),
        "rounds": len(rounds),
        "top": statistics.median(tops),
        "bottom": statistics.median(bottoms),
        "goal": None if goal is None else str(goal),
        "kept": None if goal is None else goal.holds(ratio),
    }


def find_percentile(values: Sequence[float], share: float) -> float:
    """Between the two nearest values, linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def measure_claim(claim: Claim, given: Given) -> Iterator[dict[str, Any]]:
    """The rows of a claim, as they are found."""
    until = time.monotonic() + (claim.seconds if given.quick else FULL_SECONDS)
    pairs = claim.measure(given)
    try:
        for pair in pairs:
            yield from measure_pair(pair, until)
    finally:
        close = getattr(pairs, "close", None)
        if close is not None:
            close()


def run_inside(name: str, given: Given, report: Path) -> int:
    """The process of one claim: writes what it has after every row; 1 where it failed."""
    claim = load_claim(name)
    start, error = time.monotonic(), ""
    rows: list[dict[str, Any]] = []
    told = {"name": name, "says": claim.says, "ratio": claim.ratio}

    def write() -> None:
        seconds = time.monotonic() - start
        text = json.dumps({**told, "rows": rows, "error": error, "seconds": seconds}, indent=1)
        report.with_suffix(".part").write_text(text, encoding="utf-8")
        os.replace(report.with_suffix(".part"), report)

    write()
    try:
        for row in measure_claim(claim, given):
            rows.append(row)
            write()
    except Exception as problem:  # one claim must not take the others with it
        traceback.print_exc()
        error = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    write()
    return 1 if error else 0


def run_outside(name: str, given: Given, until: float | None, patience: float = PATIENCE) -> dict[str, Any]:
    """One claim in a process of its own, ended when it takes too long: its report, ``error`` empty if all is well."""
    claim = load_claim(name)
    limit = FULL_SECONDS if until is None else min(patience * claim.seconds, until - time.monotonic())
    empty = {"name": name, "says": claim.says, "ratio": claim.ratio, "rows": [], "seconds": 0.0}
    if limit < min(10.0, claim.seconds):
        return {**empty, "error": "not run: no time was left"}
    report = given.scratch / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks", "--inside", name, "--scratch", str(given.scratch)]
    command += ["--quick"] * given.quick + (["--data", given.data] if given.data else [])
    log = (given.scratch / f"{name}.log").open("w+", encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONPATH": path}
        )
        ended = _wait(process, limit)
        log.seek(0)
        last = (log.read().strip().splitlines() or [""])[-1]
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.exists() else dict(empty)
    if not ended:
        found["error"] = f"ended after {limit:.0f} s"
    elif process.returncode and not found.get("error"):
        found["error"] = f"exit code {process.returncode}: {last}"
    return {"error": "", **found}


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether it ended by itself; else it is asked to, so that Ray takes its processes along, and then killed."""
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
