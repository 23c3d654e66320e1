"""Every array of every golden file is read by some test."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from tests.golden_files import NOT_RUN, READ

TESTS = Path(__file__).resolve().parent
NOTES = {"meta"}
"""Where a file came from, in words: nothing to compare with."""
OTHERWISE = {
    "02_mxparams_*.params": "nets/test_weights.py",
    "c01_efficientnet_*.npz": "nets/test_efficientnet.py",
}
"""Files that these tests account for themselves: one reads them as bytes, the other checks that it reads every array,
where its weights are installed."""


def read_golden(path: Path) -> bool:
    """Whether some function of a test file takes the ``golden`` fixture."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return any(argument.arg == "golden" for function in functions for argument in function.args.args)


def list_arrays(path: Path) -> set[str]:
    """The arrays of an npz file; of any other file its name alone."""
    if path.suffix != ".npz":
        return {path.name}
    with np.load(path) as arrays:
        return set(arrays.files)


def test_every_golden_array_is_read(shared: Path, request: pytest.FixtureRequest) -> None:
    """Runs last, and says something only where all tests that read golden files ran before it."""
    collected = {item.path for item in request.session.items}
    readers = {path for path in TESTS.rglob("test_*.py") if read_golden(path)}
    if readers - collected or any("::" in argument for argument in request.config.args):
        pytest.skip(f"{len(readers - collected) or 'some'} test files that read golden files are not in this run")
    left_out = sorted(test for test in NOT_RUN if not any(path in test for path in OTHERWISE.values()))
    if left_out:
        pytest.skip(f"{len(left_out)} tests that read golden files did not run, such as {left_out[0]}")
    unread = {
        path.name: missing
        for path in sorted((shared / "golden").iterdir())
        if path.suffix in (".npz", ".params") and not any(fnmatch(path.name, pattern) for pattern in OTHERWISE)
        if (missing := list_arrays(path) - NOTES - READ.get(path.name, set()))
    }
    assert not unread, f"no test reads these arrays: {unread}"


@pytest.mark.parametrize("pattern", OTHERWISE)
def test_files_accounted_for_elsewhere_are_named_there(pattern: str) -> None:
    path = TESTS / OTHERWISE[pattern]
    assert path.is_file(), f"{path.name} was renamed: name it here again"
    assert pattern.split("_")[0] in path.read_text()
