# SPDX-License-Identifier: Apache-2.0
"""What every registered segmenter promises, also one from another package."""

from __future__ import annotations

import re
from inspect import getdoc

import pytest
import torch
from torch import Tensor, nn

from wsss_ray.config import select
from wsss_ray.contracts import Batch, Progress, Segments, Trainable
from wsss_ray.nets import SEGMENTERS, build_backbone
from wsss_ray.nets.deeplab import SegmenterConfig
from wsss_ray.nets.optim import OptimizerConfig, build_optimizer

START = Progress(epoch=0, step=0, num_epochs=1, num_steps=2)


def draw_batch(num_classes: int) -> Batch:
    images, size = torch.randn(2, 3, 41, 50), (2, 41, 50)
    mask = torch.randint(0, num_classes, size)
    mask[torch.rand(size) < 0.2] = 255
    ones = torch.ones(2, 1, 41, 50)
    return Batch(image=images, labels=torch.ones(2, num_classes - 1), inside=ones, rgb=images, mask=mask)


def build(name: str, num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return SEGMENTERS[name]().build(build_backbone("toy", width=8), num_classes)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_settings(name: str) -> None:
    assert issubclass(SEGMENTERS[name], SegmenterConfig)
    config = SEGMENTERS[name]()
    assert config.name == name
    assert re.search(r"\b(19|20)\d\d\b", getdoc(SEGMENTERS[name]) or ""), "name the paper and its year"
    assert select(config, "weights", "maps", "masks", "scores", "nothing") == config.model_dump(mode="json")
    assert SEGMENTERS[name].model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("num_classes", [2, 6])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_two_training_steps(name: str, num_classes: int) -> None:
    net = build(name, num_classes).train()
    assert isinstance(net, Trainable)
    before = {key: value.clone() for key, value in net.named_parameters()}
    groups = net.param_groups()
    grouped = [id(parameter) for group in groups for parameter in group.params]
    assert sorted(grouped) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    optimizer = build_optimizer(groups, OptimizerConfig(lr=0.01))
    totals: list[Tensor] = []
    batch = draw_batch(num_classes)
    for _ in range(2):
        optimizer.zero_grad()
        parts = net.loss(batch, START)
        totals.append(torch.stack([part for key, part in parts.items() if not key.startswith("monitor/")]).sum())
        totals[-1].backward()
        optimizer.step()
    assert all(torch.isfinite(total) for total in totals)
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("size", [(2, 3), (33, 50), (64, 17)])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_scores_are_probabilities_of_every_pixel(name: str, size: tuple[int, int]) -> None:
    net = build(name, 4).eval()
    assert isinstance(net, Segments)
    with torch.inference_mode():
        scores = net.scores(torch.randn(2, 3, *size))
    assert scores.shape == (2, 4, *size)
    assert (scores >= 0).all()
    assert torch.allclose(scores.sum(1), torch.ones(2, *size), atol=1e-5)
