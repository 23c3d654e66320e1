# SPDX-License-Identifier: Apache-2.0
"""The ``wsss`` that is installed, run on this tree in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("wsss")
HEAVY = ("torch", "ray", "mlflow", "pandas")
LISTED = f"""
import runpy, sys
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
finally:
    print("loaded:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""
"""Runs the script and says on stderr which heavy packages it imported."""


def make_environment(**extra: str) -> dict[str, str]:
    """This environment with the tree before what is installed, and a terminal that is wide enough for any line."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **extra}


def run_wsss(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    if not SCRIPT.exists():
        pytest.skip(f"no {SCRIPT}: pip install -e .")
    return subprocess.run(
        [str(SCRIPT), *args], cwd=cwd, env=make_environment(**env), capture_output=True, text=True, check=False
    )


def list_heavy(*args: str, cwd: Path, **env: str) -> tuple[str, list[str]]:
    """(stdout of a command, the heavy packages that it imported)."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'wsss'\n{LISTED}", *args],
        cwd=cwd,
        env=make_environment(**env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return told.stdout, told.stderr.splitlines()[-1].split()[1:]
