# SPDX-License-Identifier: Apache-2.0
"""Names, help and choices: without torch, and known to help, to completion and to the error of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.installed import list_heavy, run_wsss


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (("list",), "wsfcn"),
        (("list", "--json"), '"cam"'),
        (("--help",), "compare"),
        (("run", "--help"), "--set"),
        (("sweep", "--help"), "cam[.best"),
        (("study", "list"), "l2g.table1"),
        (("weights", "list", "--json"), "resnet38_imagenet"),
        (("--version",), "wsss-ray"),
    ],
)
def test_names_are_listed_without_heavy_imports(args: tuple[str, ...], found: str, tmp_path: Path) -> None:
    printed, heavy = list_heavy(*args, cwd=tmp_path)
    assert found in printed
    assert heavy == []


def test_what_imports_torch_is_noticed(tmp_path: Path) -> None:
    assert "torch" in list_heavy("show", "cam", cwd=tmp_path)[1]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("wsss run c", "cam"),
        ("wsss run cam --scale s", "small"),
        ("wsss run cam --profile r", "released"),
        ("wsss sweep cam --search t", "tpe"),
        ("wsss export results/runs/x --as p", "polygons"),
        ("wsss runs --sort m", "masks"),
        ("wsss data prepare c", "coco"),
        ("wsss weights fetch u2", "u2netp"),
    ],
)
def test_the_shell_completes_choices_without_heavy_imports(typed: str, found: str, tmp_path: Path) -> None:
    asked = {"_WSSS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    printed, heavy = list_heavy(cwd=tmp_path, **asked)
    assert found in printed.split()
    assert heavy == []


@pytest.mark.parametrize("choice", ["toy|small|paper", "paper|released"])
def test_help_lists_the_choices(choice: str, tmp_path: Path) -> None:
    assert choice in run_wsss("run", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "cam", "--scale", "huge"), ("--scale", "'small'")),
        (("runs", "--sort", "mask"), ("--sort", "'masks'")),
        (("export", "x", "--to", "y", "--as", "jpeg"), ("--as", "'polygons'")),
        (("rnu",), ("rnu", "'run'")),
        (("run",), ("RECIPE", "wsss run --help")),
        (("run", "cam", "--scal", "toy"), ("--scal", "--scale")),
        (("list", "-v", "-q"), ("-v and -q",)),
        (("list", "--log-file", "no/such/folder/log"), ("--log-file no/such/folder/log",)),
        (("study", "run", "l2g.tabel1"), ("did you mean l2g.table1?",)),
        (("weights", "fetch", "resnet83_imagenet"), ("did you mean resnet38_imagenet?",)),
    ],
)
def test_a_wrong_argument_is_one_line(args: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    told = run_wsss(*args, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


def test_studies_are_listed_and_counted(tmp_path: Path) -> None:
    listed = json.loads(run_wsss("study", "list", "--rows", "--json", cwd=tmp_path).stdout)
    named = json.loads(run_wsss("study", "list", "--json", cwd=tmp_path).stdout)
    assert [entry["name"] for entry in listed] == [entry["name"] for entry in named]
    counts = {entry["name"]: (entry["runnable"], entry["rows"]) for entry in listed}
    assert counts["cam.thresholds"] == (7, 7)
    assert counts["cam.baseline"] == (1, 2)
