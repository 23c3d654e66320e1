# SPDX-License-Identifier: Apache-2.0
"""Which refiners may make the labels of a refiner's network, from this package and from others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.psa import PSAConfig
from wsss_ray.refine.registry import REFINERS
from wsss_ray.refine.seeds import ThresholdSeedsConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("trained", [PSAConfig, IRNConfig])
def test_labels_come_from_any_refiner_without_a_network(trained: type[PSAConfig | IRNConfig]) -> None:
    without_network = [name for name in REFINERS if not REFINERS[name].trainable]
    assert len(without_network) >= 8
    for name in without_network:
        made = trained.model_validate({"labels": {"name": name}})
        assert made.labels == REFINERS[name]()
        assert made.training_labels() is made.labels
        assert trained.model_validate(made.model_dump(mode="json")) == made
    given = ThresholdSeedsConfig(threshold=0.4)
    assert trained(labels=given).labels == given


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"name": "no"}, "known: seeds, power"),
        ({"name": "irn"}, "trains a network itself: 'labels' takes a refiner that trains no network"),
        (PSAConfig(), "trains a network itself"),
        ({"threshold": 0.3}, "give the 'name' of a refiner"),
        ({"name": "seeds", "threshold": 3}, "less than or equal to 1"),
        (RefinerConfig, "valid"),
    ],
)
def test_other_labels_are_refused(labels: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PSAConfig.model_validate({"labels": labels})


PLUGIN = '''
from typing import Annotated, Literal

import numpy as np

from wsss_ray.config import Changes
from wsss_ray.refine.base import RefinerConfig


class NothingConfig(RefinerConfig):
    """All background; no paper."""

    name: Annotated[Literal["nothing"], Changes("masks")] = "nothing"

    def refine(self, image, maps, network=None):
        return np.zeros(maps.size, np.uint8)
'''

ENTRY_POINTS = """
[wsss_ray.refiners]
nothing = other_refiner:NothingConfig
broken = other_refiner:Missing
seeds = other_refiner:NothingConfig
"""

PROGRAM = """
from wsss_ray.config import UserError
from wsss_ray.refine.psa import PSAConfig
from wsss_ray.refine.registry import REFINERS
from wsss_ray.refine.seeds import ThresholdSeedsConfig

assert PSAConfig().labels.name == "confident_power"
assert PSAConfig.model_validate({"labels": {"name": "nothing"}}).labels == REFINERS["nothing"]()
assert REFINERS.origin("nothing") == "other-refiner 1.0", REFINERS.origin("nothing")
assert REFINERS["seeds"] is ThresholdSeedsConfig
assert list(REFINERS.broken) == ["broken", "seeds"], REFINERS.broken
try:
    REFINERS["broken"]
except UserError as error:
    print(error)
"""


def test_refiners_of_other_packages_are_found_and_make_labels(tmp_path: Path) -> None:
    (tmp_path / "other_refiner.py").write_text(PLUGIN)
    information = tmp_path / "other_refiner-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: other-refiner\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "refiner 'broken' of other-refiner 1.0 cannot be loaded: AttributeError" in done.stdout
