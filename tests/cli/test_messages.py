# SPDX-License-Identifier: Apache-2.0
"""``-v``, ``-q`` and ``--log-file``: messages on stderr and in a file, results alone on stdout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.installed import run_wsss
from tests.conftest import TINY
from tests.fake_run import prepare

SHORT = [*(setting for setting in TINY if not setting.startswith(("segment", "predict"))), "segment=null"]


def test_messages_are_on_stderr_and_in_the_file(tmp_path: Path) -> None:
    data, log = prepare(tmp_path / "data"), tmp_path / "all.log"
    plain = run_wsss("data", "check", data, cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (0, "")
    assert "OK, every file verified" in plain.stderr
    quiet = run_wsss("data", "check", data, "-q", "--log-file", str(log), cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert re.search(r"INFO wsss_ray\.stages\.prepare: .*OK, every file verified", log.read_text())
    next(Path(data).glob("*.parquet")).unlink()
    broken = run_wsss("data", "check", data, "--quiet", "--log-file", str(log), cwd=tmp_path)
    assert broken.returncode == 2
    assert broken.stderr.startswith("wsss: ")
    assert broken.stderr.splitlines()[0] in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_prints_json_alone_and_logs_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    settings = [part for setting in SHORT for part in ("--set", setting)]
    call = ("run", "cam", *settings, "--json", "--out", str(tmp_path / "out"))
    plan = run_wsss(*call, "--plan", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    planned = json.loads(plan.stdout)
    assert [step["title"] for step in planned["steps"]][:3] == ["data", "train", "localize"]
    assert not (tmp_path / "out").exists()
    first = run_wsss(*call, "-q", "--log-file", str(log), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    assert 0 <= made["scores"]["masks"]["mask"]["miou"] <= 1
    assert "scale: toy" not in first.stderr
    assert "scale: toy (synthetic images)" in log.read_text()
    again = run_wsss(*call, "-v", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "train: reused train/" in again.stderr
    assert json.loads(again.stdout)["scores"] == made["scores"]
    table = run_wsss("run", *call[1:-3], "--out", str(tmp_path / "out"), "--plan", cwd=tmp_path)
    assert "nothing to compute" in table.stdout
    assert "scale: toy" in table.stderr
