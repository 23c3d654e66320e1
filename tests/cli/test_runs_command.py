# SPDX-License-Identifier: Apache-2.0
"""``wsss runs``, ``clean``, ``doctor``, ``--version``, ``--json`` and completion, through the installed command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.installed import run_wsss
from tests.fake_run import fake_run, prepare
from wsss_ray import __version__


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two finished runs, one with every third mask wrong, and an artifact of neither."""
    data = prepare(tmp_path / "prepared")
    fake_run(tmp_path, "fake-aaaa", data, seed=1)
    fake_run(tmp_path, "fake-bbbb", data, wrong={"000", "003", "006"}, seed=2)
    left = tmp_path / "train" / "0123456789abcdee"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"x" * 2**20)
    return tmp_path


def test_runs_are_listed_filtered_and_sorted(out: Path) -> None:
    told = run_wsss("runs", "--out", str(out), cwd=out)
    assert told.returncode == 0, told.stderr
    assert "fake-aaaa" in told.stdout
    assert "100.0" in told.stdout
    listed = json.loads(run_wsss("runs", "--out", str(out), "--sort", "masks", "--json", cwd=out).stdout)
    assert [run["name"] for run in listed] == ["fake-aaaa", "fake-bbbb"]
    assert listed[0]["scores"]["masks"] == 1.0 > listed[1]["scores"]["masks"]
    assert [run["seed"] for run in listed] == [1, 2]
    for recipe, number in (("fake", 2), ("cam", 0)):
        found = json.loads(run_wsss("runs", "--out", str(out), "--recipe", recipe, "--json", cwd=out).stdout)
        assert len(found) == number
    wrong = run_wsss("runs", "--sort", "mask", cwd=out)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "masks" in wrong.stderr


def test_clean_lists_first_and_removes_with_yes(out: Path) -> None:
    left = out / "train" / "0123456789abcdee"
    told = run_wsss("clean", "--unused", "--out", str(out), cwd=out)
    assert told.returncode == 0, told.stderr
    assert f"1.0 MB  {left}" in told.stdout
    assert left.exists()
    assert "nothing to remove" in run_wsss("clean", "--unused", "--older-than", "7d", "--out", str(out), cwd=out).stdout
    assert run_wsss("clean", "--out", str(out), cwd=out).returncode == 2
    assert run_wsss("clean", "--unused", "--older-than", "soon", "--out", str(out), cwd=out).returncode == 2
    assert "removed 1 artifacts" in run_wsss("clean", "--unused", "--yes", "--out", str(out), cwd=out).stdout
    assert not left.exists()
    assert (out / "prepared" / "manifest.json").exists()
    assert (out / "refine" / "fake-aaaa").exists()


def test_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    well = run_wsss("doctor", "--out", str(tmp_path / "results"), cwd=tmp_path)
    assert well.returncode == 0, well.stdout + well.stderr
    assert "torch" in well.stdout
    assert not (tmp_path / "results").exists()
    (tmp_path / "mlflow.db").write_text("no database")
    ill = run_wsss("doctor", "--out", str(tmp_path), cwd=tmp_path)
    assert ill.returncode == 1
    assert str(tmp_path / "mlflow.db") in next(line for line in ill.stdout.splitlines() if line.startswith("BAD"))
    lost = run_wsss(
        "doctor",
        cwd=tmp_path,
        RAY_ADDRESS="127.0.0.1:1",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH="nowhere",
        HOME="/",
    )
    assert "BAD  Ray" in lost.stdout


def test_version_and_json_of_lists(tmp_path: Path) -> None:
    assert run_wsss("--version", cwd=tmp_path).stdout.split() == ["wsss-ray", __version__]
    listed = json.loads(run_wsss("list", "--json", cwd=tmp_path).stdout)
    assert "cam" in [recipe["name"] for recipe in listed["recipes"]]
    assert "irn" in listed["refiners"]
    weights = json.loads(run_wsss("weights", "list", "--json", cwd=tmp_path).stdout)
    assert "resnet38_imagenet" in [entry["name"] for entry in weights]


def test_json_of_a_comparison(out: Path) -> None:
    told = run_wsss("compare", "fake-aaaa", "fake-bbbb", "--out", str(out), "--resamples", "50", "--json", cwd=out)
    assert told.returncode == 0, told.stderr
    compared = json.loads(told.stdout)
    assert compared["names"] == ["fake-aaaa", "fake-bbbb"]
    assert compared["scores"][0]["values"][0] == 1.0


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("wsss run cam --set train.epo", "train.epochs="),
        ("wsss study report l2g.table", "l2g.table1"),
    ],
)
def test_the_shell_completes(typed: str, found: str, tmp_path: Path) -> None:
    asked = {"_WSSS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    told = run_wsss(cwd=tmp_path, **asked)
    assert found in told.stdout.split()


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (("run", "ctse"), "did you mean ktse?"),
        (("show", "cam", "--set", "train.epoch=2"), "did you mean train.epochs?"),
        (("show", "cam", "--set", "trian.epochs=2"), "did you mean train?"),
        (("run", "cam", "--set", "net.backbone=resnet83"), "did you mean resnet38?"),
    ],
)
def test_what_was_probably_meant_is_named(args: tuple[str, ...], meant: str, tmp_path: Path) -> None:
    told = run_wsss(*args, cwd=tmp_path)
    assert told.returncode == 2
    *messages, error = told.stderr.splitlines()
    assert meant in error
    assert messages in ([], ["scale: toy (synthetic images)"])
