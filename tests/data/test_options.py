# SPDX-License-Identifier: Apache-2.0
"""Paths among the options of sources and detectors, as text or as ``Path``."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss_ray.data.options import NO_FOLDER, FileOptions, read_options
from wsss_ray.data.saliency_onnx import OnnxSettings


@pytest.mark.parametrize("given", ["maps", Path("maps")])
def test_folders_are_those_of_the_commands_own_folder(
    given: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_options("folder", FileOptions, {"saliency": given}).saliency == str(tmp_path / "maps")


@pytest.mark.parametrize("given", ["none", "None"])
def test_no_folder_is_no_path(given: str) -> None:
    assert read_options("folder", FileOptions, {"saliency": given}).saliency == NO_FOLDER


@pytest.mark.parametrize("given", ["u2netp", Path("net.onnx")])
def test_a_network_is_a_name_or_a_file(given: str | Path) -> None:
    assert read_options("onnx", OnnxSettings, {"file": given}, "detector").file == str(given)
