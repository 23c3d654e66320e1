"""``wsss runs``, ``check``, ``clean``, ``doctor``, ``--version``, ``--json`` and completion, through the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_run import fake_run, prepare
from wsss_ray import __version__
from wsss_ray.artifacts.store import Store
from wsss_ray.cli.main import main

COMMAND = "from wsss_ray.cli.main import main; main()"


@dataclass(frozen=True)
class Told:
    """What a command ended with and printed."""

    returncode: int
    stdout: str
    stderr: str


Wsss = Callable[..., Told]


@pytest.fixture
def wsss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Wsss:
    """The command, run in this process."""

    def call(*args: str, cwd: Path, **env: str) -> Told:
        monkeypatch.chdir(cwd)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["wsss", *args])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return Told(code, told.out, told.err)

    return call


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


def test_runs_are_listed_filtered_and_sorted(wsss: Wsss, out: Path) -> None:
    told = wsss("runs", "--out", str(out), cwd=out)
    assert told.returncode == 0, told.stderr
    assert "fake-aaaa" in told.stdout
    assert "100.0" in told.stdout
    listed = json.loads(wsss("runs", "--out", str(out), "--sort", "masks", "--json", cwd=out).stdout)
    assert [run["name"] for run in listed] == ["fake-aaaa", "fake-bbbb"]
    assert listed[0]["scores"]["masks"] == 1.0 > listed[1]["scores"]["masks"]
    assert [run["seed"] for run in listed] == [1, 2]
    for recipe, number in (("fake", 2), ("cam", 0)):
        found = json.loads(wsss("runs", "--out", str(out), "--recipe", recipe, "--json", cwd=out).stdout)
        assert len(found) == number
    wrong = wsss("runs", "--sort", "mask", cwd=out)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "masks" in wrong.stderr


def test_clean_lists_first_and_removes_with_yes(wsss: Wsss, out: Path) -> None:
    left = out / "train" / "0123456789abcdee"
    told = wsss("clean", "--unused", "--out", str(out), cwd=out)
    assert told.returncode == 0, told.stderr
    assert f"1.0 MB  {left}" in told.stdout
    assert left.exists()
    assert "nothing to remove" in wsss("clean", "--unused", "--older-than", "7d", "--out", str(out), cwd=out).stdout
    assert wsss("clean", "--out", str(out), cwd=out).returncode == 2
    assert wsss("clean", "--unused", "--older-than", "soon", "--out", str(out), cwd=out).returncode == 2
    assert "removed 1 artifacts" in wsss("clean", "--unused", "--yes", "--out", str(out), cwd=out).stdout
    assert not left.exists()
    assert (out / "prepared" / "manifest.json").exists()
    assert (out / "refine" / "fake-aaaa").exists()


def test_check_reads_everything(wsss: Wsss, out: Path) -> None:
    store = Store(str(out))
    folder = Path(store.folder("localize", "0123456789abcdef"))
    folder.mkdir(parents=True)
    (folder / "shard-00000.parquet").write_bytes(b"maps" * 100)
    store.finish("localize", "0123456789abcdef", {"seconds": 1.0})
    told = wsss("check", str(out), cwd=out)
    assert (told.returncode, told.stdout.splitlines()[-1]) == (0, "1 artifacts, 2 runs: OK, every file verified")
    (folder / "shard-00000.parquet").write_bytes(b"maps" * 99 + b"mapt")
    (out / "runs" / "fake-bbbb" / "recipe.yaml").write_text("name: [")
    told = wsss("check", str(out), cwd=out)
    assert told.returncode == 1
    assert f"{folder / 'shard-00000.parquet'}: damaged or gone" in told.stdout
    assert f"{out / 'runs' / 'fake-bbbb' / 'recipe.yaml'}: damaged" in told.stdout
    assert "2 damaged" in told.stdout
    assert wsss("check", str(out / "nowhere"), cwd=out).returncode == 2


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml"])
@pytest.mark.parametrize("damage", ["empty", "cut", "nul", "list", "number", "deep", "other", "gone"])
def test_damaged_records_are_a_line(wsss: Wsss, out: Path, name: str, damage: str) -> None:
    """Of a run that is read by its name: the file and the fix, no traceback."""
    path = out / "runs" / "fake-bbbb" / name
    text = path.read_text()
    made = {
        "empty": "",
        "cut": text[: len(text) // 2],
        "nul": "\0" * 40,
        "list": "[1, 2]",
        "number": "7",
        "deep": "[" * 100_000,
        "other": '{"scores": 3}',
    }
    path.unlink() if damage == "gone" else path.write_text(made[damage])
    run = str(path.parent)
    for command in (
        ["report", run, "--out", str(out / "page.html")],
        ["compare", str(out / "runs" / "fake-aaaa"), run],
        ["export", run, "--to", str(out / "masks")],
        ["predict", "--model", run, str(out)],
    ):
        told = wsss(*command, cwd=out)
        if told.returncode == 0:
            # Half of a recipe may be one; and an export reads no recipe.
            assert name == "recipe.yaml"
            assert damage == "cut" or command[0] == "export"
            continue
        assert told.returncode == 2, (command, told.stderr)
        assert len(told.stderr.strip().splitlines()) == 1, told.stderr
        assert "Traceback" not in told.stderr
    assert wsss("runs", "--out", str(out), cwd=out).returncode == 0


def test_doctor_names_what_is_wrong(wsss: Wsss, tmp_path: Path) -> None:
    well = wsss("doctor", "--out", str(tmp_path / "results"), cwd=tmp_path)
    assert well.returncode == 0, well.stdout + well.stderr
    assert "torch" in well.stdout
    assert not (tmp_path / "results").exists()
    (tmp_path / "mlflow.db").write_text("no database")
    ill = wsss("doctor", "--out", str(tmp_path), cwd=tmp_path)
    assert ill.returncode == 1
    assert str(tmp_path / "mlflow.db") in next(line for line in ill.stdout.splitlines() if line.startswith("BAD"))
    lost = wsss(
        "doctor",
        cwd=tmp_path,
        RAY_ADDRESS="127.0.0.1:1",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH="nowhere",
        HOME="/",
    )
    assert "BAD  Ray" in lost.stdout


def test_version_and_json_of_lists(wsss: Wsss, tmp_path: Path) -> None:
    assert wsss("--version", cwd=tmp_path).stdout.split() == ["wsss-ray", __version__]
    listed = json.loads(wsss("list", "--json", cwd=tmp_path).stdout)
    assert "cam" in [recipe["name"] for recipe in listed["recipes"]]
    assert "irn" in listed["refiners"]
    weights = json.loads(wsss("weights", "list", "--json", cwd=tmp_path).stdout)
    assert "resnet38_imagenet" in [entry["name"] for entry in weights]


def test_json_of_a_comparison(wsss: Wsss, out: Path) -> None:
    told = wsss("compare", "fake-aaaa", "fake-bbbb", "--out", str(out), "--resamples", "50", "--json", cwd=out)
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
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'wsss'; {COMMAND}"],
        cwd=tmp_path,
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
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
def test_what_was_probably_meant_is_named(wsss: Wsss, args: tuple[str, ...], meant: str, tmp_path: Path) -> None:
    told = wsss(*args, cwd=tmp_path)
    assert told.returncode == 2
    assert meant in told.stderr
    assert len(told.stderr.splitlines()) == 1
