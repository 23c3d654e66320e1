# SPDX-License-Identifier: Apache-2.0
"""A fused network says what the network says, in fewer passes over memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.engine.fuse import FusedConv2d, can_fuse, fuse_network
from wsss_ray.engine.precision import has_bf16
from wsss_ray.nets import BACKBONES, build_backbone
from wsss_ray.nets.backbone import Backbone

NAMES = ("toy", "squeezenet", "resnet18", "resnet50_caffe", "resnet38", "vgg16", "efficientnet_lite0")


def give_statistics(network: nn.Module) -> None:
    """BatchNorm as after a training: folding it must move every number."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)


def list_fused(backbone: nn.Module) -> list[FusedConv2d]:
    """The fused convolutions that a backbone's forward runs."""
    return [part for part in backbone.forward.__self__.modules() if isinstance(part, FusedConv2d)]


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_every_tap_is_equal_up_to_rounding_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    give_statistics(backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    fused = fuse_network(backbone)
    assert len(list_fused(fused)) >= sum(type(part) is nn.Conv2d for part in backbone.modules())
    for size in ((33, 46), (64, 64), (17, 1)) if name not in ("vgg16", "resnet38") else ((33, 46),):
        images = torch.randn(2, 3, *size)
        expected, found = backbone(images), fused(images)
        for tap, value in expected.items():
            error = (found[tap] - value).abs().max() / value.abs().max().clamp(min=1e-6)
            assert error < 1e-4, (tap, size, float(error))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items()), "the original changed"
    assert (fused.channels, fused.strides) == (backbone.channels, backbone.strides)


def test_all_registered_backbones_are_covered_by_kind() -> None:
    with torch.device("meta"):
        kinds = {type(build_backbone(name)).__name__ for name in NAMES}
    with torch.device("meta"):
        assert {type(build_backbone(name)).__name__ for name in BACKBONES} == kinds


def test_nothing_of_a_resnet_stays_outside_its_convolutions() -> None:
    backbone = fuse_network(build_backbone("resnet18").eval())
    inside = [type(part).__name__ for part in backbone.forward.__self__.modules() if not list(part.children())]
    assert set(inside) == {"FusedConv2d", "MaxPool2d"}
    called = [node for node in backbone.forward.__self__.graph.nodes if node.op in ("call_function", "call_method")]
    assert called == []


class Odd(Backbone):
    """What a fusion must not get wrong: shared layers, values read twice, what a sum would overwrite."""

    channels = {"out": 4}
    strides = {"out": 1}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm, self.own = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.start = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.start(images)
        twice = self.norm(self.first(x)) + self.norm(self.second(x))
        kept = self.third(twice)
        added = (self.first(kept) + kept).relu()
        joined = torch.cat([self.own(kept), added]).relu().chunk(2)
        return {"out": joined[0] - joined[1], "kept": kept, "x": x, "sum": self.second(x) + 2}


@torch.inference_mode()
def test_layers_used_twice_and_values_read_twice_keep_their_meaning() -> None:
    torch.manual_seed(0)
    odd = Odd().eval()
    give_statistics(odd)
    images = torch.randn(2, 3, 9, 7)
    expected, found = odd(images), fuse_network(odd)(images)
    for tap, value in expected.items():
        torch.testing.assert_close(found[tap], value, atol=1e-5, rtol=1e-5)


class Late(Backbone):
    """Reads a value again behind the sum that could have used up its memory."""

    channels = {"out": 4}
    strides = {"out": 1}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.first(images)
        total = (self.second(x) + x).relu()
        return {"out": self.third(x) + total}


@torch.inference_mode()
def test_a_sum_overwrites_nothing_that_is_read_later() -> None:
    torch.manual_seed(0)
    late = Late().eval()
    images = torch.randn(1, 3, 5, 6)
    torch.testing.assert_close(fuse_network(late)(images)["out"], late(images)["out"])


class Untraceable(Late):
    """Asks for a value while it runs."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return super().forward(images if images.sum() > 0 else -images)


@torch.inference_mode()
def test_a_backbone_that_cannot_be_traced_runs_as_it_is() -> None:
    odd = Untraceable().eval()
    images = torch.randn(1, 3, 5, 6)
    assert torch.equal(fuse_network(odd)(images)["out"], odd(images)["out"])


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("onednn", [True, False])
def test_one_fused_convolution_by_hand(activation: str, onednn: bool) -> None:
    if onednn and not can_fuse(torch.float32):
        pytest.skip("no oneDNN")
    torch.manual_seed(0)
    conv, x, other = nn.Conv2d(4, 6, 3, stride=2, bias=True), torch.randn(2, 4, 9, 8) * 3, torch.randn(2, 6, 4, 3) * 3
    act = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6}[activation]
    fused = FusedConv2d(conv, (0, 0), activation, torch.float32)  # type: ignore[arg-type]
    fused.onednn = onednn
    torch.testing.assert_close(fused(x), act(conv(x)), atol=1e-5, rtol=1e-5)
    expected = act(conv(x) + other)
    torch.testing.assert_close(fused(x, other), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused(x, other.clone(), True), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bfloat16_weights_stand_beside_fp32_ones_without_onednn() -> None:
    """Where oneDNN has no bfloat16, autocast of the whole network still works on a fused one."""
    torch.manual_seed(0)
    backbone = build_backbone("toy", width=16).eval()
    give_statistics(backbone)
    fused = fuse_network(backbone, bf16=True)
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(images)["out"].float()
    expected = backbone(images)["out"]
    assert (found - expected).abs().max() / expected.abs().max() < 0.05


@pytest.mark.skipif(not has_bf16("cpu"), reason="this CPU does not compute in bfloat16")
def test_bf16_runs_in_bf16_where_the_cpu_computes_in_it() -> None:
    """The probe of one value went a way that knows no bfloat16, so that everything ran in fp32 all the same."""
    assert can_fuse(torch.bfloat16)
    fused = fuse_network(build_backbone("resnet18"), bf16=True)
    with torch.inference_mode():
        assert fused(torch.randn(1, 3, 64, 64))["out"].dtype is torch.bfloat16
