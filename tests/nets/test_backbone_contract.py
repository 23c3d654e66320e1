# SPDX-License-Identifier: Apache-2.0
"""What every registered backbone promises, also one from another package."""

from __future__ import annotations

import re
from functools import partial
from inspect import getdoc, signature
from typing import Any

import pytest
import torch
from torch import nn

from wsss_ray.nets import BACKBONES, build_backbone
from wsss_ray.nets.backbone import NORMS, Backbone
from wsss_ray.nets.groups import group_parameters

TAPS = {"low", "conv4", "conv5", "out"}
SIZES = ((1, 1), (17, 40), (33, 5))
FREEZING: dict[str, dict[str, Any]] = {
    "resnet38": {"freeze_early": True},
    "resnet18": {"freeze_through": "layer1"},
    "resnet50": {"freeze_through": "layer2"},
    "resnet101": {"freeze_through": "stem"},
    "vgg16": {"num_frozen_convs": 4},
    "efficientnet_lite0": {"freeze_through": 3},
    "efficientnet_lite1": {"freeze_through": 21},
    "squeezenet": {"freeze_through": 3},
}
"""Options that freeze whole parts, where there are some."""


def class_of(name: str) -> type[Backbone]:
    entry: Any = BACKBONES[name]
    return entry.func if isinstance(entry, partial) else entry


CASES = [(name, stride) for name in BACKBONES for stride in class_of(name).output_strides]


@pytest.fixture(scope="module", params=list(BACKBONES))
def net(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(request.param, **FREEZING.get(request.param, {}))


@pytest.mark.parametrize("name", BACKBONES)
def test_class_is_a_backbone_that_names_its_paper(name: str) -> None:
    assert issubclass(class_of(name), Backbone)
    assert re.search(r"\b(19|20)\d\d\b", getdoc(class_of(name)) or ""), "name the paper and its year"
    assert class_of(name).output_strides, "list the output strides"


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_taps_have_the_declared_channels_and_strides(name: str, stride: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, stride)
        taps = net(torch.empty(2, 3, 65, 97))
    assert set(taps) >= TAPS
    assert set(taps) == set(net.channels) == set(net.strides)
    assert list(taps)[-1] == "out"
    assert (net.strides["low"], net.strides["out"]) == (4, stride)
    for tap, found in taps.items():
        height, width = (64 // net.strides[tap] + 1, 96 // net.strides[tap] + 1)
        assert found.shape == (2, net.channels[tap], height, width), tap


@pytest.mark.parametrize("name", BACKBONES)
def test_usual_output_stride_comes_first(name: str) -> None:
    with torch.device("meta"):
        assert build_backbone(name).strides["out"] == class_of(name).output_strides[0]


def test_any_size_gives_finite_non_negative_features(net: Backbone) -> None:
    net.eval()
    for height, width in SIZES:
        with torch.inference_mode():
            out = net(torch.randn(2, 3, height, width))["out"]
        assert out.shape[:2] == (2, net.channels["out"])
        assert min(out.shape) >= 1
        assert torch.isfinite(out).all()
        assert (out >= 0).all()


def test_frozen_parts_stay_frozen_in_training(net: Backbone) -> None:
    frozen = {id(parameter) for parameter in net.frozen()}
    assert len(frozen) == len(net.frozen())
    net.eval().train()
    still = [
        part
        for part in net.modules()
        if list(part.parameters(recurse=False)) and all(id(p) in frozen for p in part.parameters(recurse=False))
    ]
    before = {key: value.clone() for key, value in net.named_buffers()}
    net.zero_grad()
    net(torch.randn(2, 3, 33, 33))["out"].square().mean().backward()
    assert not any(part.training for part in still)
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name
    moved = {key for key, value in net.named_buffers() if not torch.equal(value, before[key])}
    assert bool(moved) == (net.batch_norm == "train" and bool(before))
    net.zero_grad()


def test_learning_parameters_are_each_in_one_group(net: Backbone) -> None:
    net.train()
    grouped = [id(parameter) for group in group_parameters(net) for parameter in group.params]
    assert sorted(grouped + [id(p) for p in net.frozen()]) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize("name", [name for name in BACKBONES if "batch_norm" in signature(BACKBONES[name]).parameters])
def test_batch_norm_modes(name: str) -> None:
    for mode, learns, moves in (("frozen", False, False), ("affine", True, False), ("train", True, True)):
        with torch.device("meta"):
            net = build_backbone(name, batch_norm=mode).train()
        kept = {id(module) for part in net.frozen_parts for module in part.modules()}
        norms = [module for module in net.modules() if isinstance(module, NORMS) and id(module) not in kept]
        assert norms
        assert {parameter.requires_grad for norm in norms for parameter in norm.parameters()} == {learns}
        assert {norm.training for norm in norms} == {moves}


@pytest.mark.parametrize("name", FREEZING)
def test_options_freeze_whole_parts(name: str) -> None:
    with torch.device("meta"):
        net = build_backbone(name, **FREEZING[name]).train()
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    learns = [conv.weight.requires_grad for conv in convs]
    assert learns == sorted(learns), "freeze from the image on"
    assert set(learns) == {False, True}
