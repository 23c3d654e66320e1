# SPDX-License-Identifier: Apache-2.0
"""Bad input on the command line: one clear line that names the file or key, exit code 2, no traceback, nothing
half-written.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_ray.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    """The error on stderr, behind the scale that was chosen, of a command that must end with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["wsss", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return "\n".join(line for line in error.splitlines() if not line.startswith("scale: "))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "nonesuch"), ("nonesuch", "cam")),
        (("run", "cam", "--scale", "huge"), ("huge", "small")),
        (("run", "cam", "--profile", "mine"), ("mine", "released")),
        (("run", "cam", "--set", "train.epoch=2"), ("train.epoch", "unknown key")),
        (("run", "cam", "--set", "trian.epochs=2"), ("trian",)),
        (("run", "cam", "--set", "train.epochs=many"), ("train.epochs", "many")),
        (("run", "cam", "--set", "train.epochs=0"), ("train.epochs",)),
        (("run", "cam", "--set", "train.epochs"), ("key=value",)),
        (("run", "cam", "--set", "method.name=nonesuch"), ("nonesuch", "cam")),
        (("run", "cam", "--set", "refine=null"), ("refine",)),
        (("run", "cam", "--set", "net.backbone=nonesuch"), ("nonesuch", "resnet38")),
        (("run", "cam", "--set", "net.weights=nowhere.pth"), ("nowhere.pth",)),
        (("run", "cam", "--data", "no/such/place"), ("no/such/place", "prepare")),
        (("run", "no/such/recipe.yaml"), ("no/such/recipe.yaml",)),
        (("show", "cam", "--set", "seed=-1"), ("seed",)),
        (("data", "check", "no/such/place"), ("no/such/place", "manifest.json")),
        (("data", "prepare", "nonesuch"), ("nonesuch", "voc")),
        (("data", "prepare", "voc", "no/such/devkit"), ("no/such/devkit",)),
        (("weights", "check", "nonesuch"), ("nonesuch",)),
        (("weights", "fetch", "nonesuch"), ("nonesuch", "resnet38_imagenet")),
        (("export", "no/such/run", "--to", "x"), ("no/such/run",)),
    ],
)
def test_one_line_names_the_fix(
    args: tuple[str, ...],
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, monkeypatch, *args)
    assert len(line.splitlines()) == 1, line
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir()), "something was written"


def test_unreachable_mlflow_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = refused(capsys, monkeypatch, "run", "cam")
    assert "http://127.0.0.1:9" in line
    assert "MLFLOW_TRACKING_URI" in line


def make_images(folder: Path) -> None:
    """Two images, one of them cut short, and their labels."""
    (folder / "images").mkdir(parents=True)
    for name in ("good", "cut"):
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "images" / f"{name}.jpg")
    whole = (folder / "images" / "cut.jpg").read_bytes()
    (folder / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "labels.csv").write_text("image,labels,split\ngood.jpg,cat,train\ncut.jpg,cat,train\n")


def test_bad_images_are_listed_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_images(tmp_path / "mine")
    out = tmp_path / "out"
    line = refused(capsys, monkeypatch, "data", "prepare", "folder", str(tmp_path / "mine"), "--out", str(out))
    assert "cut.jpg" in line
    assert "--skip-bad" in line
    assert not [name for name in os.listdir(out) if name.endswith(".parquet")] if out.exists() else True
    monkeypatch.setattr(
        sys, "argv", ["wsss", "data", "prepare", "folder", str(tmp_path / "mine"), "--out", str(out), "--skip-bad"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "left out 1" in capsys.readouterr().err
