# SPDX-License-Identifier: Apache-2.0
"""DeepLab heads and the multi-scale-input container against released numbers, counts and hand computations."""

from __future__ import annotations

import math
from typing import Annotated, Union

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from tests.golden_rules import set_a
from wsss_ray.config import UserError
from wsss_ray.contracts import Batch, Progress, Segments, Trainable
from wsss_ray.nets import SEGMENTERS, build_backbone
from wsss_ray.nets.deeplab import DeepLab, DeepLabV1Config, DeepLabV2Config, compute_pixel_loss
from wsss_ray.nets.optim import OptimizerConfig, build_optimizer
from wsss_ray.studies import resolve

START = Progress(epoch=0, step=0, num_epochs=1, num_steps=1)


def batch(images: Tensor, mask: Tensor) -> Batch:
    ones = torch.ones(images.shape[0], 1, *images.shape[2:])
    return Batch(image=images, labels=torch.ones(images.shape[0], 1), inside=ones, rgb=images, mask=mask)


def native(key: str) -> str:
    """deeplab-pytorch's name of a tensor -> ours."""
    key = key.removeprefix("base.")
    return key.replace("aspp.c", "head.") if key.startswith("aspp.") else f"backbone.{key}"


@pytest.fixture(scope="module")
def released() -> DeepLab:
    backbone = build_backbone("resnet101_caffe", input_space="caffe")
    return DeepLabV2Config().build(backbone, 21).train()


def fill(net: DeepLab, arrays: dict[str, np.ndarray]) -> None:
    state = net.state_dict()
    for row, key in enumerate(arrays["keys"].tolist()):
        value = set_a(f"deeplab/{key}", state[native(key)].shape, str(arrays["salt"]))
        assert value.ravel()[:4].tolist() == arrays["first4"][row][: value.size].tolist(), key
        state[native(key)].copy_(torch.from_numpy(value))


def test_released_container(released, golden):
    arrays = golden("09_deeplabv2_msc.npz")
    fill(released, arrays)
    images, mask = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["label"]).long()
    counted = {k for k in released.state_dict() if not k.endswith("num_batches_tracked")}
    assert counted == {native(k) for k in arrays["keys"].tolist()}
    assert len(counted) == 528
    released.zero_grad()
    outputs = released(images)
    parts = released.loss(batch(images, mask), START)
    for found, name in zip(outputs, ("100", "050", "075", "max"), strict=True):
        assert (found - torch.from_numpy(arrays[f"out_{name}"])).abs().max() < 2e-5, name
        small = F.interpolate(mask[:, None].float(), found.shape[2:], mode="nearest-exact")[:, 0]
        assert torch.equal(small, torch.from_numpy(arrays[f"label_{name}"]).float()), name
    assert list(parts) == ["seg/1", "seg/0.5", "seg/0.75", "seg/max"]
    assert [part.item() for part in parts.values()] == pytest.approx(arrays["loss_per_output"].tolist(), abs=1e-5)
    total = sum(parts.values())
    assert total.item() == pytest.approx(float(arrays["loss_sum"]), abs=1e-5)
    total.backward()
    parameters = dict(released.named_parameters())
    for key in arrays:
        if key.startswith("grad_"):
            gradient = parameters[native(key.removeprefix("grad_"))].grad.flatten()
            expected = torch.from_numpy(arrays[key])
            sample = gradient[:: max(1, gradient.numel() // 400)]
            assert (sample - expected).abs().max() < 1e-3 * expected.abs().max(), key
    released.eval()
    with torch.inference_mode():
        (fused,) = released(images)
    released.train()
    assert (fused - torch.from_numpy(arrays["eval"])).abs().max() < 2e-5


def test_released_container_with_size_ratio_inputs(released, golden):
    arrays = golden("09_deeplabv2_msc.npz")
    fill(released, arrays)
    older = DeepLab(released.backbone, released.head, DeepLabV2Config(input_resize="size_ratio")).train()
    with torch.inference_mode():
        outputs = older(torch.from_numpy(arrays["x"]))
    for found, name in zip(outputs, ("100", "050", "075", "max"), strict=True):
        assert (found - torch.from_numpy(arrays[f"sizeratio_out_{name}"])).abs().max() < 2e-5, name


def test_released_groups(released):
    groups = {g.name: g for g in released.param_groups()}
    assert {name: len(g.params) for name, g in groups.items()} == {
        "pretrained weights": 104,
        "new weights": 4,
        "new biases": 4,
    }
    rates = {n: (g.lr_multiplier, g.weight_decay) for n, g in groups.items()}
    assert rates == {"pretrained weights": (1, None), "new weights": (10, None), "new biases": (20, 0)}
    optimizer = build_optimizer(released.param_groups(), OptimizerConfig(lr=2.5e-4))
    assert [round(g["lr"], 7) for g in optimizer.param_groups] == [2.5e-4, 2.5e-3, 5e-3]


@pytest.mark.parametrize(
    ("backbone", "config", "num_classes", "expected"),
    [
        ("resnet101_caffe", DeepLabV2Config(), 21, 44_048_532),
        ("resnet101_caffe", DeepLabV2Config(), 81, 48_472_452),
        ("resnet101_caffe", DeepLabV1Config(), 21, 62_446_677),
        ("resnet101_caffe", DeepLabV1Config(kind="linear"), 21, 42_500_160 + 2049 * 21),
        ("vgg16", DeepLabV1Config(), 21, 20_505_429),
        ("vgg16", DeepLabV1Config(), 81, 20_566_929),
        ("vgg16", DeepLabV2Config(hidden=1024), 21, 37_877_652),
        ("vgg16", DeepLabV2Config(hidden=1024), 81, 38_123_652),
    ],
)
def test_parameter_totals(backbone, config, num_classes, expected):
    with torch.device("meta"):
        net = config.build(build_backbone(backbone), num_classes)
    assert sum(p.numel() for p in net.parameters()) == expected
    grouped = [id(p) for g in net.param_groups() for p in g.params]
    learns = [id(p) for p in net.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(learns)
    assert {id(p) for p in net.head.parameters()} <= set(grouped)


def test_feature_sizes_of_a_321_crop():
    with torch.device("meta"):
        net = DeepLabV2Config().build(build_backbone("resnet101_caffe"), 4).train()
        sizes = [tuple(o.shape[2:]) for o in net(torch.empty(1, 3, 321, 321))]
        assert sizes == [(41, 41), (21, 21), (31, 31), (41, 41)]
        assert net.compute_logits(torch.empty(1, 3, 513, 512)).shape[2:] == (65, 65)


@pytest.fixture
def small() -> DeepLab:
    torch.manual_seed(0)
    return DeepLabV2Config(rates=(1, 2, 3)).build(build_backbone("toy", width=8), 5)


def test_aspp_is_a_sum(small):
    features = torch.randn(1, small.head[0].in_channels, 9, 9)
    with torch.no_grad():
        for part in list(small.head)[1:]:
            part.weight.zero_()
        assert torch.equal(small.head(features), small.head[0](features))


def test_training_gives_four_maps_and_eval_their_maximum(small):
    images = torch.randn(2, 3, 50, 41)
    with torch.no_grad():
        *single, fused = small.train()(images)
        assert len(single) == 3
        for logits in single:
            grown = F.interpolate(logits, fused.shape[2:], mode="bilinear")
            assert (fused >= grown).all()
        (alone,) = small.eval()(images)
        assert torch.equal(alone, fused)
        scores = small.scores(images)
    assert scores.shape == (2, 5, 50, 41)
    assert torch.allclose(scores.sum(1), torch.ones(2, 50, 41), atol=1e-5)
    expected = F.interpolate(fused, (50, 41), mode="bilinear").softmax(1)
    assert torch.equal(scores, expected)
    assert isinstance(small, Trainable)
    assert isinstance(small, Segments)


@pytest.mark.parametrize("num_classes", [2, 21, 81])
def test_zero_head_loss_is_four_log_k(num_classes):
    net = DeepLabV1Config(hidden=16).build(build_backbone("toy", width=8), num_classes).train()
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.zero_()
    parts = net.loss(batch(torch.randn(1, 3, 40, 40), torch.zeros(1, 40, 40, dtype=torch.long)), START)
    assert sum(parts.values()).item() == pytest.approx(4 * math.log(num_classes), rel=1e-6)


def test_labels_shrink_to_the_cell_centre():
    mask = torch.full((1, 6, 6), 255)
    mask[0, 1, 1], mask[0, 1, 4] = 1, 2
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0, 0], logits[0, 2, 0, 1] = 4.0, -1.0
    expected = (-4 + math.log(2 + math.exp(4)) + 1 + math.log(2 + math.exp(-1))) / 2
    assert compute_pixel_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_labelled_is_no_loss(small):
    small.train()
    parts = small.loss(batch(torch.randn(1, 3, 32, 32), torch.full((1, 32, 32), 255)), START)
    total = sum(parts.values())
    total.backward()
    assert total.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in small.parameters())
    with pytest.raises(UserError, match="refine"):
        small.loss(batch(torch.randn(1, 3, 32, 32), None), START)


def test_batch_norm_stays_or_learns_as_the_backbone_says():
    for mode, moves in (("frozen", False), ("train", True)):
        torch.manual_seed(0)
        net = DeepLabV2Config().build(build_backbone("resnet18", 8, batch_norm=mode), 3).train()
        optimizer = build_optimizer(net.param_groups(), OptimizerConfig(lr=0.1))
        norm = net.backbone.bn1
        before = [v.clone() for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        for _ in range(2):
            images = torch.randn(2, 3, 33, 33)
            mask = torch.randint(0, 3, (2, 33, 33))
            optimizer.zero_grad()
            sum(net.loss(batch(images, mask), START).values()).backward()
            optimizer.step()
        after = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        assert [not torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [moves] * 4


def test_vgg_biases_may_be_doubled_and_undecayed():
    config = DeepLabV1Config(lr_multipliers=(1, 2, 10, 20), decay_backbone_biases=False)
    with torch.device("meta"):
        caffe = config.build(build_backbone("vgg16"), 21).param_groups()
        l2g = DeepLabV1Config().build(build_backbone("vgg16"), 21).param_groups()
    assert [(g.lr_multiplier, g.weight_decay) for g in caffe] == [(1, None), (2, 0), (10, None), (20, 0)]
    assert [(g.lr_multiplier, g.weight_decay) for g in l2g] == [(1, None), (1, None), (10, None), (20, 0)]


def test_heads_differ_by_kind():
    with torch.device("meta"):
        body = build_backbone("toy")
        seam = DeepLabV1Config(kind="seam", hidden=512, multi_scale_input=False).build(body, 21)
        large = DeepLabV1Config(channel_dropout=False, dropout=0.3).build(body, 21)
        assert len(seam.train()(torch.empty(1, 3, 32, 32))) == 1
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in seam.head.modules()) == 2
    drops = [m for m in large.head.modules() if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d))]
    assert [type(m) for m in drops] == [torch.nn.Dropout] * 2
    assert {m.p for m in drops} == {0.3}


def test_the_name_picks_the_settings():
    adapter = TypeAdapter(Annotated[Union[tuple(SEGMENTERS.values())], Field(discriminator="name")])  # noqa: UP007
    assert isinstance(adapter.validate_python({"name": "deeplab_v1", "rate": 6}), DeepLabV1Config)
    assert adapter.validate_python({"name": "deeplab_v2", "rates": [3]}).rates == (3,)
    for bad in ({"name": "deeplab_v3"}, {"name": "deeplab_v1", "rates": [6]}, {"name": "deeplab_v2", "rates": []}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


def test_statistics_of_a_short_schedule_are_those_of_its_images() -> None:
    """The paper scale keeps SEAM's momentum; the head of ``small`` has seen its statistics after 700 steps."""
    small = resolve("cam", scale="small").segment
    assert small is not None
    assert isinstance(small.network, DeepLabV1Config)
    assert DeepLabV1Config(kind="seam").norm_momentum == 3e-4
    tracked = {}
    for momentum in (3e-4, small.network.norm_momentum):
        torch.manual_seed(0)
        head = DeepLabV1Config(kind="seam", hidden=8, rate=1, norm_momentum=momentum).build_head(4, 3).train()
        for _ in range(700):
            head(torch.randn(2, 4, 5, 5) + 3)
        torch.manual_seed(1)
        fresh = torch.randn(64, 4, 5, 5) + 3
        values = head[0](fresh)
        mean = values.mean((0, 2, 3))
        tracked[momentum] = float(((head[1].running_mean - mean).abs() / values.std((0, 2, 3))).max().detach())
    assert tracked[small.network.norm_momentum] < 0.05 < tracked[3e-4]
