# SPDX-License-Identifier: Apache-2.0
"""Every registered method as it comes, those of other packages too, keeps the contract of a localizer."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest

from tests.methods.contract import (
    CLASS_COUNTS,
    Case,
    check_backbone,
    check_groups,
    check_localizer,
    check_maps_settings,
    check_missing_needs,
    check_outputs,
    check_saving,
    check_settings,
    check_training,
    find_undeclared,
    names_paper,
)
from wsss_ray.config import Changes, Result, UserError, select
from wsss_ray.methods import METHODS
from wsss_ray.methods.base import MethodConfig
from wsss_ray.nets import build_backbone
from wsss_ray.registry import Lazy, Registry

CROPS = {"l2g": 321}
"""Training crop that a method's default settings need; 65 for all others."""
SIZES = ((64, 64), (37, 53))


def default(name: str) -> Case:
    return Case(METHODS[name](), backbone=partial(build_backbone, "toy", width=8), crop=CROPS.get(name, 65))


@pytest.mark.parametrize("name", METHODS)
def test_every_field_declares_what_it_changes(name: str) -> None:
    assert not find_undeclared(METHODS[name])
    assert select(METHODS[name](), *get_args(Result)).keys() == METHODS[name].model_fields.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_paper_is_named(name: str) -> None:
    assert names_paper(METHODS[name])


@pytest.mark.parametrize("name", METHODS)
def test_settings(name: str) -> None:
    assert METHODS[name]().name == name
    check_settings(METHODS[name]())


@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("name", METHODS)
def test_it_builds_and_trains(name: str, num_classes: int) -> None:
    case = default(name)
    check_groups(case.build(num_classes))
    check_training(case, num_classes)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_what_it_needs_is_refused(name: str) -> None:
    check_missing_needs(default(name), 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("name", METHODS)
def test_its_maps(name: str, num_classes: int, size: tuple[int, int]) -> None:
    check_outputs(default(name), num_classes, size)


@pytest.mark.parametrize("name", METHODS)
def test_its_weights_are_all_there_is(name: str) -> None:
    check_saving(default(name), 3)


@pytest.mark.parametrize("name", METHODS)
def test_another_network_can_start_from_its_backbone(name: str) -> None:
    check_backbone(default(name), 3)


@pytest.mark.parametrize("name", METHODS)
def test_how_its_maps_are_read_trains_nothing(name: str) -> None:
    check_maps_settings(default(name), 3)


OUTSIDE = '''
"""Peak: the strongest cell of each class (Doe et al., 2030)."""
from typing import Annotated, Literal

from pydantic import Field

from wsss_ray.config import Changes
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAM, CAMConfig


class PeakConfig(MethodConfig):
    name: Annotated[Literal["peak"], Changes("weights")] = "peak"
    sharpness: Annotated[float, Field(ge=1), Changes("maps")] = 2.0

    def build(self, backbone, num_classes, base=None):
        return Peak(self, backbone, num_classes)


class Peak(CAM):
    def __init__(self, config, backbone, num_classes):
        super().__init__(CAMConfig(), backbone, num_classes)
        self.sharpness = config.sharpness

    def maps(self, images):
        return super().maps(images) ** self.sharpness
'''


def test_a_method_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peak.py").write_text(OUTSIDE)
    metadata = tmp_path / "peak_method-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: peak-method\nVersion: 1.0\n")
    entry_points = """
        [wsss_ray.methods]
        peak = peak:PeakConfig
        lost = peak:Missing
    """
    (metadata / "entry_points.txt").write_text(textwrap.dedent(entry_points))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"cam": Lazy[type[MethodConfig]]("wsss_ray.methods.cam:CAMConfig")}
    methods: Registry[type[MethodConfig]] = Registry(METHODS.group, METHODS.kind, own)
    assert methods.origin("peak") == "peak-method 1.0"
    assert methods["cam"] is METHODS["cam"]
    peak = methods["peak"]
    assert not find_undeclared(peak)
    assert names_paper(peak)
    check_localizer(Case(peak(), backbone=partial(build_backbone, "toy", width=8)))
    with pytest.raises(UserError, match="method 'lost' of peak-method 1.0 cannot be loaded"):
        methods["lost"]


class Undeclared(MethodConfig):
    """No paper."""

    name: Annotated[Literal["undeclared"], Changes("weights")] = "undeclared"
    strength: float = 1.0


def test_the_contract_sees_what_is_missing() -> None:
    assert find_undeclared(Undeclared) == ["strength"]
    assert not names_paper(Undeclared)
    with pytest.raises(TypeError, match="strength"):
        select(Undeclared(), "weights")
