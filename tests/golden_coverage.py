# SPDX-License-Identifier: Apache-2.0
"""A part of pytest: after all tests, in however many processes they ran, every golden array was read by one."""

from __future__ import annotations

import ast
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden_files import READ

NOTES = {"meta"}
"""Where a file came from, in words: nothing to compare with."""
OTHERWISE = {
    "02_mxparams_*.params": "nets/test_weights.py",
    "c01_efficientnet_*.npz": "nets/test_efficientnet.py",
}
"""Files that these tests account for themselves: one reads them as bytes, the other checks that it reads every array,
where its weights are installed."""
CHECK = "every_golden_array_is_read"
OUTPUT = "golden"
"""The key under which a process of pytest-xdist sends what it saw."""


@dataclass
class Seen:
    """What the tests of one session did with golden files; sets, so that those of several processes can be joined."""

    files: set[str] = field(default_factory=set)
    """Test files that were collected."""
    left_out: set[str] = field(default_factory=set)
    """Tests that take the ``golden`` fixture and were deselected or skipped."""
    arrays: set[tuple[str, str]] = field(default_factory=set)
    """(golden file, array) that some test has read."""


class GoldenCoverage:
    """Gathers what every process saw, and reports on it as one more test.

    It says something only where all tests that read golden files ran, and is skipped with a reason elsewhere.
    """

    def __init__(self, tests: Path, golden: Path) -> None:
        self.tests, self.golden, self.seen = tests, golden, Seen()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Remember the tests of golden files that this session leaves out."""
        self.seen.left_out.update(item.nodeid for item in items if takes_golden(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember the tests of golden files that were skipped."""
        report = yield
        if report.skipped and takes_golden(item):
            self.seen.left_out.add(item.nodeid)
        return report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which files are tested."""
        self.seen.files.update(str(item.path) for item in session.items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """In a process of pytest-xdist: send what was seen to the one that started it."""
        self._count_arrays()
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[OUTPUT] = {name: sorted(kept) for name, kept in vars(self.seen).items()}

    def _count_arrays(self) -> None:
        self.seen.arrays.update((name, array) for name, arrays in READ.items() for array in arrays)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Join what a process of pytest-xdist saw; one that crashed sent nothing."""
        sent = getattr(node, "workeroutput", {}).get(OUTPUT, {})
        self.seen.files.update(sent.get("files", ()))
        self.seen.left_out.update(sent.get("left_out", ()))
        self.seen.arrays.update(tuple(one) for one in sent.get("arrays", ()))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """After the last test, in the process that started the others: report."""
        done = yield
        if (
            session.testscollected
            and not hasattr(session.config, "workeroutput")
            and not session.config.option.collectonly
        ):
            self._count_arrays()
            session.testscollected += 1
            session.config.hook.pytest_runtest_logreport(report=self._report(session.config))
        return done

    def _report(self, config: pytest.Config) -> pytest.TestReport:
        place = Path(__file__).resolve()
        name = str(place.relative_to(config.rootpath)) if place.is_relative_to(config.rootpath) else place.name
        outcome, said = "passed", ""
        if reason := self.explain_gap(config):
            outcome, said = "skipped", reason
        elif unread := find_unread(self.golden, self.seen.arrays):
            outcome, said = "failed", f"no test reads these arrays: {unread}"
        return pytest.TestReport(
            nodeid=f"{name}::{CHECK}",
            location=(name, 0, CHECK),
            keywords={},
            outcome=outcome,  # type: ignore[arg-type]
            longrepr=(name, 1, f"Skipped: {said}") if outcome == "skipped" else said or None,
            when="call",
        )

    def explain_gap(self, config: pytest.Config) -> str | None:
        """Why these tests cannot say which arrays are never read; None where they can."""
        if not self.golden.is_dir():
            return f"no golden files at {self.golden}"
        readers = {str(path) for path in self.tests.rglob("test_*.py") if reads_golden(path)}
        if readers - self.seen.files or any("::" in argument for argument in config.args):
            return f"{len(readers - self.seen.files) or 'some'} test files that read golden files are not in this run"
        left_out = sorted(test for test in self.seen.left_out if not any(path in test for path in OTHERWISE.values()))
        if left_out:
            return f"{len(left_out)} tests that read golden files did not run, such as {left_out[0]}"
        return None


def takes_golden(item: pytest.Item) -> bool:
    """Whether a test takes the ``golden`` fixture, by itself or through another fixture."""
    return "golden" in getattr(item, "fixturenames", ())


def reads_golden(path: Path) -> bool:
    """Whether some function of a test file takes the ``golden`` fixture."""
    text = path.read_text()
    if "golden" not in text:
        return False
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return any(argument.arg == "golden" for function in functions for argument in function.args.args)


def list_arrays(path: Path) -> set[str]:
    """The arrays of an npz file; of any other file its name alone."""
    if path.suffix != ".npz":
        return {path.name}
    with np.load(path) as arrays:
        return set(arrays.files)


def find_unread(folder: Path, read: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Name of a golden file -> its arrays that are not among those read."""
    found: dict[str, list[str]] = {}
    known = set(read)
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".npz", ".params") or any(fnmatch(path.name, pattern) for pattern in OTHERWISE):
            continue
        if missing := {name for name in list_arrays(path) - NOTES if (path.name, name) not in known}:
            found[path.name] = sorted(missing)
    return found
