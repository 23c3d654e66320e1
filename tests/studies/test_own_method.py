# SPDX-License-Identifier: Apache-2.0
"""A method of another package: listed with its origin, run on CAM's recipe; a broken one is one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wsss_ray.nets import build_backbone

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "own-method": {"own": "own_method:OwnConfig"},
    "gone": {"gone": "no_such_module:Config"},
    "taken": {"cam": "own_method:OwnConfig"},
    "misnamed": {"other": "own_method:OwnConfig"},
    "misfit": {"misfit": "own_method:Own"},
}
"""Package -> its entry points for methods; all but the first are broken."""
REFINERS = {"power_two": "own_refiner:PowerTwoConfig", "own": "own_method:OwnConfig"}
"""Entry points of own-method for refiners; the second is no refiner."""
REFINER = """
from typing import Literal

from wsss_ray.refine.seeds import PowerSeedsConfig


class PowerTwoConfig(PowerSeedsConfig):
    name: Literal["power_two"] = "power_two"
"""
SCRIPT = """
import json
from wsss_ray import studies
from wsss_ray.config import UserError
from wsss_ray.methods import METHODS

def explain(name):
    try:
        return studies.resolve(name).method.name
    except UserError as error:
        return str(error)

own, cam = studies.resolve("own", "small"), studies.resolve("cam", "small")
print(json.dumps({
    "own": own.model_dump(mode="json"),
    "cam": cam.model_dump(mode="json"),
    "set": studies.resolve("own", settings=["method.sharpness=2"]).method.sharpness,
    "released": studies.resolve("own", profile="released").method.profile,
    "names": studies.names(),
    "broken": list(METHODS.broken.values()),
    "explained": {name: explain(name) for name in ("gone", "other", "cam", "nothing")},
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the packages above are installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "own_method.py").write_bytes((ROOT / "examples/own_method/own_method.py").read_bytes())
    for package, entries in PACKAGES.items():
        folder = site / f"{package.replace('-', '_')}-0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (folder / "entry_points.txt").write_text(f"[wsss_ray.methods]\n{lines}")
    (site / "own_refiner.py").write_text(REFINER)
    lines = "".join(f"{name} = {target}\n" for name, target in REFINERS.items())
    with (site / "own_method-0.1.dist-info" / "entry_points.txt").open("a") as file:
        file.write(f"[wsss_ray.refiners]\n{lines}")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}


def run_python(environment: dict[str, str], *arguments: str) -> str:
    """Standard output of this Python."""
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def answers(installed: dict[str, str]) -> dict:
    """What the package says about the methods that are there."""
    return json.loads(run_python(installed, "-c", SCRIPT))


def test_its_pooling_lies_between_mean_and_maximum() -> None:
    spec = importlib.util.spec_from_file_location("own_method", ROOT / "examples/own_method/own_method.py")
    own = importlib.util.module_from_spec(spec)
    sys.modules["own_method"] = own
    spec.loader.exec_module(own)
    backbone = build_backbone("toy").eval()
    network = own.OwnConfig().build(backbone, 3)
    images = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    scores = network.evidence(images)
    exponents = torch.exp(5.0 * scores.double())
    torch.testing.assert_close(network.logits(images).double(), exponents.mean(dim=(2, 3)).log() / 5.0)
    assert torch.equal(network.maps(images), scores.clamp(min=0))
    for sharpness, limit in ((1e-3, scores.mean(dim=(2, 3))), (1e3, scores.amax(dim=(2, 3)))):
        network.config = own.OwnConfig(sharpness=sharpness)
        torch.testing.assert_close(network.logits(images), limit, atol=0.02, rtol=0.0)


def test_it_runs_on_the_recipe_of_cam(answers: dict) -> None:
    own, cam = answers["own"], answers["cam"]
    assert own["name"] == "own"
    assert own["method"] == {"name": "own", "profile": "paper", "sharpness": 5.0}
    rest = {key: value for key, value in cam.items() if key not in ("name", "method")}
    assert {key: own[key] for key in rest} == rest
    assert answers["set"] == 2.0
    assert answers["released"] == "released"


def test_broken_ones_are_one_line_each_and_the_rest_works(answers: dict) -> None:
    assert [name for name in answers["names"] if name in {entry for group in PACKAGES.values() for entry in group}] == [
        "cam",
        "own",
    ]
    lines = answers["broken"]
    assert len(lines) == 4
    assert all("\n" not in line for line in lines)
    by_package = {package: line for package in PACKAGES for line in lines if f"of {package} 0.1 " in line}
    assert "no_such_module" in by_package["gone"]
    assert "is one of wsss-ray; rename it" in by_package["taken"]
    assert "name is 'own', its entry point 'other'" in by_package["misnamed"]
    assert "no subclass of MethodConfig" in by_package["misfit"]


def test_a_broken_or_unknown_name_is_explained(answers: dict) -> None:
    explained = answers["explained"]
    assert explained["cam"] == "cam"
    assert "method 'gone' of gone 0.1 cannot be loaded" in explained["gone"]
    assert "method 'other' of misnamed 0.1" in explained["other"]
    assert explained["nothing"].startswith("no recipe 'nothing'; there are: cam,")
    assert ", own (" in explained["nothing"]


def test_list_names_the_package_and_what_is_broken(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "wsss_ray.cli.main", "list"]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    (own,) = [line for line in lines if line.startswith("own ")]
    assert "own-method 0.1" in own
    assert "log-sum-exp" in own.lower()
    (cam,) = [line for line in lines if line.startswith("cam ")]
    assert "wsss-ray" in cam
    (refiners,) = [line for line in lines if line.startswith("refiners ")]
    assert refiners.split()[1:] == [
        "seeds,",
        "power,",
        "confident,",
        "confident_power,",
        "quantile,",
        "crf,",
        "pamr,",
        "par,",
        "psa,",
        "irn,",
        "power_two",
        "(own-method",
        "0.1)",
    ]
    broken = [line for line in done.stderr.splitlines() if "cannot be loaded" in line]
    assert len(broken) == 5
    assert sum("no subclass of RefinerConfig" in line for line in broken) == 1
