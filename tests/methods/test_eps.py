# SPDX-License-Identifier: Apache-2.0
"""EPS: overlap, routing, estimated saliency, losses and gradients, against released numbers and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.contract import MIDDLE, Case, build, check_localizer, make_batch
from wsss_ray.methods.eps import (
    PRESETS,
    EPSConfig,
    ScoreHead,
    estimate_saliency,
    overlap_ratio,
    route_classes,
    saliency_loss,
    shrink_saliency,
)
from wsss_ray.methods.layers import classification_loss, spatial_mean

Golden = Callable[[str], dict[str, np.ndarray]]


@pytest.mark.parametrize("config", [EPSConfig(saliency=False), EPSConfig(bottleneck=6)])
def test_contract(config: EPSConfig) -> None:
    check_localizer(Case(config))


def test_presets() -> None:
    assert {name: EPSConfig(**values).foreground_weight for name, values in PRESETS.items()} == {
        "voc": 0.5,
        "coco": 0.9,
    }
    assert {EPSConfig(**values).tau for values in PRESETS.values()} == {0.4}
    assert EPSConfig().background() == 0.2


def cases(arrays: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.split("__")[0] for key in arrays if "__" in key})


def test_released_losses_and_gradients(golden: Golden) -> None:
    arrays = golden("03_eps_loss.npz")
    assert cases(arrays)
    for case in cases(arrays):
        # Cases that share their inputs with "std" do not store them again.
        given = {
            name: torch.from_numpy(arrays.get(f"{case}__{name}", arrays[f"std__{name}"]))
            for name in ("cam", "label", "saliency")
        }
        tau, weight = float(arrays[f"{case}__tau"]), float(arrays[f"{case}__lam"])
        scores = given["cam"].requires_grad_()
        small = shrink_saliency(given["saliency"], tuple(scores.shape[2:]))
        probabilities = scores.softmax(dim=1)
        overlap = overlap_ratio(probabilities, small)
        routing = route_classes(given["label"], overlap, tau)
        foreground, not_background, estimate = estimate_saliency(probabilities, routing, weight)
        loss_cls = classification_loss(spatial_mean(scores[:, :-1]), given["label"])
        loss_sal = saliency_loss(scores, given["label"], given["saliency"], tau, weight)
        found = {
            "sal_small": (small, 0.0),
            "P": (probabilities, 2e-6),
            "O": (overlap, 2e-6),
            "V": (routing.foreground, 0.0),
            "U": (routing.background, 0.0),
            "M_fg": (foreground, 2e-6),
            "one_minus_M_bg": (not_background, 2e-6),
            "S_hat": (estimate, 2e-6),
            "loss_cls": (loss_cls, 1e-6),
            "loss_sal": (loss_sal, 1e-6),
            "loss": (loss_cls + loss_sal, 1e-6),
            "grad": (torch.autograd.grad(loss_cls + loss_sal, scores, retain_graph=True)[0], 5e-8),
            "grad_sal": (torch.autograd.grad(loss_sal, scores, retain_graph=True)[0], 5e-8),
            "grad_cls": (torch.autograd.grad(loss_cls, scores)[0], 5e-8),
        }
        for name, (value, tolerance) in found.items():
            if f"{case}__{name}" in arrays:
                expected = arrays[f"{case}__{name}"]
                assert value.shape == expected.shape, (case, name)
                gap = np.abs(value.detach().numpy().astype(np.float64) - expected.astype(np.float64)).max()
                # Losses far above 1 (the "rounding" case) cannot be closer than float32 holds.
                assert gap <= tolerance * max(1.0, float(np.abs(expected).max())), (case, name, gap)


def one_hot_scores(owner: Tensor, channels: int) -> Tensor:
    """(h, w) channel of each pixel -> (1, channels, h, w) scores whose softmax is one-hot."""
    return 80.0 * torch.nn.functional.one_hot(owner, channels).permute(2, 0, 1)[None].float()


def test_perfect_maps_cost_nothing() -> None:
    owner = torch.full((4, 4), 3)
    owner[1:3, 1:3] = 1
    saliency = (owner == 1).float()[None, None]
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    for weight in (0.0, 0.5, 0.9):
        assert saliency_loss(one_hot_scores(owner, 4), labels, saliency, 0.4, weight).item() < 1e-12


def test_lambda_only_charges_absent_classes() -> None:
    torch.manual_seed(0)
    probabilities = (4 * torch.randn(3, 8, 6, 5, dtype=torch.float64)).softmax(dim=1)
    labels = (torch.rand(3, 7) < 0.5).double()
    routing = route_classes(labels, overlap_ratio(probabilities, torch.rand(3, 1, 6, 5, dtype=torch.float64)), 0.4)
    absent = (probabilities[:, :-1] * (1 - labels)[:, :, None, None]).sum(dim=1, keepdim=True)
    for weight in (0.0, 0.3, 1.0):
        foreground, _, estimate = estimate_saliency(probabilities, routing, weight)
        assert torch.allclose(estimate - foreground, (1 - weight) * absent, atol=1e-12)


def test_uniform_maps_put_every_present_class_in_the_background() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    probabilities = torch.zeros(1, 6, 3, 3).softmax(dim=1)
    overlap = overlap_ratio(probabilities, torch.ones(1, 1, 3, 3))
    routing = route_classes(labels, overlap, 0.4)
    assert not overlap.any()
    assert not routing.foreground.any()
    assert routing.background.sum() == 2
    estimate = estimate_saliency(probabilities, routing, 0.7)[2]
    assert torch.allclose(estimate, torch.full_like(estimate, 0.3 * 3 / 6))


def test_overlap_by_hand_and_strict_threshold() -> None:
    owner = torch.tensor([[0, 0, 0, 0], [2, 2, 2, 2]])
    saliency = torch.tensor([[1.0, 0.51, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0]])[None, None]
    overlap = overlap_ratio(one_hot_scores(owner, 3).softmax(dim=1), saliency)
    # Two of four confident pixels are salient (0.5 rounds to 0); eight pixels carry 1e-4 each.
    assert overlap[0, 0].item() == pytest.approx(2 / 4.0008, abs=1e-7)
    assert overlap[0, 1].item() == 0
    present = torch.tensor([[1.0, 1.0]])
    assert route_classes(present, torch.tensor([[0.4, 0.41]]), torch.tensor(0.4).item()).foreground.tolist() == [
        [False, True]
    ]
    outside = overlap_ratio(one_hot_scores(owner, 3).softmax(dim=1), torch.zeros(1, 1, 2, 4))
    assert route_classes(present, outside, 0.4).background.all()


def test_an_exact_half_is_not_confident() -> None:
    probabilities = torch.full((1, 2, 2, 2), 7.0).softmax(dim=1)
    assert (probabilities == 0.5).all()
    assert overlap_ratio(probabilities, torch.ones(1, 1, 2, 2)).item() == 0


def test_loss_by_hand() -> None:
    # Two pixels, one class, lambda 0.5: p = sigmoid(score difference).
    scores = torch.tensor([[[[2.0, -1.0]], [[0.0, 0.0]]]])
    saliency = torch.tensor([[[[1.0, 0.0]]]])
    first, second = 0.880797078, 0.268941421
    # Class 0 is confident on the salient pixel only: foreground. No absent class, so S_hat = p.
    expected = ((first - 1) ** 2 + second**2) / 2
    assert saliency_loss(scores, torch.ones(1, 1), saliency, 0.4, 0.5).item() == pytest.approx(expected, abs=1e-7)
    # All inside the background: S_hat = (1 - lambda)(1 - 1) = 0.
    assert saliency_loss(scores, torch.ones(1, 1), 0 * saliency, 0.4, 0.5).item() == pytest.approx(0.0, abs=1e-7)


def test_gradients_reach_what_they_should() -> None:
    torch.manual_seed(1)
    scores = torch.randn(2, 5, 4, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    by_class = torch.autograd.grad(classification_loss(spatial_mean(scores[:, :-1]), labels), scores)[0]
    assert not by_class[:, -1].any()
    assert by_class[:, :-1].all()
    # An absent class has no term of its own in S_hat when lambda is 1: it is moved through the softmax alone.
    by_saliency = torch.autograd.grad(saliency_loss(5 * scores, labels, torch.rand(2, 1, 32, 32), 0.0, 1.0), scores)[0]
    assert by_saliency[0, 1].any()


def test_routing_is_the_only_way_the_overlap_matters() -> None:
    torch.manual_seed(2)
    labels = torch.tensor([[1.0, 1.0, 0.0]])
    gradients = []
    for overlap in ([[0.5, 0.2, 0.9]], [[0.7, 0.1, 0.0]], [[0.5, 0.5, 0.9]]):
        torch.manual_seed(2)
        scores = torch.randn(1, 4, 3, 3, requires_grad=True)
        estimate = estimate_saliency(scores.softmax(dim=1), route_classes(labels, torch.tensor(overlap), 0.4), 0.5)[2]
        gradients.append(torch.autograd.grad((estimate**2).mean(), scores)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_saliency_is_not_smoothed() -> None:
    rows, columns = torch.meshgrid(torch.arange(32) // 8, torch.arange(32) // 8, indexing="ij")
    board = ((rows + columns) % 2).float()[None, None]
    assert torch.equal(shrink_saliency(board, (4, 4))[0, 0], board[0, 0, ::8, ::8])
    ramp = torch.arange(7.0).view(1, 1, 1, 7)
    assert shrink_saliency(ramp, (1, 3)).flatten().tolist() == [0.0, 2.0, 4.0]


def test_maps_are_probabilities_taken_before_up_sampling() -> None:
    model = build(EPSConfig(), 3).eval()
    images = 10 * torch.randn(1, 3, 48, 48)
    maps = model.maps(images)
    assert torch.allclose(
        maps.sum(dim=1) + model.evidence(images).softmax(dim=1)[:, -1], torch.ones(1, 6, 6), atol=1e-6
    )
    sharp = one_hot_scores(torch.arange(16).view(4, 4) % 3, 3)

    def grow(value: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(value, size=(32, 32), mode="bilinear")

    assert (grow(sharp.softmax(dim=1)) - grow(sharp).softmax(dim=1)).abs().max() > 0.3
    assert EPSConfig().fusion().rectify == "none"


def test_bottleneck_norm_is_a_constant_that_never_learns() -> None:
    head = ScoreHead(5, 3, bottleneck=4).train()
    features = torch.randn(2, 5, 6, 6)
    reduced = torch.einsum("oi,bihw->bohw", head.reduce.weight[:, :, 0, 0], features) / (1 + 1e-5) ** 0.5
    expected = torch.einsum("oi,bihw->bohw", head.classifier.weight[:, :, 0, 0], reduced.clamp(min=0))
    assert torch.allclose(head(features), expected, atol=1e-5)
    assert not head.norm.running_mean.any()
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {"reduce.weight", "classifier.weight"}


def test_without_saliency_the_background_channel_is_never_trained() -> None:
    model = build(EPSConfig(saliency=False), 3).train()
    parts = model.loss(make_batch(3), MIDDLE)
    assert set(parts) == {"cls"}
    parts["cls"].backward()
    gradient = model.head.classifier.weight.grad
    assert not gradient[-1].any()
    assert gradient[:-1].any()


def test_routing_ignores_absent_classes() -> None:
    routing = route_classes(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.9, 0.9]]), 0.4)
    assert routing.foreground.tolist() == [[False, True]]
    assert not routing.background.any()
