# SPDX-License-Identifier: Apache-2.0
"""A copy of the project that a job is sent runs its own code, whatever is installed where it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import wsss_ray.cli.main

PROJECT = Path(wsss_ray.cli.main.__file__).parent.parent
ASKED = (
    "import wsss_ray, wsss_ray.cli.main, wsss_ray.studies.cam as cam; print(cam.__file__, wsss_ray.cli.main.__file__)"
)


def test_a_sent_checkout_runs_its_own_commands_and_studies(tmp_path: Path) -> None:
    for name in ("wsss_ray", "cli", "studies"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == [str(tmp_path / "studies" / "cam.py"), str(tmp_path / "cli" / "main.py")]
