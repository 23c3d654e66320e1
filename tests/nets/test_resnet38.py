# SPDX-License-Identifier: Apache-2.0
"""ResNet-38 against the released trunk's numbers, counts, taps and frozen parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.golden_rules import fill_resnet38_set_a, fill_set_b, mxnet_name, set_a, set_b, set_b_input
from wsss_ray.config import UserError
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters
from wsss_ray.nets.resnet38 import BasicBlock, Bottleneck

BLOCKS = ("b4_5", "b5", "b5_1", "b5_2", "b6", "b7")


@pytest.fixture(scope="module")
def trunk() -> Backbone:
    return build_backbone("resnet38").eval()


def stages_of(trunk: Backbone, names: Sequence[str], images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The taps and the named stages' outputs (a block's without its activated input) of one pass."""
    caught: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, out: caught.update({name: out[0] if isinstance(out, tuple) else out})

    hooks = [trunk.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    taps = trunk(images)
    for hook in hooks:
        hook.remove()
    return taps, caught


def statistics(values: Tensor) -> list[float]:
    wide = values.double()
    return [wide.mean().item(), wide.std(correction=0).item(), wide.min().item(), wide.max().item()]


@torch.inference_mode()
def test_matches_released_trunk_set_a(trunk, golden):
    arrays = golden("01_resnet38.npz")
    salt = str(arrays["salt"])
    state = trunk.state_dict()
    names = dict(zip(arrays["recipe_keys"].tolist(), arrays["recipe_torch_key"].tolist(), strict=True))
    assert {mxnet_name(key): key for key in names.values()} == names
    fill_resnet38_set_a(trunk, salt)
    for row, (key, torch_key) in enumerate(names.items()):
        assert state[torch_key].flatten()[:4].tolist() == arrays["recipe_first4"][row].tolist(), key
        total = state[torch_key].double().sum().item()
        assert total == pytest.approx(float(arrays["recipe_sum64"][row]), rel=1e-6, abs=1e-4), key
    assert sorted(names.values()) == arrays["torch_keys"].tolist()
    inner = [name.removeprefix("dbg_").removesuffix("_stats") for name in arrays if name.endswith("_stats")]
    inner = [name for name in inner if not name.startswith("conv") or name == "conv1a"]
    taps, caught = stages_of(trunk, inner, torch.from_numpy(arrays["x"]))
    assert len(caught) == 7
    for name, found in caught.items():
        assert list(found.shape) == arrays[f"dbg_{name}_shape"].tolist()
        step = 8 if name in ("conv1a", "b2_2") else 1
        sample = found[:, ::37, ::step, ::step]
        assert (sample - torch.from_numpy(arrays[f"dbg_{name}_sample"])).abs().max() < 5e-5, name
        assert statistics(found) == pytest.approx(arrays[f"dbg_{name}_stats"].tolist(), abs=5e-5), name
    for name, tap in (("conv4", "conv4"), ("conv5", "conv5"), ("conv6", "out"), ("dbg_b3_2", "low")):
        found = taps[tap]
        assert list(found.shape) == arrays[f"{name}_shape"].tolist()
        sample = arrays["dbg_b3_2_sample" if tap == "low" else f"{name}_every37"]
        assert (found[:, ::37] - torch.from_numpy(sample)).abs().max() < 5e-5
        if tap != "low":
            assert statistics(found) == pytest.approx(arrays[f"{name}_stats"].tolist(), abs=5e-5), name
            mean = torch.from_numpy(arrays[f"{name}_chanmean"])
            assert (found.double().mean((2, 3)) - mean).abs().max() < 5e-5


@torch.inference_mode()
def test_matches_released_trunk_set_b(trunk, golden):
    arrays = golden("b08_resnet38_rule.npz")
    prefix, gain = str(arrays["rule_prefix"]), float(arrays["gain"])
    fill_set_b(trunk, prefix, gain)
    own = dict(zip(arrays["rule_keys"].tolist(), arrays["rule_shapes"].tolist(), strict=True))
    shapes = {k: str(list(v.shape)) for k, v in trunk.state_dict().items() if "num_batches" not in k}
    assert shapes == {k: shape for k, shape in own.items() if not k.startswith(("fc", "gconv"))}
    images = torch.from_numpy(set_b_input("image", arrays["input_shape"], prefix)).double()
    # In float64, so that the rounding of this machine is not added to that of the golden numbers.
    taps, inner = stages_of(copy.deepcopy(trunk).double(), ("conv1a", "b2_2", "b4_5", "b5_2", "b6"), images)
    expected = {
        "conv1a_every8ch": inner["conv1a"][:, ::8, ::4, ::4],
        "b2_every16ch": inner["b2_2"][:, ::16],
        "b4_every32ch": inner["b4_5"][:, ::32],
        "b5_every64ch": inner["b5_2"][:, ::64],
        "b6_every64ch": inner["b6"][:, ::64],
        "low_b3_every16ch": taps["low"][:, ::16],
        "high_every64ch": taps["out"][:, ::64],
        "psa_tap_1024x512_every32ch": taps["conv4"][:, ::32],
        "psa_tap_conv5_every64ch": taps["conv5"][:, ::64],
    }
    for name, found in expected.items():
        assert found.shape == arrays[name].shape
        assert (found - torch.from_numpy(arrays[name])).abs().max() < 5e-5, name
    assert sum(p.numel() for p in trunk.parameters()) == int(arrays["param_count_backbone"])
    trainable = {k for k, p in trunk.named_parameters() if p.requires_grad}
    assert trainable == {k for k in arrays["ktse_trainable"].tolist() if k in dict(trunk.named_parameters())}


def test_counts_and_sizes():
    with torch.device("meta"):
        trunk = build_backbone("resnet38")
        convs = [m for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]
        norms = [m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        sizes = {n: {k: tuple(v.shape[1:]) for k, v in trunk(torch.empty(1, 3, n, n)).items()} for n in (448, 321, 322)}
    assert len(convs) == 43
    assert sum(m.weight.numel() for m in convs) == 105_023_168
    assert len(norms) == 37
    assert sum(m.weight.numel() + m.bias.numel() for m in norms) == 47_744
    assert all(m.bias is None for m in convs)
    assert sum(p.numel() for p in trunk.parameters()) == 105_070_912
    assert sum(p.numel() for p in trunk.frozen() if p.dim() == 4) == 820_928
    assert sizes[448] == {
        "low": (256, 112, 112),
        "conv4": (512, 56, 56),
        "conv5": (1024, 56, 56),
        "out": (4096, 56, 56),
    }
    assert sizes[321]["low"] == (256, 81, 81)
    assert sizes[321]["out"] == (4096, 41, 41)
    assert sizes[322]["low"] == (256, 81, 81)
    assert sizes[322]["out"] == (4096, 41, 41)
    convs_of = {b: [m for m in trunk.get_submodule(b).modules() if isinstance(m, torch.nn.Conv2d)] for b in BLOCKS}
    dilations = {b: [m.dilation[0] for m in convs if m.kernel_size == (3, 3)] for b, convs in convs_of.items()}
    assert dilations == {"b4_5": [1, 1], "b5": [1, 2], "b5_1": [2, 2], "b5_2": [2, 2], "b6": [4], "b7": [4]}
    for side, expected in {240: 30, 280: 35, 320: 40, 360: 45, 400: 50, 500: 63, 750: 94, 1000: 125}.items():
        with torch.device("meta"):
            assert trunk(torch.empty(1, 3, 8, side))["out"].shape[3] == expected
    groups = group_parameters(trunk)
    assert [g.name for g in groups] == ["pretrained weights"]
    assert sum(p.numel() for p in groups[0].params) == 105_023_168 - 820_928


def test_projection_reads_the_activated_input():
    torch.manual_seed(0)
    block = BasicBlock(4, 4, 6).eval()
    with torch.no_grad():
        block.conv_branch2b1.weight.zero_()
        x = torch.randn(1, 4, 5, 5)
        out, active = block(x)
        again, _ = block(torch.where(x < 0, 10 * x, x))
    assert torch.equal(out, again)
    assert (active >= 0).all()


def test_bottleneck_dropout_is_per_channel_and_optional():
    torch.manual_seed(0)
    block = Bottleneck(8, 16, dilation=4, dropout=0.5)
    rates = [m.p for m in block.modules() if isinstance(m, torch.nn.Dropout2d)]
    assert rates == [0.5, 0.5]
    with torch.device("meta"):
        usual, ktse = build_backbone("resnet38"), build_backbone("resnet38", dropout=(0.2, 0.2))
    found = [[m.p for m in net.modules() if isinstance(m, torch.nn.Dropout2d)] for net in (usual, ktse)]
    assert found == [[0.3, 0.3, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2]]


def test_one_step_moves_only_what_learns(trunk):
    fill_resnet38_set_a(trunk)
    trunk.train()
    before = copy.deepcopy({k: v for k, v in trunk.state_dict().items() if not k.startswith(("b4", "b5", "b6", "b7"))})
    optimiser = torch.optim.SGD([p for g in group_parameters(trunk) for p in g.params], 0.01, weight_decay=0.1)
    trunk(torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)))["out"].square().mean().backward()
    optimiser.step()
    trunk.zero_grad()
    after = trunk.state_dict()
    for key, value in before.items():
        learns = key.startswith("b3") and ".conv_" in key
        assert torch.equal(value, after[key]) != learns, key
    assert not trunk.bn7.training
    assert not trunk.b2.training
    assert trunk.b6.dropout_2b1.training
    trunk.eval()


def test_low_is_signed_and_out_is_not(trunk):
    fill_resnet38_set_a(trunk)
    with torch.inference_mode():
        taps = trunk.eval()(torch.randn(1, 3, 17, 19, generator=torch.Generator().manual_seed(1)))
    assert taps["low"].min() < 0
    assert all(taps[name].min() >= 0 for name in ("conv4", "conv5", "out"))


def test_rule_values_are_pinned():
    assert set_a("conv1a_weight", (2, 3, 3, 3)).flatten()[:2].tolist() == pytest.approx([0.31424314, -0.00998937])
    assert set_a("bn7_moving_var", (2,)).tolist() == pytest.approx([1.10624206, 0.99898863])
    assert set_b("bn1.running_var", (2,), "dev:").tolist() == pytest.approx([1.79218280, 1.16456032])
    assert mxnet_name("b5_2.conv_branch2b1.weight") == "res5b2_branch2b1_weight"
    assert mxnet_name("b2.bn_branch2a.running_var") == "bn2a_branch2a_moving_var"


def test_refuses_another_output_stride():
    with pytest.raises(UserError, match="allowed: 8"):
        build_backbone("resnet38", 16)
