# SPDX-License-Identifier: Apache-2.0
"""A joined cluster whose workers have another working folder: relative paths are those of the command's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.faults.head import OPEN, Head
from tests.faults.images import write_images
from tests.faults.processes import Command
from wsss_ray.nets.weight_store import locate_weights

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SMALL = [one for one in TINY if "weights=" not in one and "width" not in one]
SETTINGS = [part for one in (*SMALL, "net.weights=net.safetensors") for part in ("--set", one)]
COMMANDS = (
    ("data", "saliency", "folder", "images", "--out", "images-saliency"),
    ("data", "prepare", "folder", "images", "--saliency", "images-saliency", "--out", "made"),
    ("run", "cam", "--data", "made", "--scale", "toy", *SETTINGS, "--out", "results"),
    ("predict", "images", "--model", "results/runs/RUN", "--out", "predictions"),
    ("run", "cam", "--data", "images", "--scale", "toy", *SETTINGS, "--seed", "1", "--out", "results"),
)


def test_relative_paths(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_images(here / "images", 24)
    (here / "net.safetensors").write_bytes(locate_weights("toy_pretrained").read_bytes())
    head = Head(folder=there)
    try:
        for arguments in COMMANDS:
            run = next(iter((here / "results" / "runs").glob("*")), here).name
            words = [word.replace("RUN", run) for word in arguments]
            command = Command(here, *words, "--address", head.address, **OPEN)
            try:
                assert command.process.wait(timeout=300) == 0, command.text
            finally:
                command.kill()
        assert len(list((here / "images-saliency").glob("*.png"))) == 24
        assert len(list((here / "predictions" / "masks").glob("*.png"))) == 24
        assert len(list((here / "results" / "runs").glob("*/run.json"))) == 2
        assert list(there.rglob("*")) == []
    finally:
        head.end()
