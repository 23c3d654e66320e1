# SPDX-License-Identifier: Apache-2.0
"""KTSE's terms and pseudo labels on maps made by hand; the released numbers are in ``test_ktse_golden``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wsss_ray.methods.ktse import labels as pseudo
from wsss_ray.methods.ktse import losses as terms


def test_normalised_map_by_hand() -> None:
    features = torch.tensor([[[[-1.0, 0.0, 1.0, 4.0]]]])
    expected = torch.tensor([0.0, 0.0, (1 - 1e-5) / (4 + 1e-5), (4 - 1e-5) / (4 + 1e-5)])
    torch.testing.assert_close(terms.normalize_features(features)[0, 0, 0], expected)
    torch.testing.assert_close(terms.normalize_features(features + 2)[0, 0, 0, 1].item(), (2 - 1 - 1e-5) / (5 + 1e-5))
    torch.testing.assert_close(terms.normalize_features(features + 2, "max")[0, 0, 0, 1].item(), 2 / (6 + 1e-5))


def test_absent_classes_never_activate_and_up_sampling_comes_first() -> None:
    features = torch.zeros(1, 2, 3, 3)
    features[0, 0, 1, 1], features[0, 1, 2, 2] = 2.0, 50.0
    labels = torch.tensor([[1.0, 0.0]])
    low, high = terms.strongest_activation(features, labels), terms.strongest_activation(features, labels, (6, 6))
    assert low[0, 0, 2, 2] == 0
    assert low[0, 0, 1, 1] > 0.99
    assert high.max() > 0.99, "up-sampling lowers the peak to 9/16, and normalising comes after it"
    assert not terms.strongest_activation(features.requires_grad_(), labels).requires_grad


def test_erased_pixels_are_the_mean_colour_and_the_others_untouched() -> None:
    images, active = torch.randn(2, 3, 5, 7), torch.rand(2, 1, 5, 7)
    active[0, 0, 0, 0] = 0.6
    erased = terms.erase_images(images, active, 0.6)
    assert torch.equal(erased == 0, (active >= 0.6).expand_as(images))
    assert torch.equal(erased[(active < 0.6).expand_as(images)], images[(active < 0.6).expand_as(images)])
    assert torch.equal(terms.erase_images(images, active, 1.01), images)
    torch.testing.assert_close(terms.erase_images(images, active, 1.01, "soft"), images * active)


def test_local_alignment_by_hand() -> None:
    anchor = torch.zeros(1, 2, 1, 4, requires_grad=True)
    masked = torch.tensor([[[[1.0, 0.04, -1.0, 2.0]], [[9.0, 9.0, 9.0, 9.0]]]], requires_grad=True)
    labels, region = torch.tensor([[1.0, 0.0]]), torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])
    loss = terms.local_alignment_loss(masked, anchor, labels, region, 0.05)
    assert loss.item() == pytest.approx(0.95 / 8)
    assert terms.local_alignment_loss(masked, anchor, labels).item() == pytest.approx(3.04 / 8)
    assert terms.local_alignment_loss(masked, anchor, labels, region * 0, 0.05).item() == 0
    loss.backward()
    assert masked.grad is not None
    assert anchor.grad is not None
    assert masked.grad.flatten().tolist() == [0.125, 0, 0, 0, 0, 0, 0, 0]
    assert torch.equal(anchor.grad, -masked.grad)


def test_global_alignment_by_hand() -> None:
    anchor = torch.tensor([[[[1.0, -5.0]], [[8.0, 8.0]]]], requires_grad=True)
    masked = torch.tensor([[[[2.0, 4.0]], [[0.0, 0.0]]]], requires_grad=True)
    loss = terms.global_alignment_loss(anchor, masked, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(2.5 / 2), "rectified before the mean, present classes only, mean over all C"
    loss.backward()
    assert anchor.grad is not None
    assert masked.grad is not None
    assert anchor.grad.flatten().tolist() == [-0.25, 0, 0, 0]
    assert masked.grad.flatten().tolist() == [0.25, 0.25, 0, 0]


def test_knowledge_transfer_is_one_sided_and_both_sides_learn() -> None:
    single, labels = torch.randn(2, 3, 4, 4), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert terms.knowledge_transfer_loss(single, single - 0.04, labels, 0.05) == 0
    loss = terms.knowledge_transfer_loss(single, single - 1.05, labels, 0.05)
    assert loss.item() == pytest.approx(1 / 3, abs=1e-6)
    one, joined = single.clone().requires_grad_(), (single - 1).requires_grad_()
    terms.knowledge_transfer_loss(one, joined, labels).backward()
    assert one.grad is not None
    assert joined.grad is not None
    assert torch.equal(one.grad, -joined.grad)
    assert one.grad[0, 0].min() > 0
    assert one.grad[0, 1:].abs().max() == 0


def flat_labels(values: list[float], labels: list[float], **settings: Any) -> Tensor:
    """Released labels of an image whose class features are constant over its left half and 0 on the right."""
    features = torch.zeros(1, len(values), 8, 8)
    features[0, :, :, :4] = torch.tensor(values)[:, None, None]
    image = torch.zeros(1, 3, 64, 64)
    image[..., :32] = 1
    return pseudo.refine_then_threshold(features, torch.tensor([labels]), image, **settings)[0][0]


def test_pseudo_labels_are_background_present_classes_and_unknown() -> None:
    torch.manual_seed(0)
    features, image = torch.randn(3, 5, 8, 8), torch.rand(3, 3, 64, 64)
    labels = torch.tensor([[0, 1, 0, 0, 1.0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    for made in (
        pseudo.refine_then_threshold(features, labels, image)[0],
        pseudo.threshold_then_refine(features, labels, image),
    ):
        for index, allowed in enumerate(({0, 2, 5, 255}, {0, 3, 255}, {0})):
            found = set(made[index].unique().tolist())
            assert found <= allowed
            assert len(found) > 1 or allowed == {0}
    same = pseudo.refine_then_threshold(features, labels, image, (0.2, 0.2))[0]
    assert not (same == 255).any()
    assert not pseudo.refine_then_threshold(torch.zeros_like(features), labels, image)[0].any()


def test_labels_of_the_paper_by_hand() -> None:
    """Eq 4 on four cells of 2 x 2 pixels, which half size keeps apart: the map says whether, the feature which."""
    cells = torch.zeros(1, 3, 1, 4)
    cells[0, 0, 0] = torch.tensor([10.0, 4.0, 1.0, 2.0])
    cells[0, 2, 0] = torch.tensor([0.0, 1.0, -1.0, 0.1])
    cells[0, 1] = 99.0
    features = cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    image, labels = torch.zeros(1, 3, 2, 8), torch.tensor([[1.0, 0.0, 1.0]])
    found = pseudo.threshold_then_refine(features, labels, image, num_iterations=0)
    expected = [1, 1, 1, 1, 0, 0, 255, 255]
    assert found.tolist() == [[expected, expected]], "cell 2: all of class 3's map, but class 1 is the larger feature"
    assert not pseudo.threshold_then_refine(torch.zeros_like(features), labels, image).any()


def test_unknown_labels_of_the_paper_stay_unknown_and_spread_nothing() -> None:
    torch.manual_seed(1)
    features, image = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 1], [0, 1.0, 0]])
    before, after = (pseudo.threshold_then_refine(features, labels, image, num_iterations=n) for n in (0, 10))
    assert torch.equal(before == 255, after == 255)
    assert (after == 255).any()
    assert (before != after).any(), "PAR moves labels between what is certain"


def test_pseudo_labels_of_a_two_tone_image() -> None:
    found = flat_labels([3.0, 7.0, 2.0], [1, 0, 0])
    assert found[32, 8] == 1
    assert found[32, 56] == 0


def test_score_planes_are_a_softmax_of_signed_planes_and_the_level() -> None:
    planes = torch.tensor([0.2, -5.0, 9.0])[None, :, None, None].expand(1, 3, 4, 4)
    valid = torch.tensor([[True, True, False]])
    for level in (0.3, 0.15):
        stack = pseudo.score_planes(planes, valid, level, (8, 8))
        assert stack.shape == (1, 4, 4, 4)
        assert not stack[:, 3].any()
        weights = [math.exp(level), math.exp(0.2), math.exp(-5.0)]
        torch.testing.assert_close(stack[0, :3, 0, 0], torch.tensor(weights) / sum(weights))
        assert stack[0, :, 0, 0].argmax() == (0 if level == 0.3 else 1)


def test_labels_combine_with_certainty_on_both_sides() -> None:
    high, low = torch.tensor([[0, 0, 3, 2]]), torch.tensor([[0, 3, 3, 0]])
    assert pseudo.combine_labels(high, low).tolist() == [[0, 255, 3, 2]]


def test_a_class_that_is_negative_everywhere_floods_the_image_without_the_guard() -> None:
    features = -torch.rand(1, 1, 8, 8) - 0.5
    image, labels = torch.rand(1, 3, 64, 64), torch.ones(1, 1)
    assert not pseudo.refine_then_threshold(features, labels, image)[0].any()
    assert (pseudo.refine_then_threshold(features, labels, image, guard_maximum=False)[0] == 1).all()


def test_the_canvas_of_the_guide_is_the_mean_colour() -> None:
    rgb = torch.arange(256).float().expand(1, 3, 1, 256) / 255
    inside = torch.ones(1, 1, 1, 256)
    inside[..., 200:] = 0
    exact, truncated = (pseudo.make_guide(rgb * inside, inside, truncated=t) for t in (False, True))
    assert torch.equal(exact[..., :200], rgb[..., :200])
    torch.testing.assert_close(exact[0, :, 0, 255], torch.tensor(pseudo.IMAGENET_MEAN))
    assert (truncated[0, :, 0, 255] * 255).round().tolist() == [123, 116, 103]
    lost = ((rgb - truncated)[..., :200] * 255).round()
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    assert 0.3 < lost.mean() < 0.5


def test_label_losses_by_hand() -> None:
    """Two classes and background, logits (0, 0, ln 2): 1/4, 1/4, 1/2; rectified (-1, .) counts as 0."""
    planes = torch.tensor([-1.0, -1.0, math.log(2)])[None, :, None, None].expand(2, 3, 1, 4)
    target = torch.tensor([[[0, 0, 0, 255]], [[2, 1, 255, 0]]])
    background, foreground = terms.label_losses(planes, target)
    assert background.item() == pytest.approx(math.log(4))
    assert foreground.item() == pytest.approx(1.5 * math.log(2))
    joint = terms.label_losses(planes, target, mean="joint")
    assert joint[0].item() == pytest.approx(4 / 6 * math.log(4))
    assert joint[1].item() == pytest.approx(0.5 * math.log(2))
    signed = terms.label_losses(planes, target, rectify=False)[0]
    assert signed.item() == pytest.approx(math.log((2 * math.exp(-1) + 2) / math.exp(-1)))


def test_complex_images_give_no_foreground_label_when_only_simple_ones_count() -> None:
    torch.manual_seed(0)
    planes, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    only_first = terms.label_losses(planes, target, torch.tensor([True, False]))
    assert torch.equal(only_first[1], terms.label_losses(planes[:1], target[:1])[1])
    assert torch.equal(only_first[0], terms.label_losses(planes, target)[0]), "their background does count"


@pytest.mark.parametrize("value", [0, 2, 255])
@pytest.mark.parametrize("mean", ["separate", "joint"])
def test_cross_entropy_without_pixels_is_zero_and_never_nan(value: int, mean: Any) -> None:
    planes = torch.randn(2, 3, 4, 4, requires_grad=True)
    losses = terms.label_losses(planes, torch.full((2, 8, 8), value), torch.tensor([False, False]), True, mean)
    assert [loss.item() != 0 for loss in losses] == [value == 0, False]
    sum(losses).backward()  # type: ignore[union-attr]
    assert planes.grad is not None
    assert torch.isfinite(planes.grad).all()


def test_inter_class_loss_lowers_the_second_class_where_the_image_is_active() -> None:
    scores = torch.tensor([5.0, 2.0, 1.0])[None, :, None, None].repeat(3, 1, 1, 2).requires_grad_()
    labels = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 1, 1]])
    active = torch.tensor([0.3, 0.1]).expand(3, 1, 1, 2)
    loss = terms.inter_class_loss(scores, active, labels, 0.2)
    assert loss.item() == pytest.approx(-3 * 2 / (2 + 1e-5))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[:, 0].any()
    assert not gradient[1].any()
    assert not gradient[..., 1].any()
    assert (gradient[[0, 2], 1, 0, 0] > 0).all()
    assert not gradient[:, 2].any()
    (both,) = torch.autograd.grad(terms.inter_class_loss(scores, active, labels, 0.2, detach_top=False), scores)
    assert torch.equal(both[:, 1], gradient[:, 1])
    assert torch.equal(both[:, 0], -gradient[:, 1])
    simple = torch.tensor([[1.0, 0, 0]] * 3)
    assert terms.inter_class_loss(scores, active, simple, 0.2) == 0


def test_ties_with_the_largest_class_are_removed_before_the_second_is_sought() -> None:
    scores = torch.tensor([5.0, 5.0, -1.0])[None, :, None, None]
    active, labels = torch.ones(1, 1, 1, 1), torch.ones(1, 3)
    assert terms.inter_class_loss(scores, active, labels, 0.2).item() == pytest.approx(-6, abs=1e-3)
    assert terms.inter_class_loss(scores[:, :2], active, labels[:, :2], 0.2) == 0


def test_raw_features_are_compared_not_their_normalised_maps() -> None:
    """Doubling every plane doubles the alignment terms but leaves the activation where it was."""
    labels, features = torch.ones(2, 3), torch.randn(2, 3, 6, 6)
    other = torch.randn(2, 3, 6, 6)
    for loss in (
        lambda k: terms.local_alignment_loss(k * features, k * other, labels),
        lambda k: terms.global_alignment_loss(k * features, k * other, labels),
        lambda k: terms.knowledge_transfer_loss(k * features, k * other, labels),
    ):
        torch.testing.assert_close(loss(2.0), 2 * loss(1.0))
    torch.testing.assert_close(
        terms.strongest_activation(2 * features, labels),
        terms.strongest_activation(features, labels),
        atol=1e-4,
        rtol=0,
    )
