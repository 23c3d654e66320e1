# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite against the outputs of the published package, TensorFlow's padding, dilation and the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.data.colour import NormalizeConfig
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.same_conv import SameConv2d
from wsss_ray.nets.weight_files import read_weights
from wsss_ray.nets.weight_store import check_weights, digest_weights, locate_weights
from wsss_ray.nets.weights import load_weights

TOLERANCE = 1e-4


def weights_of(name: str) -> str:
    """The name of a backbone's weights, or a skip where their package is not installed."""
    if check_weights(f"{name}_imagenet").verdict != "ok":
        pytest.skip(check_weights(f"{name}_imagenet").message)
    return f"{name}_imagenet"


def load(name: str, output_stride: int = 32) -> Backbone:
    net = build_backbone(name, output_stride).eval()
    load_weights(net, weights_of(name))
    return net


def classify(features: Tensor, name: str) -> Tensor:
    """(B, 1280, h, w) -> (B, 1000), by the classifier that the backbone leaves out."""
    tensors = read_weights(locate_weights(weights_of(name)))
    return F.linear(features.mean((2, 3)), tensors["_fc.weight"], tensors["_fc.bias"])


def statistics(values: Tensor) -> list[float]:
    wide = values.double()
    return [wide.mean().item(), wide.std(correction=0).item(), wide.min().item(), wide.max().item()]


def blocks_of(net: Backbone, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The taps and every block's output."""
    caught: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: caught.append(out))
        for block in net.get_submodule("blocks").children()
    ]
    taps = net(images)
    for hook in hooks:
        hook.remove()
    return taps, caught


def read_native(arrays: dict[str, np.ndarray], shared: Path) -> Tensor:
    """(1, 3, side, side): the image that the file names, as the network wants it."""
    path = shared / "data" / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{arrays['native_picture']}.jpg"
    side = int(arrays["native_side"])
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return NormalizeConfig(preset="efficientnet_lite").apply(np.asarray(image))[None]


class Reading(dict[str, np.ndarray]):
    """The arrays of a golden file; ``unread`` are those that nothing has looked at."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.unread = set(arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        self.unread.discard(name)
        return super().__getitem__(name)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_matches_the_published_package(name: str, golden, shared: Path) -> None:
    arrays = Reading(golden(f"c01_{name}.npz"))
    net = load(name)
    assert digest_weights(locate_weights(weights_of(name))) == json.loads(str(arrays["meta"]))["weights_sha256"]
    numbers = [key.removeprefix("x") for key in arrays if key.removeprefix("x").isdigit()]
    assert numbers
    for n in numbers:
        assert float(arrays[f"err{n}"]) < TOLERANCE
        taps, blocks = blocks_of(net, torch.from_numpy(arrays[f"x{n}"]))
        assert len(blocks) == sum(key.startswith("block") and key.endswith(f"_shape{n}") for key in arrays)
        for i, found in enumerate(blocks):
            assert list(found.shape) == arrays[f"block{i}_shape{n}"].tolist(), i
            assert statistics(found) == pytest.approx(arrays[f"block{i}_stats{n}"].tolist(), abs=TOLERANCE), i
        features = taps["out"]
        assert features[:, ::37].shape == arrays[f"features{n}"].shape
        assert (features[:, ::37] - torch.from_numpy(arrays[f"features{n}"])).abs().max() < TOLERANCE
        means = features.double().mean((2, 3))
        assert (means - torch.from_numpy(arrays[f"features{n}_chanmean"])).abs().max() < TOLERANCE
        assert (classify(features, name) - torch.from_numpy(arrays[f"logits{n}"])).abs().max() < TOLERANCE
    native = classify(net(read_native(arrays, shared))["out"], name)
    expected = torch.from_numpy(arrays["native_logits"])
    assert (native - expected).abs().max() < TOLERANCE
    assert torch.equal(native.topk(2).indices, expected.topk(2).indices)
    assert not arrays.unread


@pytest.mark.parametrize(
    ("variant", "num_blocks", "num_parameters"), [(0, 16, 4652008), (1, 21, 5416680), (2, 21, 6092072)]
)
def test_sizes_of_the_variants(variant: int, num_blocks: int, num_parameters: int) -> None:
    """Parameters as published, of which the classifier has 1280 * 1000 + 1000."""
    with torch.device("meta"):
        net = build_backbone(f"efficientnet_lite{variant}")
    assert len(list(net.get_submodule("blocks").children())) == num_blocks
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters - 1_281_000


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_every_published_tensor_is_used_or_the_classifier(variant: int) -> None:
    name = f"efficientnet_lite{variant}"
    net = build_backbone(name)
    report = load_weights(net, weights_of(name))
    tensors = [key for key in read_weights(locate_weights(weights_of(name))) if not key.endswith("num_batches_tracked")]
    assert report.leftovers == ("classifier.weight", "classifier.bias")
    assert report.num_matched == len(tensors) - 2


def test_weights_of_another_variant_are_refused() -> None:
    with pytest.raises(UserError, match="efficientnet_lite0_imagenet: lacks .* EfficientNetLite"):
        load_weights(build_backbone("efficientnet_lite2"), weights_of("efficientnet_lite0"))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 4)])
def test_same_padding_by_its_definition(kernel: int, stride: int, dilation: int) -> None:
    """Cell i covers the taps from i * stride - before on, where before is half of all zeros, rounded down."""
    torch.manual_seed(0)
    conv = SameConv2d(2, 3, kernel, stride, dilation).double()
    reach = dilation * (kernel - 1) + 1
    for size in ((1, 2), (7, 8), (12, 5)):
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        cells = [-(-side // stride) for side in size]
        totals = [max((num - 1) * stride + reach - side, 0) for num, side in zip(cells, size, strict=True)]
        found = conv(x)
        assert list(found.shape[2:]) == cells
        for i, j in ((i, j) for i in range(cells[0]) for j in range(cells[1])):
            value = torch.zeros(3, dtype=torch.float64)
            for a, b in ((a, b) for a in range(kernel) for b in range(kernel)):
                y, z = i * stride - totals[0] // 2 + a * dilation, j * stride - totals[1] // 2 + b * dilation
                if 0 <= y < size[0] and 0 <= z < size[1]:
                    value += conv.weight[:, :, a, b] @ x[0, :, y, z]
            assert torch.allclose(found[0, :, i, j], value, atol=1e-12)


def spread(net: Backbone) -> Backbone:
    """Random BatchNorm statistics and gains, so that no layer is nearly the identity or dead."""
    for key, value in net.state_dict().items():
        if key.endswith(("running_mean", "bn.bias")):
            value.normal_(std=0.1)
    return net


@torch.inference_mode()
@pytest.mark.parametrize(("output_stride", "step"), [(16, 2), (8, 4)])
@pytest.mark.parametrize("variant", [0, 2])
def test_dilation_keeps_the_published_cells(variant: int, output_stride: int, step: int) -> None:
    torch.manual_seed(0)
    name = f"efficientnet_lite{variant}"
    published = spread(build_backbone(name)).double().eval()
    dense = build_backbone(name, output_stride).double().eval()
    dense.load_state_dict(published.state_dict())
    for size in ((65, 97), (33, 129), (1, 65)):
        images = torch.randn(1, 3, *size, dtype=torch.float64)
        expected, found = published(images)["out"], dense(images)["out"]
        assert found[:, :, ::step, ::step].shape == expected.shape
        assert expected.std() > 0
        assert torch.allclose(found[:, :, ::step, ::step], expected, atol=1e-10)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(96, 64), (90, 98)])
def test_dilation_at_even_sizes_is_the_filters_applied_with_stride(size: tuple[int, int]) -> None:
    """There the published strides pad one side only; the dilated filters pad both, and so does this strided copy."""
    torch.manual_seed(0)
    dense = spread(build_backbone("efficientnet_lite0", 16)).double().eval()
    strided = build_backbone("efficientnet_lite0", 32).double().eval()
    strided.load_state_dict(dense.state_dict())
    first = strided.get_submodule("blocks.11.depthwise.conv")
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    published = strided(images)["out"]
    first.find_margins = lambda axis, size: (2, 2)  # type: ignore[method-assign, assignment]
    expected, found = strided(images)["out"], dense(images)["out"]
    assert torch.allclose(found[:, :, ::2, ::2], expected, atol=1e-10)
    assert not torch.allclose(published, expected, atol=1e-10)


def test_freezing_counts_blocks() -> None:
    with torch.device("meta"):
        net = build_backbone("efficientnet_lite0", 16, freeze_through=3, batch_norm="train").train()
    learning = {name.rsplit(".", 3)[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if name.startswith("blocks.")} == {f"blocks.{k}" for k in range(3, 16)}
    assert not any(name.startswith("stem") for name in learning)
    assert not any(module.training for module in net.get_submodule("blocks.2").modules())
    with pytest.raises(UserError, match="has 16 blocks; freeze_through cannot be 17"), torch.device("meta"):
        build_backbone("efficientnet_lite0", freeze_through=17)


def test_input_space_is_127_and_128() -> None:
    image = np.array([[[0, 127, 255]]], np.uint8)
    assert NormalizeConfig(preset="efficientnet_lite").apply(image).flatten().tolist() == [-127 / 128, 0, 1]
