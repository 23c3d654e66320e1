# SPDX-License-Identifier: Apache-2.0
"""WS-FCN: golden numbers of the released code, the published parameter counts, and every equation's behaviour."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.golden_rules import set_b_input
from tests.methods.contract import Case, check_localizer, make_batch
from tests.methods.released_names import FCA_NAMES, SF2_NAMES, WSFCN_NAMES
from tests.methods.test_ssss import Golden, assert_close, decoder, load_rule, tiny
from wsss_ray.contracts import Progress
from wsss_ray.methods.layers import resize_aligned, spatial_mean
from wsss_ray.methods.ssss.decoder import apply_test_gate
from wsss_ray.methods.wsfcn.config import WSFCNConfig
from wsss_ray.methods.wsfcn.context import FCA, RELEASED_FCA, FCAConfig, Strips
from wsss_ray.methods.wsfcn.fusion import RELEASED_SF2, SF2, Align, OffsetUnit, SF2Config, warp_feature
from wsss_ray.nets import build_backbone

EARLY = Progress(epoch=6, step=60, num_epochs=20, num_steps=200)
LATE = Progress(epoch=7, step=70, num_epochs=20, num_steps=200)
LITTLE: dict[str, Any] = {
    "width": 8,
    "skip_channels": 4,
    "dilations": (1, 2),
    "pamr_iterations": 2,
    "pamr_dilations": (1, 2),
}


# ---------------------------------------------------------------------------------------------------- golden numbers


def test_golden_fca(golden: Golden) -> None:
    file = golden("b13_wsfcn_fca_rule.npz")
    x = torch.from_numpy(file["x"])
    model = FCA(FCAConfig(**RELEASED_FCA), x.shape[1], 256)
    load_rule(model, file, {k.removeprefix("fca."): v for k, v in FCA_NAMES.items()}, "context.")
    model.eval()
    with torch.no_grad():
        strips = [strip(x) for strip in model.strips]
        for k, part in enumerate(strips, start=1):
            assert_close(part[:, ::64], file[f"branch_fca{k}_every64ch"], 2e-5)
        attention = torch.cat([model.attention[0](part) for part in strips]).flatten(1)
        assert_close(attention, file["channel_attention_4x256"], 2e-5)
        assert_close(
            model.image(spatial_mean(x, keepdim=True))[:, ::64], file["branch_global_avg_pool_every64ch"], 2e-5
        )
        common = model.fuse_strips(x)
        assert_close(common[:, ::32], file["before_srm_every32ch"], 2e-5)
        assert_close(model.recalibrate.attention(common), file["srm_map"], 2e-5)
        assert_close(model(x)[:, ::32], file["out_every32ch"], 2e-5)
        impulse = torch.zeros(1, x.shape[1], 31, 33)
        impulse[0, :, 15, 16] = 1
        response = model.strips[1](impulse)[0].abs().sum(dim=0)
        offsets = (response > 1e-6).nonzero() - torch.tensor([15, 16])
        assert sorted(offsets.tolist()) == sorted(file["impulse_branch_k3_nonzero_yx"].tolist())


def test_golden_align(golden: Golden) -> None:
    file = golden("b13_wsfcn_align.npz")
    low, high = (torch.from_numpy(file[key]).requires_grad_() for key in ("low", "high"))
    model = Align(SF2Config(**RELEASED_SF2), low.shape[1], high.shape[1])
    state = {"low.weight": "w_down_l", "high.weight": "w_down_h", "offset.weight": "w_flow_make"}
    model.load_state_dict({name: torch.from_numpy(file[key]) for name, key in state.items()})
    out = model(low, high)
    assert_close(model.compute_offsets(low, high), file["flow"], 1e-5)
    assert_close(out, file["out"], 1e-5)
    (out * torch.from_numpy(file["cot"])).sum().backward()
    assert_close(low.grad, file["grad_low"], 1e-4)
    assert_close(high.grad, file["grad_high"], 1e-4)
    assert_close(model.offset.weight.grad, file["grad_w_flow"], 1e-4)
    height, width = low.shape[2:]
    x_pixel, y_pixel = 2 * width / (width - 1), 2 * height / (height - 1)
    flows = {
        "zero": (0, 0),
        "one_px_x": (x_pixel, 0),
        "one_px_y": (0, y_pixel),
        "unit_x": (1, 0),
        "outside": (3 * width, 0),
    }
    for name, flow in flows.items():
        field = torch.tensor(flow, dtype=torch.float32).view(1, 2, 1, 1).expand(len(low), 2, height, width)
        assert_close(warp_feature(high, field, "released")[:, : file["warp_zero"].shape[1]], file[f"warp_{name}"], 1e-5)


def test_golden_sf2(golden: Golden) -> None:
    file = golden("b13_wsfcn_sf2_rule.npz")
    shape, prefix = file["shape"].tolist(), str(file["rule_prefix"])
    low, high, cot = (torch.from_numpy(set_b_input(key, shape, prefix, 1.0)) for key in ("low", "high", "cot"))
    model = SF2(SF2Config(**RELEASED_SF2, align=False), shape[1], shape[1])
    load_rule(model, file, {k.removeprefix("sf2."): v for k, v in SF2_NAMES.items()}, "coupling.")
    model.eval()
    with torch.no_grad():
        out_low, out_high = model.fuse_streams(low, high)
    assert_close(out_low[:, ::16], file["eval_out_low_every16ch"], 2e-5)
    assert_close(out_high[:, ::16], file["eval_out_high_every16ch"], 2e-5)
    model.train()
    out_low, out_high = model.fuse_streams(low, high)
    ((out_low + 0.5 * out_high) * cot).sum().backward()
    assert_close(out_low[:, ::16], file["train_out_low_every16ch"], 2e-5)
    assert_close(out_high[:, ::16], file["train_out_high_every16ch"], 2e-5)
    assert_close(model.low.first[1].running_mean, file["train_running_mean_bn1h"], 2e-5)
    assert_close(model.high.third[1].running_var, file["train_running_var_bn3v"], 2e-5)
    assert_close(model.low.first[0].weight.grad[::32, ::32], file["train_grad_conv1h"], 2e-4)
    assert_close(model.high.second[0].weight.grad[::32, ::32], file["train_grad_conv2v"], 2e-4)
    assert_close(model.low.third[0].weight.grad[::32, ::32], file["train_grad_conv3h"], 2e-4)
    assert_close(model.high.last[1].weight.grad, file["train_grad_bn4v_weight"], 2e-4)


def test_golden_decoder(golden: Golden) -> None:
    file = golden("b13_wsfcn_decoder_rule.npz")
    model, low, high = decoder(file, WSFCNConfig(profile="released"), WSFCN_NAMES)
    model.eval()
    with torch.no_grad():
        context = model.context(high)
        assert_close(context[:, ::32], file["fca_every32ch"], 2e-5)
        assert_close(model.coupling.align(low, context)[:, ::32], file["align_every32ch"], 2e-5)
        shallow, deep = model.coupling(low, context)
        assert_close(shallow[:, ::32], file["x_s_every32ch"], 2e-5)
        assert_close(deep[:, ::32], file["x_d_every32ch"], 2e-5)
        assert_close(apply_test_gate(deep, shallow, 0.3)[:, ::32], file["gate_every32ch"], 2e-5)
        logits = model.decode(low, high)
        assert_close(logits, file["logits"], 2e-5)
        assert_close(model.pool(logits)[0], file["scores"], 2e-5)


# ---------------------------------------------------------------------------------------------------- published sizes

FROZEN = 868_672
"""ResNet-38's conv1a and b2, and the BatchNorm of its other stages."""
ASPP_BASE = 137_104_500
RELEASED = WSFCNConfig(profile="released")
LEAN = FCAConfig(idle_norms=False)
COUNTS = [
    ("baseline", WSFCNConfig(profile="released", context="aspp", coupling="gci"), ASPP_BASE, "137.10"),
    ("FCA", WSFCNConfig(profile="released", coupling="gci"), 143_527_046, "143.53"),
    (
        "FCA without idle norms",
        WSFCNConfig(profile="released", coupling="gci", fca=LEAN),
        143_524_998,
        "143.52",
    ),
    ("SF2", WSFCNConfig(profile="released", context="aspp"), 140_922_388, "140.92"),
    ("full", RELEASED, 147_344_934, "147.34"),
    ("full without idle norms", WSFCNConfig(profile="released", fca=LEAN), 147_342_886, "147.34"),
    (
        "FCA_MCLM",
        WSFCNConfig(profile="released", coupling="gci", fca=FCAConfig(idle_norms=False, spatial=False)),
        143_524_980,
        "143.52",
    ),
    (
        "summation",
        WSFCNConfig(profile="released", context="aspp", sf2=SF2Config(align=False, combine="sum")),
        140_852_244,
        "140.85",
    ),
    (
        "multiplication",
        WSFCNConfig(profile="released", context="aspp", sf2=SF2Config(align=False)),
        140_852_244,
        "140.85",
    ),
    (
        "concatenation",
        WSFCNConfig(profile="released", context="aspp", sf2=SF2Config(align=False, combine="concat")),
        142_031_892,
        "142.03",
    ),
    ("large conv", WSFCNConfig(profile="released", context="large_conv", coupling="gci"), 157_745_780, "157.75"),
    ("ppm", WSFCNConfig(profile="released", context="ppm", coupling="gci"), 142_025_332, "142.03"),
    ("non-local", WSFCNConfig(profile="released", context="non_local", coupling="gci"), 140_968_564, "140.97"),
]


@pytest.mark.parametrize(
    ("config", "trainable", "published"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS]
)
def test_published_parameter_counts(config: WSFCNConfig, trainable: int, published: str) -> None:
    with torch.device("meta"):
        model = config.build(build_backbone("resnet38"), 20)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.parameters()) == trainable + FROZEN
    assert f"{trainable / 1e6:.2f}" == published


def test_parts_of_the_count() -> None:
    with torch.device("meta"):
        fca = FCA(FCAConfig(**RELEASED_FCA), 4096, 256)
        literal = FCA(FCAConfig(), 4096, 256)
        sf2 = SF2(SF2Config(**RELEASED_SF2), 256, 256)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert [count(strip) for strip in fca.strips] == [2_228_736, 6_685_184, 11_141_632, 15_598_080]
    assert count(fca) == 37_162_002
    assert count(fca.attention) == 131_072
    assert count(fca.recalibrate) == 18
    assert count(sf2.align) == 70_144
    assert count(sf2) == 70_144 + 4_724_736
    # Eq. 1-6 as printed: strips, four pairs of 1x1, a 3x3 embedding, spatial attention
    assert count(literal) == 35_651_584 + 8 * 256**2 + 9 * 1024 * 256 + 512 + 18 == 38_535_698


def test_rates() -> None:
    with torch.device("meta"):
        model = WSFCNConfig(profile="released").build(build_backbone("resnet38"), 20)
    groups = model.param_groups()
    assert [group.lr_multiplier for group in groups] == [1, 20, 40]
    assert [group.weight_decay for group in groups] == [None, None, 0]


def test_profiles() -> None:
    paper, released = WSFCNConfig(), WSFCNConfig(profile="released")
    assert (paper.fca, paper.sf2) == (FCAConfig(), SF2Config())
    assert released.fca == FCAConfig(**RELEASED_FCA)
    assert released.sf2 == SF2Config(**RELEASED_SF2)
    mixed = WSFCNConfig(profile="released", fca={"dilations": (1, 2, 3, 4)})
    assert mixed.fca.dilations == (1, 2, 3, 4)
    assert mixed.fca.shared_attention
    assert WSFCNConfig(profile="released", fca=FCAConfig(dilations=(1, 2, 3, 4))) == mixed
    assert WSFCNConfig.model_validate(mixed.model_dump()) == mixed
    assert WSFCNConfig.model_validate(mixed.model_dump(mode="json")) == mixed
    assert (paper.warmup_epochs, paper.background()) == (7, 0.25)
    with pytest.raises(ValidationError, match="one dilation a kernel"):
        FCAConfig(kernels=(1, 3))
    with pytest.raises(ValidationError, match="large_kernel must be odd"):
        WSFCNConfig(large_kernel=6)
    with pytest.raises(ValidationError, match="kernels must be odd"):
        FCAConfig(kernels=(1, 3, 4, 7))


# ---------------------------------------------------------------------------------------------------- FCA


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 12), (5, 24), (7, 36)])
def test_strips_keep_the_size(size: int, dilation: int) -> None:
    assert Strips(3, 4, size, dilation)(torch.randn(2, 3, 9, 13)).shape == (2, 4, 9, 13)


def test_strips_are_two_separable_kernels() -> None:
    torch.manual_seed(0)
    strips = Strips(1, 1, 3, 2)
    impulse = torch.zeros(1, 1, 11, 11)
    impulse[0, 0, 5, 5] = 1
    with torch.no_grad():
        response = strips(impulse)[0, 0]
        assert sorted((response != 0).nonzero().tolist()) == [[y, x] for y in (3, 5, 7) for x in (3, 5, 7)]
        assert torch.linalg.matrix_rank(response) <= 2
        first, second = strips.column_row[0].weight.flatten(), strips.column_row[1].weight.flatten()
        third, fourth = strips.row_column[0].weight.flatten(), strips.row_column[1].weight.flatten()
        kernel = torch.outer(first.flip(0), second.flip(0)) + torch.outer(fourth.flip(0), third.flip(0))
        assert torch.allclose(response[3:8:2, 3:8:2], kernel, atol=1e-6)
        point = Strips(2, 3, 1)
        x = torch.randn(1, 2, 4, 5)
        assert torch.allclose(point(x)[:, :, 2:3, 1:2], point(x[:, :, 2:3, 1:2]), atol=1e-6)


def test_attention_is_shared_or_not() -> None:
    shared = FCA(FCAConfig(**RELEASED_FCA), 6, 4).eval()
    apart = FCA(FCAConfig(), 6, 4).eval()
    assert len(shared.attention) == 1
    assert len(apart.attention) == 4
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        before = [attention(x) for attention in apart.attention]
        apart.attention[2].of_max.weight += 1
        changed = [not torch.equal(a(x), b) for a, b in zip(apart.attention, before, strict=True)]
        gain = shared.recalibrate(x) / x
        values = shared.attention[0](x)
    assert changed == [False, False, True, False]
    assert bool(((values > 0) & (values < 1)).all())
    assert bool(((gain > 1) & (gain < 2)).all())


def test_sign_of_the_context() -> None:
    x = torch.randn(2, 6, 9, 9)
    torch.manual_seed(0)
    assert FCA(FCAConfig(**RELEASED_FCA), 6, 8).eval()(x).min() < 0
    assert FCA(FCAConfig(), 6, 8).eval()(x).min() >= 0


def test_context_statistics_stay() -> None:
    model = WSFCNConfig(profile="released", **LITTLE).build(tiny(), 3).train()
    parts = model.loss(make_batch(3, size=40), LATE)
    parts["cls"].backward()
    norms = [m for m in model.context.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(bool((m.running_mean == 0).all()) and bool((m.running_var == 1).all()) for m in norms)
    assert model.context.fuse[1].weight.grad.abs().max() > 0
    assert not bool((model.coupling.low.first[1].running_mean == 0).all())


# ---------------------------------------------------------------------------------------------------- SF2


@pytest.mark.parametrize("unit", ["pixel", "released"])
def test_no_offset_is_plain_enlarging(unit: OffsetUnit) -> None:
    feature = torch.randn(2, 3, 10, 16)
    assert torch.allclose(
        warp_feature(feature, torch.zeros(2, 2, 20, 31), unit), resize_aligned(feature, (20, 31)), atol=1e-5
    )


def test_one_pixel_offsets() -> None:
    feature = torch.randn(1, 3, 20, 31)
    flow = torch.zeros(1, 2, 20, 31)
    flow[:, 0] = 1
    moved = warp_feature(feature, flow, "pixel")
    assert torch.allclose(moved[..., :-1], feature[..., 1:], atol=1e-4)
    assert bool((moved[..., -1].abs() < 1e-3).all())
    flow[:, 0] = 2 * 31 / 30
    assert torch.allclose(warp_feature(feature, flow, "released")[..., :-1], feature[..., 1:], atol=1e-4)
    flow[:, 0], flow[:, 1] = 0, 1
    assert torch.allclose(warp_feature(feature, flow, "pixel")[..., :-1, :], feature[..., 1:, :], atol=1e-4)
    flow[:, 0] = 3 * 31
    assert bool((warp_feature(feature, flow, "released") == 0).all())


def test_warp_of_one_position() -> None:
    feature = torch.randn(1, 2, 1, 1)
    assert torch.allclose(warp_feature(feature, torch.zeros(1, 2, 1, 1)), feature)


def test_offsets_of_the_paper_are_never_negative() -> None:
    torch.manual_seed(0)
    low, high = torch.randn(2, 5, 12, 14), torch.randn(2, 4, 6, 7)
    paper = Align(SF2Config(), 5, 4)
    released = Align(SF2Config(**RELEASED_SF2), 5, 4)
    assert paper.compute_offsets(low, high).min() == 0
    assert released.compute_offsets(low, high).min() < 0


def test_released_streams_without_the_product() -> None:
    model = SF2(SF2Config(**RELEASED_SF2, align=False), 4, 4).eval()
    low, high = torch.randn(1, 4, 6, 7), torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        for stream in (model.low, model.high):
            stream.third[1].weight.zero_()
            stream.third[1].bias.zero_()
        out_low, out_high = model.fuse_streams(low, high)
        assert torch.equal(out_low, model.low.last(model.low.first(low)))
        assert torch.equal(out_high, model.high.last(model.high.first(high)))
        model.low, model.high = model.high, model.low
        swapped = model.fuse_streams(high, low)
    assert torch.equal(swapped[0], out_high)
    assert torch.equal(swapped[1], out_low)


def test_streams_of_the_equations() -> None:
    model = SF2(SF2Config(align=False), 4, 6).eval()
    low, high = torch.randn(1, 4, 6, 7), torch.randn(1, 6, 6, 7)
    with torch.no_grad():
        first_low, first_high = model.low.first(low), model.high.first(high)
        out_low, out_high = model(low, high)
        assert torch.equal(out_high, model.high.last(first_high + first_high * first_low))
        assert torch.equal(out_low, model.low.last(first_low + first_high * first_low))
    assert sum(p.numel() for p in model.parameters()) == 6 * (9 * 4 + 3 + 9 * 6 * 3 + 3 * 3)


def test_joins_of_table_2() -> None:
    a, b = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    build = lambda how: SF2(SF2Config(align=False, combine=how), 3, 3)  # noqa: E731
    assert torch.equal(build("product").combine_embeddings(a, b), a * b)
    assert torch.equal(build("sum").combine_embeddings(a, b), a + b)
    concat = build("concat")
    assert torch.equal(concat.combine_embeddings(a, b), concat.concat(torch.cat([a, b], dim=1)))


# ---------------------------------------------------------------------------------------------------- contract


def config_of(profile: Literal["paper", "released"], **changes: Any) -> WSFCNConfig:
    fca = FCAConfig(dilations=(1, 2, 2, 2), **changes.pop("fca", {}))
    return WSFCNConfig(profile=profile, fca=fca, **LITTLE, **changes)


@pytest.mark.parametrize(
    "config",
    [
        config_of("released", fca={"idle_norms": False}),
        config_of("released", context="aspp", sf2=SF2Config(align=False, combine="concat")),
        config_of("released", context="ppm", coupling="gci", context_norms="train"),
    ],
    ids=["released", "concat", "ppm"],
)
def test_contract(config: WSFCNConfig) -> None:
    check_localizer(Case(config, backbone=tiny))


@pytest.mark.parametrize("context", ["large_conv", "non_local", "ppm", "aspp", "fca"])
@pytest.mark.parametrize("coupling", ["sf2", "gci"])
def test_every_pair_learns(context: str, coupling: str) -> None:
    torch.manual_seed(0)
    model = config_of("released", context=context, coupling=coupling).build(tiny(), 3).train()
    parts = model.loss(make_batch(3, size=40), LATE)
    (parts["cls"] + parts["seg"]).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(".idle." in name for name in idle)
    assert bool(idle) == (context == "fca")
    assert {"cls", "seg"} <= set(parts)
    assert "seg" not in model.loss(make_batch(3, size=40), EARLY)


def test_state_has_no_shared_tensors() -> None:
    state = config_of("released").build(tiny(), 3).state_dict()
    places = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(places) == len(set(places))
