# SPDX-License-Identifier: Apache-2.0
"""L2G: views, attention, targets, losses, pixel correlation, switches; against released numbers and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.methods.contract import MIDDLE, Case, TinyBackbone, build, check_localizer, make_batch
from wsss_ray.config import UserError
from wsss_ray.contracts import Batch
from wsss_ray.methods.l2g.correlation import (
    PixelCorrelation,
    choose_taps,
    compute_affinity,
    correlate_maps,
    normalize_embedding,
)
from wsss_ray.methods.l2g.losses import (
    compute_attention,
    crop_saliency,
    keep_strongest,
    make_transfer_target,
    read_global_views,
    transfer_loss,
)
from wsss_ray.methods.l2g.network import PRESETS, CorrelatedHead, L2GConfig
from wsss_ray.methods.layers import classification_loss, spatial_mean
from wsss_ray.methods.views import crop_views, sample_boxes, sample_cells

Golden = Callable[[str], dict[str, np.ndarray]]
SMALL = {"patch_size": 32}


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "released"},
        {"saliency": False, "num_views": 1},
        {"shared": True, "pcm": True},
        {"local_only": True, "saliency": False},
        {"local_only": True},
        {"global_classification": True, "sampling": "uniform", "uniform_stride": 8, "map_form": "softmax"},
        {"background_target": "complement", "norm": "sum", "normalize_saliency": True},
    ],
)
def test_contract(options: dict) -> None:
    check_localizer(Case(L2GConfig(**SMALL, **options)))


def test_profiles_and_presets() -> None:
    paper, released = L2GConfig(), L2GConfig(profile="released")
    voc, coco = (L2GConfig(**PRESETS[name]) for name in ("voc", "coco"))
    assert voc == released
    row = [
        (c.pcm, c.local_background, c.hard_target, c.threshold, c.empty_saliency, c.kd_weight, c.num_views, c.align)
        for c in (paper, released, coco)
    ]
    assert row[0] == (False, False, False, 0.1, "fallback", 1.0, 4, "crop")
    assert row[1] == (True, True, True, 0.001, "none", 10.0, 6, "roi")
    assert row[2] == (True, True, True, 0.1, "none", 30.0, 4, "roi")
    assert (voc.background_target, coco.background_target, coco.sampling) == ("binary", "soft", "random")
    assert L2GConfig(profile="released", kd_weight=2, pcm=False).kd_weight == 2
    plain = L2GConfig(profile="released", saliency=False)
    assert (plain.num_views, plain.sampling, plain.background_target) == (4, "corners", "soft")
    assert (plain.hard_target, plain.local_background, plain.pcm, plain.kd_weight) == (True, True, True, 10.0)
    assert L2GConfig(saliency=False).background_target == "ignore"
    assert (paper.shared, released.shared) == (False, False)
    assert L2GConfig.model_validate_json(released.model_dump_json()) == released
    rule = released.fusion()
    assert (rule.rectify, rule.interpolation, rule.reduce, rule.epsilon) == ("after", "bicubic", "mean", 1e-8)
    assert (paper.fusion().rectify, paper.background(), released.background()) == ("before", 0.2, 0.25)


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "corners", "num_views": 2},
        {"background_target": "binary"},
        {"local_only": True, "shared": True},
        {"local_only": True, "local_background": False},
        {"local_only": True, "saliency": False, "map_form": "softmax"},
    ],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError):
        L2GConfig(**options)


def test_released_step(golden: Golden) -> None:
    for name, preset in (("04b_l2g_kd_voc.npz", "voc"), ("04b_l2g_kd_coco.npz", "coco")):
        arrays = golden(name)
        config = L2GConfig(**PRESETS[preset])
        meta = json.loads(str(arrays["meta"]))
        assert meta
        whole = torch.from_numpy(arrays["global_logits"]).requires_grad_()
        local = torch.from_numpy(arrays["local_logits"]).requires_grad_()
        labels = torch.from_numpy(arrays["label"])
        boxes = torch.from_numpy(arrays["boxes"])[:, :, 1:]
        crops = torch.from_numpy(arrays["saliency_crops"]).flatten(0, 1)
        size = (local.shape[2], local.shape[3])
        num_classes = labels.shape[1]
        stride = round(arrays["saliency"].shape[-1] / whole.shape[-1])
        repeated = labels.repeat_interleave(boxes.shape[1], dim=0)
        attended = compute_attention(local, repeated)
        hard = keep_strongest(attended)
        small = torch.nn.functional.interpolate(crops, size=size, mode="nearest")
        target = make_transfer_target(hard, num_classes, small, config.threshold, config.background_target, False)
        pooled = sample_cells(whole, boxes, size, stride, "roi")
        under = read_global_views(whole, boxes, size, stride, config.align)
        loss_kd = config.kd_weight * transfer_loss(under, target, config.norm)
        loss_cls = classification_loss(spatial_mean(local[:, :-1]), repeated)
        whole_cls = classification_loss(spatial_mean(whole[:, :-1]), labels)
        loss = loss_kd + loss_cls
        gradients = torch.autograd.grad(loss, [whole, local])
        value, winner = hard.max(dim=1)
        winner[value == 0] = -1
        found = {
            "out_A": (attended[:, torch.from_numpy(arrays["A_channels"])], 1e-6),
            "out_H_winner": (winner, 0),
            "out_H_value": (value, 1e-6),
            "out_S_small": (small, 0),
            "out_T": (target, 1e-6),
            "out_roi_logits": (pooled, 1e-5),
            "out_roi_logits_every3": (pooled[:, ::3], 1e-5),
            "out_G": (under, 5e-6),
            "out_loss_kd": (loss_kd, 1e-6),
            "out_loss_cls_local": (loss_cls, 1e-6),
            "out_loss_cls_global": (whole_cls, 1e-6),
            "out_loss": (loss, 1e-6),
            "out_grad_global": (gradients[0], 1e-8),
            "out_grad_local_every2": (gradients[1][:, :, ::2, ::2], 1e-8),
        }
        for key, (array, tolerance) in found.items():
            if key in arrays:
                assert array.shape == arrays[key].shape, (name, key)
                gap = np.abs(array.detach().numpy().astype(np.float64) - arrays[key].astype(np.float64)).max()
                assert gap <= tolerance, (name, key, gap)
        # What no test can be about: an array of the file that nothing here is compared with.
        assert {key for key in arrays if key.startswith("out_")} <= {*found, "out_boxes5"}


class Taps(TinyBackbone):
    """Channel counts of the released network; never run."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.channels = {tap: arrays[source].shape[1] for tap, source in TAPS.items()}


TAPS = {"conv4": "conv4", "conv5": "conv5", "out": "conv6"}


def test_released_pixel_correlation(golden: Golden) -> None:
    arrays = golden("04a_l2g_pcm.npz")
    head = CorrelatedHead(Taps(arrays), arrays["weight_fc8"].shape[0], pcm=True)
    module = head.correlation
    parameters = {
        "fc8": head.classifier.weight,
        "f8_3": module.project[0].weight,
        "f8_4": module.project[1].weight,
        "f9": module.embed.weight,
    }
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[f"weight_{key}"]).float()[:, :, None, None])
    images = torch.from_numpy(arrays["x"])
    taps = {tap: torch.from_numpy(arrays[source]).float().requires_grad_() for tap, source in TAPS.items()}
    scores = head(images, taps)
    size = (scores.shape[2], scores.shape[3])
    stacked = module.stack_inputs(images, taps, size)
    unit = normalize_embedding(module.embed(stacked))
    matrix = compute_affinity(unit, unit)
    mean = spatial_mean(scores[:, :-1])
    plain = head.classifier(taps["out"])
    objective = (scores * torch.from_numpy(arrays["R"])).sum() + (mean * torch.from_numpy(arrays["Q"])).sum()
    gradients = dict(
        zip(
            [*parameters, "conv6"],
            torch.autograd.grad(objective, [*parameters.values(), taps["out"]], retain_graph=True),
            strict=True,
        )
    )
    flat = {key: value.flatten(1) for key, value in gradients.items()}
    every = {
        "fc8_every37": flat["fc8"][:, ::37],
        "f8_3_every7": flat["f8_3"][:, ::7],
        "f8_4_every7": flat["f8_4"][::2, ::7],
        "f9_every3": flat["f9"][:, ::3],
        "conv6_every37": gradients["conv6"][:, ::37],
    }
    found = {
        "out_x_down": (stacked[:, :3], 1e-5),
        "out_E_in": (stacked, 1e-5),
        "out_e_unit": (unit, 1e-6),
        "out_A_hat": (matrix, 1e-6),
        "out_X_att_every37": (correlate_maps(taps["out"], unit)[:, ::37], 1e-5),
        "out_F": (scores, 1e-5),
        "out_z": (mean, 1e-5),
        "out_WX": (plain, 1e-5),
        "out_WX_att": (scores - plain, 1e-5),
        **{
            f"out_grad_{key}": (value, 1e-5 * float(np.abs(arrays[f"out_grad_{key}"]).max()))
            for key, value in every.items()
        },
    }
    for key, (array, tolerance) in found.items():
        gap = np.abs(array.detach().numpy() - arrays[key]).max()
        assert array.shape == arrays[key].shape, key
        assert gap <= tolerance, (key, gap)
    assert torch.autograd.grad(objective, [taps["conv4"], taps["conv5"]], allow_unused=True) == (None, None)


def test_correlation_columns_sum_to_one_and_equal_pixels_share_the_mean() -> None:
    torch.manual_seed(0)
    unit = normalize_embedding(torch.rand(2, 5, 3, 4))
    assert torch.allclose(compute_affinity(unit, unit).sum(dim=1), torch.ones(2, 12), atol=2e-5)
    maps = torch.randn(2, 3, 3, 4)
    same = normalize_embedding(torch.ones(2, 5, 3, 4))
    assert torch.allclose(correlate_maps(maps, same), maps.mean(dim=(2, 3), keepdim=True).expand_as(maps), atol=1e-5)
    assert torch.allclose(correlate_maps(maps, unit, chunk=5), correlate_maps(maps, unit), atol=1e-6)


def test_correlation_by_hand() -> None:
    # Two positions at right angles keep their own value (but for the 1e-5 in norm and sum).
    unit = normalize_embedding(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]]))
    assert correlate_maps(torch.tensor([[[[5.0, 7.0]]]]), unit).flatten().tolist() == pytest.approx(
        [5.0, 7.0], abs=2e-4
    )


def test_correlation_sends_no_gradient_to_the_taps() -> None:
    backbone = TinyBackbone()
    head = CorrelatedHead(backbone, 3, pcm=True)
    taps = {tap: torch.rand(1, width, 4, 5, requires_grad=True) for tap, width in backbone.channels.items()}
    head(torch.randn(1, 3, 32, 40), taps).square().sum().backward()
    assert taps["out"].grad is not None
    assert taps["conv4"].grad is None
    assert taps["conv5"].grad is None
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_correlation_uses_the_taps_there_are() -> None:
    backbone = TinyBackbone()
    assert choose_taps(backbone) == ["conv4", "conv5"]
    backbone.channels = {"low": 8, "out": 16}
    assert choose_taps(backbone) == ["low"]
    assert PixelCorrelation(backbone).embed.weight.shape[:2] == (128, 131)
    backbone.channels = {"out": 16}
    assert choose_taps(backbone) == ["out"]


@pytest.mark.parametrize("sampling", ["random", "corners"])
@pytest.mark.parametrize(("size", "view"), [(20, (48, 40)), (40, (40, 40)), (39, (40, 40))])
def test_boxes_stay_inside(sampling: str, size: int, view: tuple[int, int]) -> None:
    torch.manual_seed(0)
    boxes = sample_boxes(sampling, 50, 5, size, view)
    assert boxes.shape == (50, 5, 4)
    assert boxes.min() >= 0
    assert boxes[..., 2].max() <= view[1]
    assert boxes[..., 3].max() <= view[0]
    assert torch.equal(boxes[..., 2:] - boxes[..., :2], torch.full((50, 5, 2), size))
    # The last start is never drawn: the upper end is excluded in the released sampler.
    if sampling == "random" and size < min(view):
        assert boxes[..., 0].max() < view[1] - size


def test_corners_cover_the_view_and_the_rest_is_random() -> None:
    torch.manual_seed(0)
    boxes = sample_boxes("corners", 2, 6, 24, (48, 48))
    seen = torch.zeros(48, 48)
    for x0, y0, x1, y1 in boxes[0, :4].tolist():
        seen[y0:y1, x0:x1] += 1
    assert torch.equal(seen, torch.ones(48, 48))
    assert not torch.equal(boxes[0, 4:], boxes[1, 4:])


def test_uniform_sampling_of_the_paper_has_nine_views() -> None:
    boxes = sample_boxes("uniform", 2, 4, 320, (448, 448), 64)
    assert boxes.shape == (2, 9, 4)
    assert boxes[0, :, 0].tolist() == [0, 64, 128] * 3
    assert boxes[1, :, 1].tolist() == [0] * 3 + [64] * 3 + [128] * 3


def test_a_patch_larger_than_the_crop_names_the_fix() -> None:
    model = build(L2GConfig(patch_size=49), 2)
    with pytest.raises(UserError, match="patch_size to at most 48"):
        model.loss(make_batch(2), MIDDLE)


def test_crops_are_slices_in_image_order() -> None:
    images = torch.arange(2 * 6 * 7.0).view(2, 1, 6, 7)
    boxes = torch.tensor([[[0, 0, 3, 3], [4, 2, 7, 5]], [[1, 1, 4, 4], [2, 3, 5, 6]]])
    views = crop_views(images, boxes)
    assert torch.equal(views[1], images[0, :, 2:5, 4:7])
    assert torch.equal(views[2], images[1, :, 1:4, 1:4])


def test_roi_reads_half_a_cell_further_than_crop() -> None:
    ramp = torch.arange(10.0).expand(1, 1, 10, 10).contiguous()
    boxes = torch.tensor([[[16, 8, 48, 40]]])
    assert sample_cells(ramp, boxes, (4, 4), 8, "roi")[0, 0, 0].tolist() == [2.5, 3.5, 4.5, 5.5]
    assert sample_cells(ramp, boxes, (4, 4), 8, "crop")[0, 0, 0].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert sample_cells(ramp.transpose(2, 3), boxes, (4, 4), 8, "roi")[0, 0, :, 0].tolist() == [1.5, 2.5, 3.5, 4.5]
    edge = sample_cells(ramp, torch.tensor([[[48, 48, 80, 80]]]), (4, 4), 8, "roi")
    assert edge[0, 0, 0].tolist() == [6.5, 7.5, 8.5, 9.0]


def test_one_full_size_view() -> None:
    torch.manual_seed(0)
    whole, labels = torch.randn(2, 4, 6, 6), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    boxes = sample_boxes("random", 2, 1, 48, (48, 48))
    attended = compute_attention(torch.randn(2, 3, 6, 6), labels)
    target = make_transfer_target(attended, 3, None, 0.1, "ignore", True)
    under = read_global_views(whole, boxes, (6, 6), 8, "crop")
    assert torch.allclose(under, whole.softmax(dim=1), atol=1e-6)
    expected = ((attended - whole.softmax(dim=1)[:, :3]) ** 2).mean()
    assert transfer_loss(under, target).item() == pytest.approx(expected.item(), abs=1e-6)
    padded = torch.nn.functional.pad(whole, (0, 1, 0, 1), mode="replicate")
    pooled = torch.nn.functional.avg_pool2d(padded, 2, stride=1)
    assert torch.allclose(read_global_views(whole, boxes, (6, 6), 8, "roi"), pooled.softmax(dim=1), atol=1e-6)


def test_attention_by_hand() -> None:
    scores = torch.tensor([[[[2.0, -1.0, 0.5]], [[3.0, 1.0, 0.0]], [[-1.0, -2.0, -3.0]], [[0.0, 4.0, 1.0]]]])
    found = compute_attention(scores.requires_grad_(), torch.tensor([[1.0, 0.0, 1.0]]))
    assert not found.requires_grad
    assert torch.allclose(found[0, :, 0], torch.tensor([[1.0, 0.0, 0.25], [0.0] * 3, [0.0] * 3, [0.0, 1.0, 0.25]]))


def test_target_by_hand() -> None:
    # Channels: two classes and the local background; four pixels.
    attended = torch.tensor([[[[1.0, 0.05, 0.6, 0.0]], [[0.3, 0.0, 0.7, 0.0]], [[0.2, 1.0, 0.1, 0.4]]]])
    saliency = torch.tensor([[[[1.0, 1.0, 0.5, 0.0]]]])
    paper = make_transfer_target(attended[:, :2], 2, saliency, 0.1, "ignore", True)
    assert torch.allclose(paper[0, :, 0], torch.tensor([[1.0, 0.0, 0.5, 0.0], [1.0, 0.0, 0.5, 0.0]]))
    released = make_transfer_target(keep_strongest(attended), 2, saliency, 0.1, "binary", False)
    hand = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert torch.allclose(released[0, :, 0], hand)
    soft = make_transfer_target(keep_strongest(attended), 2, saliency, 0.1, "soft", False)
    assert torch.allclose(soft[0, 2, 0], torch.tensor([0.0, 0.0, 0.0, 0.4]))
    whole = make_transfer_target(attended[:, :2], 2, saliency, 0.1, "complement", True)
    assert torch.allclose(whole[0, 2, 0], torch.tensor([0.0, 1.0, 0.5, 1.0]))


def test_target_without_saliency_by_hand() -> None:
    # Channels: a present class, an absent one and the local background; four cells.
    scores = torch.tensor([[[[2.0, 1.0, 0.5, -1.0]], [[9.0, 9.0, 9.0, 9.0]], [[1.0, 4.0, -2.0, -3.0]]]])
    labels = torch.tensor([[1.0, 0.0]])
    released = L2GConfig(profile="released", saliency=False)
    assert released.hard_target
    attended = keep_strongest(compute_attention(scores, labels))
    target = make_transfer_target(attended, 2, None, released.threshold, released.background_target, False)
    # The winner of each cell keeps the value it has, and background is one of those that can win.
    hand = torch.tensor([[1.0, 0.0, 0.25, 0.0], [0.0] * 4, [0.0, 1.0, 0.0, 0.0]])
    assert torch.allclose(target[0, :, 0], hand)
    probabilities = torch.tensor([[[[0.5, 0.25, 0.5, 0.5]], [[0.25] * 4], [[0.25, 0.5, 0.25, 0.25]]]])
    squares = [0.25 + 0.0625 + 0.0625 + 0.25, 4 * 0.0625, 0.0625 + 0.25 + 0.0625 + 0.0625]
    assert transfer_loss(probabilities, target).item() == pytest.approx(sum(squares) / 12, abs=1e-7)
    paper = L2GConfig(saliency=False)
    several = compute_attention(scores[:, :2], labels)
    plain = make_transfer_target(several, 2, None, paper.threshold, paper.background_target, True)
    assert torch.allclose(plain[0, :, 0], torch.tensor([[1.0, 0.5, 0.25, 0.0], [0.0] * 4]))
    assert transfer_loss(probabilities, plain).item() == pytest.approx(
        (0.25 + 0.0625 + 0.0625 + 0.25 + 4 * 0.0625) / 8, abs=1e-7
    )


@pytest.mark.parametrize(("profile", "taught"), [("paper", False), ("released", True)])
def test_background_has_a_target_without_saliency_in_the_released_profile_alone(profile: str, taught: bool) -> None:
    config = L2GConfig(profile=profile, saliency=False, **SMALL)
    model, batch = build(config, 3).train(), make_batch(3)
    size = (4, 4)
    attended = compute_attention(model.local_scores(batch.image[:, :, :32, :32]), batch.labels)
    target = make_transfer_target(attended, 3, None, config.threshold, config.background_target, False)
    probabilities = torch.full((2, 4, *size), 0.25, requires_grad=True)
    (gradient,) = torch.autograd.grad(transfer_loss(probabilities, target), probabilities)
    assert bool(gradient[:, 3].any()) is taught
    assert gradient[:, :3].any()


def test_empty_and_full_saliency() -> None:
    torch.manual_seed(0)
    attended = torch.rand(2, 4, 5, 5)
    empty, full = torch.zeros(2, 1, 5, 5), torch.ones(2, 1, 5, 5)
    assert torch.equal(make_transfer_target(attended, 3, empty, 0.1, "soft", True), attended)
    without = make_transfer_target(attended, 3, empty, 0.1, "binary", False)
    assert not without[:, :3].any()
    assert torch.equal(without[:, 3], (attended[:, 3] > 0.1).float())
    whole = make_transfer_target(attended, 3, full, 0.1, "binary", False)
    assert torch.equal(whole[:, :3], (attended[:, :3] > 0.1).float())
    assert not whole[:, 3].any()
    # The fallback is decided per view.
    mixed = make_transfer_target(attended, 3, torch.cat([empty[:1], full[:1]]), 0.1, "soft", True)
    assert torch.equal(mixed[0], attended[0])
    assert not mixed[1, 3].any()


def test_hard_target_has_one_channel_per_pixel_and_the_soft_one_may_have_more() -> None:
    torch.manual_seed(0)
    attended = torch.rand(2, 4, 6, 6)
    assert ((keep_strongest(attended) > 0).sum(dim=1) == 1).all()
    assert not keep_strongest(torch.zeros(1, 3, 2, 2)).any()
    assert ((make_transfer_target(attended, 3, torch.ones(2, 1, 6, 6), 0.1, "ignore", True) > 0).sum(dim=1) > 1).any()


def test_norms() -> None:
    target, probabilities = torch.zeros(2, 2, 1, 2), torch.full((2, 3, 1, 2), 0.5)
    assert transfer_loss(probabilities, target).item() == 0.25
    assert transfer_loss(probabilities, target, "sum").item() == 1.0


def reference_transfer(config: L2GConfig, model: nn.Module, batch: Batch, boxes: Tensor) -> float:
    """Eq 6-7 view by view and in plain slices, for boxes that lie on the stride of 8."""
    whole = model.evidence(batch.image)
    total, count = 0.0, 0
    for index in range(len(batch.image)):
        saliency = batch.saliency[index, 0]
        if config.normalize_saliency:
            saliency = saliency / saliency.max()
        present = batch.labels[index].bool().tolist()
        for x0, y0, x1, y1 in boxes[index].tolist():
            local = model.local_scores(batch.image[index : index + 1, :, y0:y1, x0:x1])[0]
            height, width = local.shape[1:]
            maps = [plane.clamp(min=0) / max(plane.max().item(), 1e-9) for plane in local]
            maps = [plane if c >= len(present) or present[c] else 0 * plane for c, plane in enumerate(maps)]
            maps = torch.stack(maps)
            if config.hard_target:
                maps = maps * (maps == maps.amax(dim=0))
            seen = saliency[y0:y1:8, x0:x1:8]
            kept, left, top = len(present), x0 // 8, y0 // 8
            classes, background = maps[:kept], maps[kept:]
            if config.saliency and not (config.empty_saliency == "fallback" and not seen.any()):
                binary = config.background_target == "binary"
                background = ((background > config.threshold).float() if binary else background) * (1 - seen)
                classes = (classes > config.threshold) * seen
            if config.align == "crop":
                under = whole[index].softmax(dim=0)[:, top : top + height, left : left + width]
            else:
                padded = torch.nn.functional.pad(whole[index], (0, 1, 0, 1), mode="replicate")
                pooled = torch.nn.functional.avg_pool2d(padded, 2, stride=1)
                under = pooled[:, top : top + height, left : left + width].softmax(dim=0)
            target = classes if config.background_target == "ignore" else torch.cat([classes, background])
            squares = (under[: len(target)] - target) ** 2
            total, count = total + squares.sum().item(), count + squares.numel()
    views = boxes.shape[0] * boxes.shape[1]
    return config.kd_weight * (total / count if config.norm == "mean" else total / views)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "released"},
        {"profile": "released", "background_target": "soft", "threshold": 0.1},
        {"profile": "released", "align": "crop", "empty_saliency": "fallback", "normalize_saliency": False},
        {"hard_target": True, "kd_weight": 3, "norm": "sum", "threshold": 0.5},
        {"saliency": False, "align": "roi"},
        {"saliency": False, "profile": "released"},
    ],
)
def test_loss_equals_a_loop_over_the_views(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = L2GConfig(**SMALL, **options)
    model, batch = build(config, 3).eval(), make_batch(3)
    batch.labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    # The first view of the first image holds nothing salient.
    batch.saliency[0, :, :32, :32] = 0
    boxes = torch.tensor([[[0, 0, 32, 32], [16, 8, 48, 40]], [[8, 16, 40, 48], [0, 8, 32, 40]]])
    monkeypatch.setattr("wsss_ray.methods.l2g.network.sample_boxes", lambda *_: boxes)
    parts = model.loss(batch, MIDDLE)
    assert parts["transfer"].item() == pytest.approx(reference_transfer(config, model, batch, boxes), rel=1e-5)
    views = [(i, *box) for i, row in enumerate(boxes.tolist()) for box in row]
    pooled = torch.stack(
        [
            model.local_scores(batch.image[i : i + 1, :, y0:y1, x0:x1])[0, :3].mean(dim=(1, 2))
            for i, x0, y0, x1, y1 in views
        ]
    )
    targets = batch.labels[[i for i, *_ in views]]
    assert parts["cls"].item() == pytest.approx(classification_loss(pooled, targets).item(), rel=1e-5)


def test_global_classification_is_a_loss_only_where_it_is_asked_for() -> None:
    batch = make_batch(3)
    for on, key in ((True, "global_cls"), (False, "monitor/global_cls")):
        model = build(L2GConfig(global_classification=on, **SMALL), 3).eval()
        parts = model.loss(batch, MIDDLE)
        expected = classification_loss(spatial_mean(model.evidence(batch.image)[:, :3]), batch.labels)
        assert set(parts) == {"cls", "transfer", key}
        assert parts[key].item() == pytest.approx(expected.item(), rel=1e-6)
        assert parts[key].requires_grad is on


def test_local_only_keeps_one_network() -> None:
    batch = make_batch(3)
    plain = build(L2GConfig(local_only=True, saliency=False, **SMALL), 3)
    shaped = build(L2GConfig(local_only=True, **SMALL), 3)
    assert plain.local_head is None
    assert plain.local_backbone is None
    assert plain.evidence(batch.image).shape[1] == 3
    assert shaped.evidence(batch.image).shape[1] == 4
    assert set(plain.loss(batch, MIDDLE)) == {"cls"}
    assert set(shaped.loss(batch, MIDDLE)) == {"cls", "transfer"}


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_each_loss_reaches_its_own_network(profile: str) -> None:
    model = build(L2GConfig(profile=profile, **SMALL), 3).train()
    parts = model.loss(make_batch(3), MIDDLE)
    owned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    local = {name for name in owned if name.startswith("local_")}
    for part, reached in (("cls", local), ("transfer", set(owned) - local)):
        gradients = torch.autograd.grad(parts[part], list(owned.values()), allow_unused=True, retain_graph=True)
        assert {n for n, g in zip(owned, gradients, strict=True) if g is not None} == reached, part
    assert not parts["monitor/global_cls"].requires_grad


def test_local_background_is_a_projection_no_loss_reaches() -> None:
    model = build(L2GConfig(profile="released", **SMALL), 3).train()
    sum(value for key, value in model.loss(make_batch(3), MIDDLE).items() if "/" not in key).backward()
    gradient = model.local_head.classifier.weight.grad
    assert not gradient[-1].any()
    assert gradient[:-1].any()


def test_repeating_every_view_changes_nothing() -> None:
    torch.manual_seed(0)
    boxes = sample_boxes("random", 2, 3, 24, (48, 48))
    twice = boxes.repeat_interleave(2, dim=1)
    whole, labels = torch.randn(2, 4, 6, 6), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    local = torch.randn(6, 4, 3, 3)
    losses = []
    for chosen, scores in ((boxes, local), (twice, local.repeat_interleave(2, dim=0))):
        repeated = labels.repeat_interleave(chosen.shape[1], dim=0)
        target = make_transfer_target(compute_attention(scores, repeated), 3, None, 0.1, "soft", True)
        for norm in ("mean", "sum"):
            losses.append(transfer_loss(read_global_views(whole, chosen, (3, 3), 8, "crop"), target, norm))
    assert torch.allclose(losses[0], losses[2])
    assert torch.allclose(losses[1], losses[3])


def test_networks_are_separate_or_shared() -> None:
    separate, shared = build(L2GConfig(), 2), build(L2GConfig(shared=True), 2)
    local = separate.local_backbone.conv4.weight
    assert torch.equal(local, separate.backbone.conv4.weight)
    assert local is not separate.backbone.conv4.weight
    assert shared.local_backbone is None
    assert shared.local_head is not shared.head
    assert len(list(separate.parameters())) > len(list(shared.parameters()))


def test_saliency_follows_the_view_and_its_maximum() -> None:
    saliency = torch.zeros(1, 1, 16, 16)
    saliency[..., 8:, 8:] = 0.5
    boxes = torch.tensor([[[0, 0, 8, 8], [8, 8, 16, 16]]])
    plain = crop_saliency(saliency, boxes, (2, 2), False)
    assert plain.shape == (2, 1, 2, 2)
    assert not plain[0].any()
    assert (plain[1] == 0.5).all()
    assert crop_saliency(saliency, boxes, (2, 2), True)[1].max().item() == pytest.approx(1.0)
    assert not crop_saliency(0 * saliency, boxes, (2, 2), True).any()


def test_map_forms() -> None:
    images = torch.randn(1, 3, 40, 40)
    forms = {}
    for form in ("attention", "logits", "softmax"):
        model = build(L2GConfig(map_form=form), 3).eval()
        forms[form], scores = model.maps(images), model.evidence(images)
    assert torch.equal(forms["logits"], scores[:, :3])
    assert torch.equal(forms["attention"], scores[:, :3].clamp(min=0))
    assert torch.equal(forms["softmax"], scores.softmax(dim=1)[:, :3])


def test_logits_come_from_the_network_that_learns_to_classify() -> None:
    images = torch.randn(1, 3, 40, 40)
    model = build(L2GConfig(), 3).eval()
    assert torch.allclose(model.logits(images), spatial_mean(model.local_scores(images)[:, :3]))
    both = build(L2GConfig(global_classification=True), 3).eval()
    assert torch.allclose(both.logits(images), spatial_mean(both.evidence(images)[:, :3]))


def test_views_follow_the_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return sample_boxes("random", 3, 4, 16, (48, 48))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
