# SPDX-License-Identifier: Apache-2.0
"""SMAF: target, student, loss and gradient, any base; against released numbers and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.methods.contract import MIDDLE, Case, TinyBackbone, build, check_localizer, make_batch
from wsss_ray.config import UserError
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.eps import EPSConfig
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.methods.smaf import (
    SMAFConfig,
    append_background,
    denoise_maps,
    make_student_maps,
    reactivate_maps,
    shrink_maps,
)

Golden = Callable[[str], dict[str, np.ndarray]]
BASES = [
    CAMConfig(),
    CAMConfig(style="irn", window=24, window_stride=16),
    EPSConfig(bottleneck=6),
    L2GConfig(patch_size=32),
    L2GConfig(profile="released", patch_size=32),
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: f"{base.name}-{base.profile}")
@pytest.mark.parametrize("profile", ["paper", "released"])
def test_contract(profile: str, base: MethodConfig) -> None:
    check_localizer(Case(SMAFConfig(profile=profile), base))


def test_profiles() -> None:
    paper, released = SMAFConfig(), SMAFConfig(profile="released")
    assert (paper.classification, paper.student, released.classification, released.student) == (
        True,
        "relu",
        False,
        "softmax",
    )
    assert (paper.alpha, paper.threshold, paper.needs, paper.wants_base) == (100, 0.2, {"maps"}, True)
    assert SMAFConfig(profile="released", classification=True).classification


def test_released_step(golden: Golden) -> None:
    arrays = golden("05b_smaf_step.npz")
    labels = torch.from_numpy(arrays["label"])
    num_classes = labels.shape[1]
    crop = arrays["lp"].shape[-1]
    maps = torch.zeros(len(labels), num_classes + 1, crop, crop)
    maps[:, torch.from_numpy(arrays["lp_channels"])] = torch.from_numpy(arrays["lp"])
    # What is stored under the background's index must not be read.
    target = reactivate_maps(denoise_maps(shrink_maps(maps[:, :num_classes]), labels, 0.2))
    scores = torch.from_numpy(arrays["student_logits"]).requires_grad_()
    grown = torch.nn.functional.interpolate(scores, size=target.shape[2:], mode="bilinear", align_corners=True)
    found = make_student_maps(grown, num_classes, "softmax")
    expected = torch.zeros_like(target)
    expected[:, torch.from_numpy(arrays["out_T_channels"])] = torch.from_numpy(arrays["out_T"])
    assert (target - expected).abs().max() <= 1e-5
    assert np.abs(found[:, :, ::2, ::2].detach().numpy() - arrays["out_Q_every2"]).max() <= 1e-5
    # The same through the method, with the given scores as the base's evidence.
    model = build(SMAFConfig(profile="released"), num_classes, base=EPSConfig())
    model.base.evidence = lambda images: scores
    batch = make_batch(num_classes, size=crop)
    batch.labels, batch.maps = labels, maps[:, :num_classes]
    parts = model.loss(batch, MIDDLE)
    assert set(parts) == {"mac"}
    assert parts["mac"].item() / 100 == pytest.approx(float(arrays["out_loss_mac"]), abs=1e-6)
    assert parts["mac"].item() == pytest.approx(float(arrays["out_loss"][0]), abs=1e-5)
    gradient = torch.autograd.grad(parts["mac"], scores)[0].numpy()
    assert np.abs(gradient - arrays["out_grad"]).max() <= 1e-7


def test_target_by_hand() -> None:
    maps = torch.tensor([[[[0.1, 1.0, 0.0, 0.4]], [[0.05, 0.3, 0.0, 0.5]], [[0.9, 0.9, 0.0, 0.9]]]])
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    target = reactivate_maps(denoise_maps(maps, labels, 0.2))
    hand = torch.tensor([[0.5, 1.0, 0.0, 0.8], [0.25, 0.3, 0.0, 1.0], [0.0] * 4, [1.0, 0.2, 1.0, 0.4]])
    assert torch.allclose(target[0, :, 0], hand)
    plain = denoise_maps(maps, labels, 0.2)
    assert torch.equal(plain[0, :2], maps[0, :2])
    assert not plain[0, 2].any()
    assert (plain[0, 3] == 0.2).all()


def test_every_target_pixel_reaches_one() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    target = reactivate_maps(denoise_maps(torch.rand(2, 3, 7, 5), labels, 0.2))
    assert torch.equal(target.amax(dim=1), torch.ones(2, 7, 5))
    assert target.min() >= 0
    assert not target[0, 1].any()
    assert torch.equal(target[1, 3], torch.ones(7, 5))


def test_reactivation_switch_reaches_the_loss() -> None:
    batch = make_batch(3)
    losses = {}
    for on in (True, False):
        model = build(SMAFConfig(reactivation=on, profile="released"), 3, base=EPSConfig()).eval()
        losses[on] = model.loss(batch, MIDDLE)["mac"].item()
        plain = denoise_maps(shrink_maps(batch.maps), batch.labels, 0.2)
        target = reactivate_maps(plain) if on else plain
        grown = torch.nn.functional.interpolate(
            model.evidence(batch.image), size=(12, 12), mode="bilinear", align_corners=True
        )
        assert losses[on] == pytest.approx(100 * ((grown.softmax(dim=1) - target) ** 2).mean().item(), rel=1e-5)
    assert losses[True] != losses[False]


def test_loss_by_hand() -> None:
    # Two channels at one pixel: T = (1, 0.2), Q = softmax(ln 3, 0) = (0.75, 0.25).
    scores = torch.tensor([np.log(3.0), 0.0], dtype=torch.float32).view(1, 2, 1, 1)
    target = reactivate_maps(denoise_maps(torch.ones(1, 1, 1, 1), torch.ones(1, 1), 0.2))
    found = make_student_maps(scores, 1, "softmax")
    assert torch.nn.functional.mse_loss(found, target).item() == pytest.approx((0.25**2 + 0.05**2) / 2, abs=1e-7)


def test_gradient_scales_with_alpha() -> None:
    gradients = []
    for alpha in (1.0, 100.0):
        model = build(SMAFConfig(alpha=alpha, classification=False), 3, base=EPSConfig()).eval()
        model.loss(make_batch(3), MIDDLE)["mac"].backward()
        gradients.append(model.base.head.classifier.weight.grad)
    assert torch.allclose(100 * gradients[0], gradients[1], rtol=1e-4)
    assert gradients[0].any()


def test_student_forms() -> None:
    scores = torch.tensor([[[[2.0, -1.0, 1.0]], [[0.0, -3.0, -1.0]]]])
    relu = make_student_maps(scores, 2, "relu")
    assert torch.allclose(relu[0, :, 0], torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]), atol=1e-4)
    soft = make_student_maps(scores, 2, "softmax", background_logit=1.0)
    assert torch.allclose(soft[0, :, 0, 0], torch.tensor([2.0, 0.0, 1.0]).softmax(dim=0))
    assert torch.equal(make_student_maps(scores, 1, "softmax"), scores.softmax(dim=1))
    assert append_background(scores, 1, 5.0) is scores


def test_padded_canvas_is_background() -> None:
    batch = make_batch(3)
    target = reactivate_maps(denoise_maps(shrink_maps(batch.maps * batch.inside), batch.labels, 0.2))
    assert torch.equal(target[:, 3, :, -1], torch.ones(2, 12))
    assert not target[:, :3, :, -1].any()


def test_flip_commutes_with_the_target() -> None:
    batch = make_batch(2)
    assert torch.allclose(shrink_maps(batch.maps.flip(3)), shrink_maps(batch.maps).flip(3), atol=1e-6)


def test_the_student_is_the_base_and_its_own_teacher_is_left_out() -> None:
    base, unused = L2GConfig(patch_size=32).build(TinyBackbone(), 3), TinyBackbone()
    before = torch.get_rng_state()
    model = SMAFConfig().build(unused, 3, base)
    assert torch.equal(before, torch.get_rng_state())
    assert base.training
    assert model.base is base
    grouped = {id(p) for group in model.param_groups() for p in group.params}
    assert not grouped & {id(p) for p in [*base.local_head.parameters(), *base.local_backbone.parameters()]}
    assert grouped >= {id(p) for p in base.head.parameters()}
    rates = {group.name: group.lr_multiplier for group in model.param_groups()}
    assert rates["new weights"] == 10


def test_a_base_is_required() -> None:
    with pytest.raises(UserError, match="base"):
        SMAFConfig().build(TinyBackbone(), 3)


def test_maps_of_an_eps_base_stay_its_own() -> None:
    images = torch.randn(1, 3, 40, 56)
    model = build(SMAFConfig(profile="released"), 3, base=EPSConfig()).eval()
    assert torch.equal(model.maps(images), model.base.maps(images))
    assert torch.equal(model.logits(images), model.base.logits(images))
