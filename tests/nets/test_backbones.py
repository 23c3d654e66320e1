# SPDX-License-Identifier: Apache-2.0
"""The backbones one by one: the released ResNet-50 of IRN, variants, refusals; see also test_backbone_contract.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.golden_rules import fill_set_b, set_b, set_b_input
from wsss_ray.config import UserError
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import NORMS, Backbone
from wsss_ray.nets.groups import group_parameters
from wsss_ray.nets.resnet_caffe import convert_to_caffe
from wsss_ray.nets.weights import load_weights


def test_toy_repeats_to_the_bit():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        net = build_backbone("toy", width=16).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(2, 3, 40, 40))["out"].square().mean().backward()
            optimizer.step()
        results.append(net.state_dict())
    assert all(torch.equal(a, results[1][k]) for k, a in results[0].items())
    assert not any(m.training for m in net.modules() if isinstance(m, NORMS))


@pytest.mark.parametrize("batch_norm", ["affine", "frozen"])
def test_a_feature_of_the_toy_sees_its_receptive_field_alone(batch_norm):
    """Pixels that change in one corner reach 64 pixels at most at output stride 8: what is erased stays local."""
    torch.manual_seed(0)
    net = build_backbone("toy", batch_norm=batch_norm)
    load_weights(net, "toy_pretrained")
    net.train()
    images = torch.randn(2, 3, 256, 256)
    changed = images.clone()
    changed[0, :, :40, :40] = 5 * torch.randn(3, 40, 40)
    with torch.no_grad():
        before, after = net(images), net(changed)
    for tap, stride in net.strides.items():
        moved = (before[tap] != after[tap]).any(1)
        reached = (40 + 64) // stride + 1
        assert moved[0, :2, :2].any()
        assert not moved[0, reached:].any(), tap
        assert not moved[0, :, reached:].any(), tap
        assert not moved[1].any(), tap


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: build_backbone("resnet39"), "known: resnet38"),
        (lambda: build_backbone("toy", 4), "allowed: 8, 16"),
        (lambda: build_backbone("resnet50", 4), "allowed: 16, 8, 32"),
        (lambda: build_backbone("resnet50_caffe", 4), "resnet50_caffe .* allowed: 8, 16, 32"),
        (lambda: build_backbone("vgg16", 32), "allowed: 8, 16"),
        (lambda: build_backbone("squeezenet", 32), "allowed: 16, 8"),
        (lambda: build_backbone("toy", colour=1), "known: width, batch_norm"),
        (lambda: build_backbone("resnet50", depth=18), "no option 'depth'"),
        (lambda: build_backbone("resnet50", freeze_through="layer5"), "allowed: none, stem"),
        (lambda: build_backbone("squeezenet", freeze_through=10), "fires 2 to 9"),
    ],
)
def test_refusals_name_the_allowed(call, says):
    with pytest.raises(UserError, match=says), torch.device("meta"):
        call()


@pytest.fixture(scope="module")
def irn(golden):
    arrays = golden("b07_irn_resnet50_rule.npz")
    net = build_backbone("resnet50", freeze_through="layer2").train()
    fill_set_b(net, str(arrays["rule_prefix"]), float(arrays["gain"]), under="resnet50.")
    images = torch.from_numpy(set_b_input("image", arrays["input_shape"], str(arrays["rule_prefix"])))
    return arrays, net, images


def test_irn_stages(irn):
    arrays, net, images = irn
    with torch.inference_mode():
        taps = net(images)
    for tap, name, every in (
        ("low", "S1_every8ch", 8),
        ("conv4", "S2_every16ch", 16),
        ("conv5", "S3_every32ch", 32),
        ("out", "S4_every64ch", 64),
    ):
        assert (taps[tap][:, ::every] - torch.from_numpy(arrays[name])).abs().max() < 2e-5, name


def test_irn_gradients_reach_layer3_and_layer4_only(irn):
    """In double precision: in single, an activation next to 0 may fall on either side of ReLU, and slopes differ."""
    arrays, net, images = irn
    prefix = str(arrays["rule_prefix"])
    num_classes = arrays["train_label"].shape[1]
    weight = torch.from_numpy(set_b("classifier.weight", (num_classes, 2048, 1, 1), prefix, float(arrays["gain"])))
    weight = weight.double().requires_grad_()
    net = copy.deepcopy(net).double()
    logits = F.conv2d(F.adaptive_avg_pool2d(net(images.double())["out"], 1), weight)[:, :, 0, 0]
    assert (logits - torch.from_numpy(arrays["train_logits"])).abs().max() < 2e-5
    loss = F.multilabel_soft_margin_loss(logits, torch.from_numpy(arrays["train_label"]).double())
    assert loss.item() == pytest.approx(float(arrays["train_loss"]), abs=1e-6)
    loss.backward()
    found = {f"resnet50.{k}": p.grad is not None and bool(p.grad.any()) for k, p in net.named_parameters()}
    expected = dict(zip(arrays["params"].tolist(), arrays["param_has_grad"].tolist(), strict=True))
    assert found == {k: v for k, v in expected.items() if k.startswith("resnet50.")}
    samples = {
        "grad_classifier": weight.grad[:, ::32, 0, 0],
        "grad_layer3_0_conv1": net.layer3[0].conv1.weight.grad[::16, ::16, 0, 0],
        "grad_layer4_2_bn3_weight": net.layer4[2].bn3.weight.grad[::16],
    }
    for name, gradient in samples.items():
        assert (gradient - torch.from_numpy(arrays[name])).abs().max() < 1e-7, name


def test_irn_freezing_holds_through_a_step():
    torch.manual_seed(0)
    net = build_backbone("resnet18", freeze_through="layer2").train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for g in group_parameters(net) for p in g.params], 0.1, weight_decay=0.1)
    net(torch.randn(2, 3, 33, 33))["out"].square().mean().backward()
    optimizer.step()
    for key, value in net.state_dict().items():
        learns = key.startswith(("layer3", "layer4")) and "running" not in key and "num_batches" not in key
        assert torch.equal(value, before[key]) != learns, key


def test_wholly_frozen_net_has_no_group():
    with torch.device("meta"):
        net = build_backbone("resnet18", freeze_through="layer4").train()
    assert group_parameters(net) == []
    assert not any(m.training for m in net.layer4.modules())


def test_stride_sits_where_the_variant_says():
    with torch.device("meta"):
        torchvision, caffe = build_backbone("resnet50"), build_backbone("resnet50_caffe")
    first = torchvision.layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))
    block = caffe.layer3.block1
    assert (block.reduce.conv.stride, block.conv3x3.conv.stride) == ((2, 2), (1, 1))
    assert [m.conv3x3.conv.dilation[0] for m in (caffe.layer4.block1, caffe.layer5.block1, caffe.layer5.block3)] == [
        2,
        4,
        4,
    ]
    assert {m.dilation for m in torchvision.modules() if isinstance(m, torch.nn.Conv2d)} == {(1, 1)}


def test_caffe_stage_ignores_odd_pixels():
    """A 1x1 with stride 2 sees every other cell only; a 3x3 with stride 2 sees them all."""
    torch.manual_seed(0)
    caffe, torchvision = build_backbone("resnet50_caffe").eval().layer3[0], build_backbone("resnet50").eval().layer2[0]
    x = torch.randn(1, 256, 9, 9)
    other = x.clone()
    other[:, :, 1::2], other[:, :, :, 1::2] = 0, 0
    with torch.inference_mode():
        assert torch.equal(caffe(x), caffe(other))
        assert not torch.allclose(torchvision(x), torchvision(other))


def test_caffe_ceil_pool_and_sizes():
    with torch.device("meta"):
        net = build_backbone("resnet50_caffe")
        sides = [net(torch.empty(1, 3, s, s))["out"].shape[2] for s in (321, 240, 160, 512, 513)]
    assert sides == [41, 31, 21, 65, 65]


def test_caffe_input_space():
    rgb = torch.tensor([[10.0, 20.0, 30.0]]) / 255
    normalised = (rgb - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    found = convert_to_caffe(normalised.view(1, 3, 1, 1)).flatten().tolist()
    assert found == pytest.approx([30 - 104.008, 20 - 116.669, 10 - 122.675], abs=1e-4)
    torch.manual_seed(0)
    net = build_backbone("resnet50_caffe").eval()
    images = torch.randn(1, 3, 33, 33)
    with torch.inference_mode():
        expected = net(images)["low"]
        net.input_space = "caffe"
        assert torch.allclose(net(convert_to_caffe(images))["low"], expected)


def test_vgg_variants():
    with torch.device("meta"):
        floor, ceil = (
            build_backbone("vgg16"),
            build_backbone("vgg16", ceil_pool=True, avg_pool=True, num_frozen_convs=4),
        )
        assert sum(p.numel() for p in floor.parameters()) == 14_714_688
        assert floor(torch.empty(1, 3, 321, 321))["out"].shape[2:] == (41, 41)
        assert ceil(torch.empty(1, 3, 321, 321))["out"].shape[2:] == (41, 41)
        assert floor(torch.empty(1, 3, 64, 64))["out"].shape[2:] == (8, 8)
        assert ceil(torch.empty(1, 3, 64, 64))["out"].shape[2:] == (9, 9)
    assert len(ceil.frozen()) == 8
    assert [c.dilation[0] for c in floor.features if isinstance(c, torch.nn.Conv2d)] == [1] * 10 + [2] * 3


def test_squeezenet_unit_taps_are_the_same_taps_divided() -> None:
    torch.manual_seed(0)
    plain = build_backbone("squeezenet", 8).eval()
    unit = build_backbone("squeezenet", 8, unit_taps=True).eval()
    unit.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, given = unit(images), plain(images)
    divisors = {name: float((given[name].sum() / found[name].sum()).round()) for name in given}
    assert divisors == {"low": 240, "conv4": 190, "conv5": 54, "out": 45}


def test_squeezenet_variants():
    with torch.device("meta"):
        published, dense = build_backbone("squeezenet", padded=False), build_backbone("squeezenet", 8)
        assert sum(p.numel() for p in dense.parameters()) == 735_424
        assert published(torch.empty(1, 3, 224, 224))["out"].shape[2:] == (13, 13)
        assert build_backbone("squeezenet", 8, padded=False)(torch.empty(1, 3, 224, 224))["out"].shape[2:] == (27, 27)
        some = build_backbone("squeezenet", freeze_through=3)
    assert dense.features[12].expand3x3.dilation == (2, 2)
    assert dense.features[10].expand3x3.dilation == (1, 1)
    assert len(some.frozen()) == 2 + 2 * 6


@torch.inference_mode()
def test_padding_lines_cells_up_with_the_image():
    """A bright dot in the middle of a cell's patch answers most in that cell (padded), not beside it."""
    torch.manual_seed(0)
    net = build_backbone("squeezenet", 8).eval()
    plain = torch.zeros(1, 3, 129, 129)
    for row, column in ((2, 2), (8, 13), (14, 5)):
        dotted = plain.clone()
        dotted[:, :, 8 * row, 8 * column] = 40.0
        moved = (net(dotted)["conv4"] - net(plain)["conv4"]).abs().sum(1)[0]
        mass = moved / moved.sum()
        centre = [(mass.sum(1 - axis) * torch.arange(17.0)).sum().item() for axis in (0, 1)]
        assert centre == pytest.approx([row, column], abs=0.5)


def test_base_class_states_its_contract():
    with pytest.raises(TypeError, match="forward"):
        Backbone()(torch.zeros(1))
