# SPDX-License-Identifier: Apache-2.0
"""DeepLab-v2 against released numbers: loss under the older interpolation, sizes of gradients and of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_rules import set_a
from wsss_ray.contracts import Batch, Progress
from wsss_ray.nets import build_backbone
from wsss_ray.nets.deeplab import DeepLab, DeepLabV2Config

START = Progress(epoch=0, step=0, num_epochs=1, num_steps=1)


def own_name(key: str) -> str:
    """deeplab-pytorch's name of a tensor -> ours."""
    key = key.removeprefix("base.")
    return key.replace("aspp.c", "head.") if key.startswith("aspp.") else f"backbone.{key}"


@pytest.fixture(scope="module")
def released(golden: Any) -> DeepLab:
    """The network with the file's weights, in training mode."""
    arrays = golden("09_deeplabv2_msc.npz")
    num_labels = arrays["out_100"].shape[1]
    net = DeepLabV2Config().build(build_backbone("resnet101_caffe", input_space="caffe"), num_labels).train()
    state = net.state_dict()
    for key in arrays["keys"].tolist():
        tensor = state[own_name(key)]
        tensor.copy_(torch.from_numpy(set_a(f"deeplab/{key}", tensor.shape, str(arrays["salt"]))))
    return net


def summed_loss(net: DeepLab, arrays: Any) -> Tensor:
    images, mask = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["label"]).long()
    ones = torch.ones_like(images[:, :1])
    parts = net.loss(Batch(images, torch.ones(len(images), 1), ones, images, mask=mask), START)
    return torch.stack(list(parts.values())).sum()


def test_loss_with_size_ratio_inputs(released, golden):
    arrays = golden("09_deeplabv2_msc.npz")
    older = DeepLab(released.backbone, released.head, DeepLabV2Config(input_resize="size_ratio")).train()
    with torch.no_grad():
        assert summed_loss(older, arrays).item() == pytest.approx(float(arrays["sizeratio_loss_sum"]), abs=1e-5)


def test_sizes_of_gradients_and_tensors(released, golden):
    arrays = golden("09_deeplabv2_msc.npz")
    state = released.state_dict()
    for key, shape in zip(arrays["keys"].tolist(), arrays["key_shapes"].tolist(), strict=True):
        assert ",".join(map(str, state[own_name(key)].shape)) == shape, key
    released.zero_grad()
    summed_loss(released, arrays).backward()
    parameters = dict(released.named_parameters())
    sizes = [key for key in arrays if key.startswith("gradnorm_")]
    assert sizes
    for key in sizes:
        gradient = parameters[own_name(key.removeprefix("gradnorm_"))].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(float(arrays[key]), rel=1e-3), key
