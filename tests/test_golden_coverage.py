# SPDX-License-Identifier: Apache-2.0
"""Golden arrays that no test reads fail the run, in one process and in two; some tests alone say nothing of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden_coverage import OTHERWISE

ROOT = Path(__file__).resolve().parent.parent
CONFTEST = """
from pathlib import Path
import pytest
from tests.golden_coverage import GoldenCoverage
from tests.golden_files import GoldenFile

HERE = Path(__file__).parent

def pytest_configure(config):
    config.pluginmanager.register(GoldenCoverage(HERE, HERE / "golden"))

@pytest.fixture
def golden():
    return GoldenFile(HERE / "golden" / "a.npz")
"""
READER = """
import pytest

def test_first(golden):
    assert golden["{}"] == 1

def test_second():
    pass
"""


def run_tests(folder: Path, read: tuple[str, str], *options: str) -> tuple[int, str]:
    """The exit code and the words of a run of two files; each reads one of the arrays x and y of one golden file."""
    (folder / "golden").mkdir()
    np.savez(folder / "golden" / "a.npz", x=1, y=1, meta="by hand")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, array in zip(("test_a.py", "test_b.py"), read, strict=True):
        (folder / name).write_text(READER.format(array))
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "xdist", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return told.returncode, told.stdout + told.stderr


@pytest.mark.parametrize("processes", ["0", "2"])
def test_unread_array_fails_the_run(processes: str, tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, ("x", "x"), "-n", processes, "--dist=loadfile")
    assert code == 1
    assert "no test reads these arrays: {'a.npz': ['y']}" in said
    assert "1 failed, 4 passed" in said


def test_arrays_read_by_different_processes_count(tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, ("x", "y"), "-n2", "--dist=loadfile")
    assert code == 0, said
    assert "5 passed" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["test_a.py"], "1 test files that read golden files are not in this run"),
        (
            ["-n2", "-k", "test_second or test_b"],
            "1 tests that read golden files did not run, such as test_a.py::test_first",
        ),
        (["test_a.py::test_first", "test_b.py"], "some test files that read golden files are not in this run"),
    ],
)
def test_part_of_the_tests_says_nothing_of_arrays(options: list[str], reason: str, tmp_path: Path) -> None:
    code, said = run_tests(tmp_path, ("x", "x"), *options)
    assert code == 0, said
    assert "1 skipped" in said
    assert reason in said


@pytest.mark.parametrize("pattern", OTHERWISE)
def test_files_accounted_for_elsewhere_are_named_there(pattern: str) -> None:
    path = ROOT / "tests" / OTHERWISE[pattern]
    assert path.is_file(), f"{path.name} was renamed: name it here again"
    assert pattern.split("_")[0] in path.read_text()
