# SPDX-License-Identifier: Apache-2.0
"""The GPU kit at toy scale on a CPU: without Ray, MLflow, YAML and what else a bare GPU machine lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_methods import SETTINGS, collect_settings
from benchmarks.gpu_report import HEAD
from wsss_ray.methods import METHODS
from wsss_ray.registry import OWN

ROOT = Path(__file__).resolve().parents[2]
ABSENT = {
    *("ray", "mlflow", "yaml", "typer", "rich", "pandas", "matplotlib", "filelock", "numba", "pydensecrf", "jinja2"),
    *("charset_normalizer", "tifffile", "scipy", "sklearn", "torchvision", "requests", "cv2", "onnxruntime"),
}
"""Packages that the kit must not need; torch's own imports come before."""
PROGRAM = f"""
import sys
import torch
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from benchmarks.gpu import main
sys.exit(main(["--tiny", "--cpu", "--out", sys.argv[1]]))
"""


def test_settings_are_those_of_the_studies() -> None:
    """``python -m benchmarks.gpu --write-settings`` writes them anew."""
    assert json.loads(SETTINGS.read_text(encoding="utf-8")) == json.loads(json.dumps(collect_settings()))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(out)], capture_output=True, text=True, cwd=out, env=env, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_method_trains_and_is_asked(record: Path) -> None:
    found = {case["name"]: case for case in json.loads((record / "gpu.json").read_text(encoding="utf-8"))["cases"]}
    own = {name for name in METHODS if METHODS.origin(name) == OWN}
    assert {name.split(",")[0] for name in found} == own | {"deeplab_v2"}
    for name, case in found.items():
        assert case["train"]["images_per_second"] > 0, name
        assert case["train"]["ratio"] > 0, name
        assert 0 <= case["train"]["waiting"] < 1, name
        assert case["train"]["memory_mb"] > 50, name
        assert case["parity"] == {"largest_difference": 0.0, "equal_labels": 1.0}, name
        assert ("localize" in case) == ("deeplab" not in name)
        assert ("predict" in case) == (name in ("ssss", "wsfcn") or "deeplab" in name)
        for part in ("localize", "predict"):
            assert case.get(part, {"images_per_second": 1})["images_per_second"] > 0, name


def test_the_table_has_a_line_for_each(record: Path) -> None:
    text = (record / "gpu.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cases = json.loads((record / "gpu.json").read_text(encoding="utf-8"))["cases"]
    assert len(lines) == 2 + len(cases)
    assert all(line.count("|") == len(HEAD) + 1 for line in lines)
    assert "rror" not in text
