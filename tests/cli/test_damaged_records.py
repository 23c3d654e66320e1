# SPDX-License-Identifier: Apache-2.0
"""``wsss check`` and damaged records, through the command itself, in this process: it is called many times."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_run import fake_run, prepare
from wsss_ray.artifacts.store import Store
from wsss_ray.cli.main import main


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
