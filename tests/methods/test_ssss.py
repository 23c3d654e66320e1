# SPDX-License-Identifier: Apache-2.0
"""SSSS: golden numbers of the released code, hand-worked cases, behaviour, and the contract of a localizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden_rules import set_b, set_b_input
from tests.methods.contract import Case, check_localizer, make_batch
from tests.methods.released_names import SSSS_NAMES, rename_key
from wsss_ray.contracts import IGNORE, Batch, Progress, Segments
from wsss_ray.methods.layers import spatial_mean
from wsss_ray.methods.ssss.config import SSSSConfig
from wsss_ray.methods.ssss.decoder import (
    DecoderASPP,
    SkipAndCue,
    apply_stochastic_gate,
    apply_test_gate,
    draw_keep_mask,
)
from wsss_ray.methods.ssss.labels import choose_planes, make_pseudo_labels
from wsss_ray.methods.ssss.losses import balanced_loss, focal_penalty, pool_by_masks, score_classes
from wsss_ray.methods.ssss.network import SingleStageNetwork
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone

Golden = Callable[[str], dict[str, np.ndarray]]
EARLY = Progress(epoch=4, step=40, num_epochs=20, num_steps=200)
LATE = Progress(epoch=5, step=50, num_epochs=20, num_steps=200)
SMALL = SSSSConfig(width=16, skip_channels=4, dilations=(1, 2, 3), pamr_iterations=3, pamr_dilations=(1, 2))
CLOSE = {"rtol": 0, "atol": 2e-5}


class Taps(Backbone):
    """A backbone that is only its channel counts: decoders are fed with given taps."""

    def __init__(self, low: int, out: int) -> None:
        super().__init__()
        self.channels, self.strides = {"low": low, "out": out}, {"low": 4, "out": 8}


def tiny() -> Backbone:
    return build_backbone("toy", width=8)


def sizes(text: Any) -> list[int]:
    """A shape as the files write it."""
    return [int(number) for number in str(text).strip("()[]").split(",") if number.strip()]


def load_rule(model: nn.Module, arrays: dict[str, Any], names: dict[str, str], strip: str = "") -> None:
    """Fill the parameters and statistics that the file lists; ``strip`` is cut off the names here."""
    state = model.state_dict()
    prefix, gain = str(arrays["rule_prefix"]), float(arrays["gain"])
    filled = set()
    for key, shape in zip(arrays["rule_keys"], arrays["rule_shapes"], strict=True):
        target = rename_key(names, str(key)).removeprefix(strip)
        value = torch.from_numpy(set_b(str(key), sizes(shape), prefix, gain))
        assert state[target].shape == value.shape, target
        state[target].copy_(value)
        filled.add(target)
    assert {name for name, _ in model.named_parameters() if ".idle." not in name} <= filled


def decoder(arrays: dict[str, Any], config: Any, names: dict[str, str]) -> tuple[SingleStageNetwork, Tensor, Tensor]:
    """The method's decoder with the file's weights, and its two inputs."""
    prefix = str(arrays["rule_prefix"])
    low = torch.from_numpy(set_b_input("low", arrays["low_shape"].tolist(), prefix, 1.0))
    high = torch.from_numpy(set_b_input("high", arrays["high_shape"].tolist(), prefix, 1.0)).abs()
    num_classes = next(
        sizes(s)[0]
        for k, s in zip(arrays["rule_keys"], arrays["rule_shapes"], strict=True)
        if k == "last_conv.8.weight"
    )
    model = config.build(Taps(low.shape[1], high.shape[1]), num_classes)
    load_rule(model, arrays, names)
    return model, low, high


def assert_close(actual: Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


def still(num_classes: int) -> SingleStageNetwork:
    """A model whose losses are called with given logits."""
    return SMALL.model_copy(update={"pamr_iterations": 10, "pamr_dilations": (1, 2, 4, 8, 12, 24)}).build(
        tiny(), num_classes
    )  # type: ignore[return-value]


def given_batch(arrays: dict[str, np.ndarray]) -> Batch:
    rgb = torch.from_numpy(arrays["img_u8"]).permute(0, 3, 1, 2).float() / 255
    return Batch(rgb, torch.from_numpy(arrays["label"]).float(), torch.ones_like(rgb[:, :1]), rgb)


# ---------------------------------------------------------------------------------------------------- golden numbers


def test_golden_gate(golden: Golden) -> None:
    file = golden("b11_ssss_gate.npz")
    deep, shallow = (torch.from_numpy(file[key]).requires_grad_() for key in ("x_deep", "x_shallow"))
    psi = float(file["psi"])
    out = apply_stochastic_gate(deep, shallow, psi, torch.from_numpy(file["keep_mask"]).float())
    assert_close(out, file["train_out"], 1e-6)
    (out * torch.from_numpy(file["cot"])).sum().backward()
    assert_close(deep.grad, file["grad_deep"], 1e-6)
    assert_close(shallow.grad, file["grad_shallow"], 1e-6)
    assert_close(apply_test_gate(deep, shallow, psi), file["eval_out"], 1e-6)


def test_golden_scores_and_losses(golden: Golden) -> None:
    file = golden("b11_ssss_scores_losses.npz")
    batch = given_batch(file)
    model = still(file["label"].shape[1])
    for stage, progress in (("pre", Progress(0, 0, 24, 100)), ("full", Progress(20, 80, 24, 100))):
        z = torch.from_numpy(file["z"]).requires_grad_()
        parts = model.loss_of_logits(z, batch, progress)
        loss = parts["cls"] + parts.get("seg", 0)
        loss.backward()
        assert loss.item() == pytest.approx(float(file[f"loss_{stage}"]), abs=1e-6)
        assert parts["cls"].item() == pytest.approx(float(file["loss_cls"]), abs=1e-6)
        assert_close(z.grad, file[f"grad_z_{stage}"], 1e-8)
    assert parts["seg"].item() == pytest.approx(float(file["loss_mask_mean"]), abs=1e-6)
    scores, masks = score_classes(z.detach())
    assert_close(scores, file["y_scores"], 5e-6)
    assert_close(scores, file["test_scores"], 5e-6)
    size = batch.image.shape[2:]
    enlarged = nn.functional.interpolate(masks[:1], size=size, mode="bilinear", align_corners=True)
    assert_close(enlarged[0, 0], file["test_mask_bg_img0"], 5e-6)
    target = model.make_pseudo_masks(masks, batch)
    assert (target.numpy() != file["pseudo"]).sum() <= 1
    zs = nn.functional.interpolate(
        nn.functional.pad(z.detach(), (0, 0, 0, 0, 1, 0), value=1.0), size=size, mode="bilinear", align_corners=True
    )
    assert_close(
        balanced_loss(zs, torch.from_numpy(file["pseudo"]).long(), batch.labels), file["loss_mask_per_image"], 1e-6
    )


def test_golden_refined_planes(golden: Golden) -> None:
    from wsss_ray.refine.pamr import refine_with_pamr

    file = golden("b11_ssss_scores_losses.npz")
    batch = given_batch(file)
    _, masks = score_classes(torch.from_numpy(file["z"]))
    guide = nn.functional.interpolate(batch.rgb, size=masks.shape[2:], mode="bilinear", align_corners=True)
    assert_close(guide, file["pamr_image"], 1e-6)
    planes, real = choose_planes(batch.labels)
    chosen = torch.stack([mask[index] for mask, index in zip(masks, planes, strict=True)])
    refined = refine_with_pamr(guide, chosen)
    refined = nn.functional.interpolate(refined, size=batch.image.shape[2:], mode="bilinear", align_corners=True)
    for image in range(len(refined)):
        # the file lists an image's planes in no particular order
        mine, theirs = refined[image][real[image]], torch.from_numpy(file["refined_dec"][image])
        apart = (mine[:, None] - theirs[None]).abs().amax(dim=(2, 3))
        assert apart.amin(dim=0).max() < 5e-6
        assert apart.amin(dim=1).max() < 5e-6


def test_golden_corners(golden: Golden) -> None:
    file = golden("b11_ssss_scores_losses.npz")
    index = make_pseudo_labels(torch.from_numpy(file["corner_q"]))
    onehot = torch.stack([index == plane for plane in range(file["corner_q"].shape[1])], dim=1)
    assert np.array_equal(onehot.float().numpy(), file["corner_pseudo"])
    assert_close(focal_penalty(torch.from_numpy(file["focal_x"])), file["focal_val"], 2e-6)


def test_golden_aspp(golden: Golden) -> None:
    file = golden("b12_ssss_aspp_rule.npz")
    x = torch.from_numpy(file["x"])
    model = DecoderASPP(x.shape[1], 256)
    load_rule(
        model,
        file,
        {k.removeprefix("aspp."): v for k, v in SSSS_NAMES.items() if k.startswith("aspp.")},
        "context.",
    )
    model.dropout.p = 0.0
    model.train()
    for k, branch in enumerate(model.branches, start=1):
        assert_close(branch(x)[:, ::64], file[f"branch_aspp{k}_every64ch"], 2e-5)
    assert_close(model.image(spatial_mean(x, keepdim=True))[:, ::64], file["branch_global_avg_pool_every64ch"], 2e-5)
    assert_close(model(x)[:, ::32], file["out_every32ch"], 2e-5)


def test_golden_decoder_eval(golden: Golden) -> None:
    file = golden("b12_ssss_decoder_rule.npz")
    model, low, high = decoder(file, SSSSConfig(), SSSS_NAMES)
    model.eval()
    with torch.no_grad():
        context = model.context(high)
        shallow, deep = model.coupling(low, context)
        logits = model.decode(low, high)
        coupling = model.coupling
        assert_close(context[:, ::32], file["eval_aspp_every32ch"], 2e-5)
        assert_close(coupling.skip(low)[:, ::12], file["eval_skip_every12ch"], 2e-5)
        assert_close(coupling.cue(deep).amax((2, 3)), file["eval_gci_attr"], 2e-5)
        assert_close(deep[:, ::32], file["eval_deep_every32ch"], 2e-5)
        assert_close(shallow[:, ::32], file["eval_gci_every32ch"], 2e-5)
        assert_close(apply_test_gate(deep, shallow, 0.3)[:, ::32], file["eval_gate_every32ch"], 2e-5)
        assert_close(logits, file["eval_logits"], 2e-5)
        assert_close(model.pool(logits)[0], file["eval_scores"], 2e-5)


def test_golden_decoder_train(golden: Golden) -> None:
    file = golden("b12_ssss_decoder_rule.npz")
    model, low, high = decoder(file, SSSSConfig(context_dropout=0.0, head_dropout=(0.0, 0.0)), SSSS_NAMES)
    model.train()
    shape = (low.shape[0], 256, *low.shape[2:])
    bits = np.unpackbits(file["train_keep_mask_bits"])[: math.prod(shape)]
    logits = model.decode(low, high, torch.from_numpy(bits.reshape(shape)).float())
    scores, _ = model.pool(logits)
    labels = torch.zeros_like(scores)
    labels[0, 3] = labels[1, 7] = 1
    loss = nn.functional.multilabel_soft_margin_loss(scores, labels)
    loss.backward()
    assert_close(logits, file["train_logits"], 2e-5)
    assert_close(scores, file["train_scores"], 2e-5)
    assert loss.item() == pytest.approx(float(file["train_loss_cls"]), abs=2e-6)
    coupling, head, context = model.coupling, model.head, model.context
    assert_close(coupling.merge[1].running_mean, file["train_running_mean_fc8_x"], 2e-5)
    assert_close(coupling.merge[1].running_var, file["train_running_var_fc8_x"], 2e-5)
    assert_close(head[8].weight.grad[:, ::16, 0, 0], file["train_grad_head_last_weight"], 1e-7)
    assert_close(head[8].bias.grad, file["train_grad_head_last_bias"], 1e-7)
    assert_close(context.fuse[1].weight.grad, file["train_grad_aspp_conv1_bn_gamma"], 1e-7)
    assert_close(coupling.skip[0].weight.grad[:, ::16, 0, 0], file["train_grad_skip_weight"], 1e-7)
    for layer in context.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert bool((layer.running_mean == 0).all())
            assert bool((layer.running_var == 1).all())


# ---------------------------------------------------------------------------------------------------- worked by hand


def test_penalty_by_hand() -> None:
    shares = torch.tensor([0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0])
    known = [-4.605170, -4.496344, -3.795832, -2.412148, -1.609103, -0.568297, -0.084168, -0.000094, 0.0]
    assert focal_penalty(shares).tolist() == pytest.approx(known, abs=1.5e-6)


def test_zero_logits_by_hand() -> None:
    num = 20
    scores, masks = score_classes(torch.zeros(1, num, 3, 4))
    share = 1 / (num + math.e)
    assert masks[0, 1, 0, 0].item() == pytest.approx(share, abs=1e-6)
    assert masks[0, 0, 0, 0].item() == pytest.approx(math.e * share, abs=1e-6)
    assert scores[0, 0].item() == pytest.approx(-2.549776, abs=2e-6)
    labels = torch.zeros(1, num)
    labels[0, 3] = 1
    assert nn.functional.binary_cross_entropy_with_logits(scores, labels).item() == pytest.approx(0.202688, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, -2.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_constant_logits_pool_to_a_share_of_them(value: float, size: tuple[int, int]) -> None:
    num = 20
    share = math.exp(value) / (num * math.exp(value) + math.e)
    logits = torch.full((1, num, *size), value)
    pooled = pool_by_masks(logits, torch.full_like(logits, share))
    area = size[0] * size[1]
    assert pooled[0, 0].item() == pytest.approx(value * area * share / (1 + area * share), abs=1e-6)
    assert score_classes(logits)[0][0, 0].item() == pytest.approx(
        value * area * share / (1 + area * share) + (1 - share) ** 3 * math.log(0.01 + share), abs=1e-5
    )


def test_background_logit_is_fixed() -> None:
    logits = torch.randn(2, 4, 5, 6)
    assert not torch.allclose(score_classes(logits)[0], score_classes(logits + 1)[0], atol=1e-2)
    model = SMALL.build(tiny(), 4).eval()
    evidence = model.evidence(torch.randn(2, 3, 32, 32))
    assert bool((evidence[:, -1] == 1).all())
    assert evidence.softmax(dim=1)[:, :-1].shape == model.maps(torch.randn(2, 3, 32, 32)).shape


def test_pseudo_label_rules_by_hand() -> None:
    planes = torch.tensor(
        [
            [0.9, 0.64, 0.63, 0.1, 0.1, 0.0],
            [0.0, 0.31, 0.5, 0.3, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.3, 0.2],
        ],
        dtype=torch.float64,
    )
    # thresholds .63, .30 and .20, and what stands exactly at one claims nothing
    assert make_pseudo_labels(planes[None, :, None])[0, 0].tolist() == [0, IGNORE, 1, IGNORE, 2, IGNORE]


def test_absent_classes_never_appear() -> None:
    batch = make_batch(5, size=33)
    batch.labels[:] = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
    masks = torch.rand(2, 6, 9, 9)
    masks[:, 5] = 10
    target = SMALL.build(tiny(), 5).make_pseudo_masks(masks, batch)
    assert set(target[0].unique().tolist()) <= {0, 1, IGNORE}
    assert set(target[1].unique().tolist()) <= {0, 2, 4, IGNORE}
    assert bool((target[batch.inside[:, 0] == 0] == IGNORE).all())
    assert len(set(target.unique().tolist()) - {IGNORE}) > 1


def test_labelled_planes() -> None:
    planes, real = choose_planes(torch.tensor([[0.0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]))
    assert planes.tolist() == [[0, 2, 4], [0, 1, 0], [0, 0, 0]]
    assert real.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert choose_planes(torch.zeros(2, 3))[0].tolist() == [[0], [0]]


def test_balance_by_hand() -> None:
    target = torch.full((1, 10, 8), IGNORE)
    target.view(-1)[:30] = 0
    target.view(-1)[30:40] = 1
    logits = torch.zeros(1, 2, 10, 8)
    # weights 10/41 and 30/41, entropy ln 2, mean over all 80 pixels
    expected = (30 * 10 / 41 + 10 * 30 / 41) * math.log(2) / 80
    assert balanced_loss(logits, target, torch.ones(1, 1)).item() == pytest.approx(expected, abs=1e-7)
    doubled = torch.cat([target, torch.full_like(target, IGNORE)], dim=1)
    half = balanced_loss(torch.zeros(1, 2, 20, 8), doubled, torch.ones(1, 1))
    assert half.item() == pytest.approx(expected / 2, abs=1e-7)


def test_image_gate() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, 0, 0] = 1
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.ones(1, 2)
    assert balanced_loss(logits, target, labels).item() == 0
    target[0, 3, 3] = 2
    assert balanced_loss(logits, target, labels).item() > 0
    target[target == 0] = IGNORE
    assert balanced_loss(logits, target, labels).item() == 0


# ---------------------------------------------------------------------------------------------------- behaviour


def test_gate_behaviour() -> None:
    torch.manual_seed(0)
    deep, shallow = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    lifted = (deep - 0.3 * shallow) / 0.7
    total = torch.zeros_like(deep)
    for _ in range(4000):
        out = apply_stochastic_gate(deep, shallow, 0.3, draw_keep_mask(deep, 0.3))
        total += out
    assert bool((torch.isclose(out, lifted) | torch.isclose(out, shallow)).all())
    assert (total / 4000 - deep).abs().max() < 0.12
    assert (total / 4000 - apply_test_gate(deep, shallow, 0.3)).abs().max() > 0.3
    assert torch.equal(apply_test_gate(deep, shallow, 0.3, "expectation"), deep)
    model = SMALL.build(tiny(), 3).train()
    for num in (2, 3, 1):
        assert model.foreground(torch.randn(num, 3, 32, 40)).shape == (num, 3, 8, 10)


def test_keep_is_drawn_for_every_element() -> None:
    keep = draw_keep_mask(torch.zeros(4, 16, 10, 10), 0.3)
    assert keep.mean().item() == pytest.approx(0.7, abs=0.03)
    assert not any(bool((keep == keep.roll(1, dim)).all()) for dim in range(4))
    assert bool((keep.mean(dim=(2, 3)) < 1).all())
    assert bool((keep.mean(dim=1) > 0).all())


def test_warm_up_and_gradients() -> None:
    model = SMALL.build(tiny(), 4).train()
    batch = make_batch(4, size=40)
    assert "seg" not in model.loss(batch, EARLY)
    for _ in range(10):
        parts = model.loss(batch, LATE)
    assert {"cls", "seg"} <= set(parts)
    z = torch.randn(2, 4, 10, 10, requires_grad=True)
    scores, masks = model.pool(z)
    assert not model.make_pseudo_masks(masks, batch).requires_grad


def test_segmentation_loss_reaches_the_logits_only_through_the_entropy() -> None:
    model = still(3)
    torch.manual_seed(0)
    batch = make_batch(3, num=1, size=29)
    batch.labels[:] = torch.tensor([[1.0, 0, 0]])
    z = torch.full((1, 3, 8, 8), -3.0)
    z[0, 0, 2:6, 2:6] = 6.0
    z.requires_grad_()
    parts = model.loss_of_logits(z, batch, LATE)
    (gradient,) = torch.autograd.grad(parts["seg"], z, retain_graph=True)
    target = model.make_pseudo_masks(model.pool(z)[1].detach(), batch)
    logits = nn.functional.interpolate(
        nn.functional.pad(z, (0, 0, 0, 0, 1, 0), value=1.0), size=(29, 29), mode="bilinear", align_corners=True
    )
    (alone,) = torch.autograd.grad(balanced_loss(logits, target, batch.labels).mean(), z)
    assert parts["seg"].item() > 0
    assert torch.allclose(gradient, alone)
    assert gradient.abs().max() > 0


def test_one_step_changes_what_it_should() -> None:
    model = SSSSConfig(width=16, skip_channels=4, dilations=(1, 2, 3)).build(tiny(), 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates = [{"params": group.params, "lr": 0.01 * group.lr_multiplier} for group in model.param_groups()]
    optimizer = torch.optim.SGD(rates)
    sum(v for k, v in model.loss(make_batch(3, size=48), LATE).items() if not k.startswith("monitor/")).backward()
    optimizer.step()
    after = model.state_dict()
    for name in after:
        if name.startswith("context.") and "running" in name:
            assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["context.fuse.1.weight"], before["context.fuse.1.weight"])
    assert not torch.equal(after["head.1.running_mean"], before["head.1.running_mean"])
    assert bool((after["context.fuse.1.running_mean"] == 0).all())
    assert bool((after["context.fuse.1.running_var"] == 1).all())


def test_scores_are_of_image_size_and_are_not_cleaned() -> None:
    model = SMALL.build(tiny(), 3).eval()
    images = torch.randn(2, 3, 37, 53)
    with torch.no_grad():
        scores, maps = model.scores(images), model.maps(images)
    assert isinstance(model, Segments)
    assert scores.shape == (2, 4, 37, 53)
    assert maps.shape == (2, 3, 10, 14)
    assert torch.allclose(scores[:, 1:, ::36, ::52], maps[:, :, ::9, ::13], atol=1e-6)
    assert scores[:, 1:].min() > 0


def test_published_size_and_rates() -> None:
    with torch.device("meta"):
        model = SSSSConfig().build(build_backbone("resnet38"), 20)
        more = SSSSConfig().build(build_backbone("resnet38"), 80)
    assert sum(p.numel() for p in model.parameters()) == 137_973_172
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 137_104_500
    assert sum(p.numel() for p in more.parameters()) - 137_973_172 == 60 * 257
    assert sum(p.numel() for p in model.context.parameters()) == 30_739_456
    assert sum(p.numel() for p in model.head.parameters()) == 1_185_812
    assert isinstance(model.coupling, SkipAndCue)
    parts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.coupling.named_children()}
    assert parts["skip"] == 12_384
    assert parts["merge"] == 700_928
    assert parts["cue"] + parts["detail"] + parts["out"] == 263_680
    groups = model.param_groups()
    assert [group.lr_multiplier for group in groups] == [1, 10, 20]
    assert [group.weight_decay for group in groups] == [None, None, 0]
    assert sum(p.numel() for group in groups for p in group.params) == 137_104_500


def test_new_layers_learn_at_the_rate_that_is_asked_for() -> None:
    model = SMALL.model_copy(update={"new_layer_multiplier": 1.0}).build(tiny(), 3)
    groups = {group.name: (group.lr_multiplier, group.weight_decay) for group in model.param_groups()}
    assert groups["new weights"] == (1, None)
    assert groups["new biases"] == (2, 0)
    assert groups["pretrained weights"] == (1, None)


def test_contract_with_the_other_gate_and_ordinary_norms() -> None:
    check_localizer(
        Case(SMALL.model_copy(update={"gate_at_test": "expectation", "context_norms": "train"}), backbone=tiny)
    )
