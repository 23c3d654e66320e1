# SPDX-License-Identifier: Apache-2.0
"""A sweep's folder: held by one process, stamped with data and steps; its table as it is printed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray")

from rich.console import Console
from rich.table import Table

from tests.fake_run import prepare
from wsss_ray.artifacts.store import digest, hold_folder
from wsss_ray.config import UserError
from wsss_ray.experiments.settle import describe_inputs
from wsss_ray.experiments.sweep import plan_sweep
from wsss_ray.experiments.sweep_outcomes import Outcome, group_lines
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.experiments.sweep_table import build_closing_table
from wsss_ray.stages.score import ScoreStep
from wsss_ray.studies import resolve

HOLD = """
import sys
from wsss_ray.artifacts.store import hold_folder
with hold_folder(sys.argv[1], "sweep"):
    print("held", flush=True)
    input()
"""
"""A process that holds the folder it is given until it reads a line."""


def test_second_process_on_a_sweep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wsss_ray.cli.main import main

    made = plan_sweep(resolve("cam"), parse_space(["train.epochs=1,2"]))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "sweeps" / made.name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        command = ["wsss", "sweep", "cam", "--over", "train.epochs=1,2", "--out", str(tmp_path), "-q"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        holder.communicate(b"\n")
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "another process runs this sweep" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "sweeps" / made.name / "sweep.json").exists()


def test_remote_sweeps_are_held_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = "mock://bucket/sweeps/a", "mock://bucket/sweeps/b"
    taken = pytest.raises(UserError, match=f"{first}: another process")
    with hold_folder(first, "sweep"), hold_folder(second, "sweep"), taken, hold_folder(first, "sweep"):
        pass
    with hold_folder(first, "sweep"):
        pass


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "sweeps")
    with pytest.raises(UserError, match="cannot write.*choose another --out"), hold_folder(folder, "sweep"):
        pass


def test_stamp_follows_the_data_and_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "data")
    prepared = str(tmp_path / "data")
    stamps = {digest(describe_inputs(None)), digest(describe_inputs(prepared))}
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    changed = json.dumps(manifest).replace(manifest["classes"][0], "unicorn")
    (tmp_path / "data" / "manifest.json").write_text(changed)
    stamps.add(digest(describe_inputs(prepared)))
    monkeypatch.setattr(ScoreStep, "version", -1)
    stamps |= {digest(describe_inputs(None)), digest(describe_inputs(prepared))}
    assert len(stamps) == 5


def test_brackets_in_values_are_printed() -> None:
    made = plan_sweep(resolve("cam"), parse_space(["localize.scales=[1.0],[0.5,1.0]", "localize.flip=true"]))
    outcomes = [Outcome(point, 0, "failed", reason="no [/there] there") for point in made.list_points()]
    text = printed(build_closing_table(made, group_lines(outcomes)))
    assert "[1.0]" in text
    assert "[0.5, 1.0]" in text
    assert "[/there]" in text


def printed(table: Table) -> str:
    """A table as it stands on a terminal."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]
