# SPDX-License-Identifier: Apache-2.0
"""Fusion of scales and flips against the released inference of EPS, SMAF, L2G, PSA, IRN and KTSE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fuse_all import fuse_all
from tests.golden_rules import fill_set_b, set_b, set_b_input
from wsss_ray.config import UserError
from wsss_ray.contracts import FusionRule
from wsss_ray.engine.fusion import (
    Pass,
    compute_grid_size,
    fuse_present,
    make_scaled_inputs,
    normalize_maps,
    round_to_cells,
    scale_size,
)
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets import build_backbone
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners

Golden = Callable[[str], dict[str, np.ndarray]]
CAM = FusionRule(rectify="before")
SOFTMAX = FusionRule(rectify="none")
L2G = FusionRule(rectify="after", interpolation="bicubic", reduce="mean", epsilon=1e-8)
KTSE = FusionRule(rectify="per_pass")
PAIR = FusionRule(rectify="pair")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def imagenet(image: np.ndarray) -> Tensor:
    return torch.from_numpy((image / 255 - MEAN) / STD).permute(2, 0, 1).float()


def stored(data: dict[str, np.ndarray], plain: str, flipped: str, convert: Callable[[Tensor], Tensor]) -> Pass:
    one, two = (convert(torch.from_numpy(data[key])[None]) for key in (plain, flipped))
    return Pass(one, two)


def foreground_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)[:, :-1]


def positive(maps: Tensor) -> Tensor:
    return maps.relu()


def drop_background(maps: Tensor) -> Tensor:
    return maps[:, :-1]


def random_passes(num_images: int = 2, num_classes: int = 5, seed: int = 0) -> list[Pass]:
    generator = torch.Generator().manual_seed(seed)
    grids = [(2, 3), (4, 6), (7, 10)]
    shapes = [(num_images, num_classes, *grid) for grid in grids]
    return [Pass(torch.randn(s, generator=generator), torch.randn(s, generator=generator)) for s in shapes]


@pytest.mark.parametrize(
    ("name", "convert", "rule"),
    [("eps", foreground_softmax, SOFTMAX), ("smaf", foreground_softmax, SOFTMAX), ("cls", positive, CAM)]
    + [(name, drop_background, L2G) for name in ("l2g", "l2g_coconorm")],
)
def test_released_inference(golden: Golden, name: str, convert: Callable[[Tensor], Tensor], rule: FusionRule) -> None:
    data = golden(f"06_infer_{name}.npz")
    size = (data["image"].shape[0], data["image"].shape[1])
    labels = torch.from_numpy(data["label"])[None]
    passes = [stored(data, f"head_s{k}_orig", f"head_s{k}_flip", convert) for k in range(len(data["scales"]))]
    fused = fuse_present(passes, rule, size, labels).numpy()
    np.testing.assert_allclose(fused, data["fused"], atol=5e-6)
    raw = fuse_present(passes, rule.model_copy(update={"normalize": "none"}), size, labels).numpy()
    if "sum_maps" in data:
        np.testing.assert_allclose(raw, data["sum_maps"], atol=2e-5)
    else:
        np.testing.assert_allclose(raw, np.maximum(data["mean_maps_before_clamp"], 0), atol=2e-5)
    threshold = 0.25 if name.startswith("l2g") else 0.2
    mask = make_mask(pick_winners(add_constant_background(fused, threshold)), data["present"])
    sure = ~data["margin_small_1e-4"]
    np.testing.assert_array_equal(mask[sure], data["pred"][sure])
    if "fused_8bit" in data:
        assert abs(np.rint(255 * fused) - data["fused_8bit"]).max() <= 1


def test_smaf_fused_maps(golden: Golden) -> None:
    data = golden("05a_smaf_fusion.npz")
    size = (int(data["image_hw"][0]), int(data["image_hw"][1]))
    assert [scale_size(size, s) for s in data["scales"].tolist()] == [tuple(s) for s in data["input_sizes_hw"].tolist()]
    passes = [
        stored(data, f"logits_s{k}_orig", f"logits_s{k}_flip", foreground_softmax) for k in range(len(data["scales"]))
    ]
    fused = fuse_all(passes, SOFTMAX, size, torch.from_numpy(data["label"])[None])[0].numpy()
    np.testing.assert_allclose(fused[data["present"]], data["fused"], atol=1e-5)
    mask = make_mask(pick_winners(add_constant_background(fused, 0.2)), np.arange(len(fused)))
    np.testing.assert_array_equal(mask, data["pred_png"])


def test_psa_maps(golden: Golden) -> None:
    data = golden("b10_psa_cam_crf.npz")
    passes = [stored(data, f"F_{k}", f"F_{k + 1}", lambda maps: maps) for k in (0, 2, 4, 6)]
    fused = fuse_present(passes, CAM, data["img"].shape[:2], torch.from_numpy(data["label"])[None])
    np.testing.assert_allclose(fused.numpy(), data["cam"], atol=2e-6)


def test_ktse_maps(golden: Golden) -> None:
    data = golden("b04_ktse_infer_eval.npz")
    size = (int(data["H"]), int(data["W"]))
    scales = ("0.5", "1.0", "1.5", "2.0")
    passes = [stored(data, f"F_s{s}_plain", f"F_s{s}_flip", lambda maps: maps) for s in scales]
    labels = torch.from_numpy(data["label"])[None]
    np.testing.assert_allclose(fuse_present(passes, KTSE, size, labels).numpy(), data["seed"], atol=2e-6)
    assert abs(fuse_present(passes, CAM, size, labels).numpy() - data["seed"]).max() > 0.05


def test_irn_maps(golden: Golden) -> None:
    data = golden("b06_irn_cam_fusion.npz")
    size = (int(data["H"]), int(data["W"]))
    logits = [torch.from_numpy(data[f"logits_s{s}"]) for s in ("1.0", "0.5", "1.5", "2.0")]
    passes = [Pass(maps[:1], maps[1:]) for maps in logits]
    labels = torch.from_numpy(data["label"])[None]
    assert np.flatnonzero(data["label"]).tolist() == data["keys"].tolist()
    strided = fuse_present(passes, CAM, compute_grid_size(size, 4), labels)
    np.testing.assert_allclose(strided.numpy(), data["strided_cam"], atol=2e-6)
    high = fuse_present(passes, CAM, round_to_cells(size, 16), labels, crop=size)
    np.testing.assert_allclose(high.numpy(), data["high_res"], atol=2e-6)
    assert abs(fuse_present(passes, CAM, size, labels).numpy() - data["high_res"]).max() > 0.01


@torch.inference_mode()
def test_irn_pair_through_the_network(golden: Golden) -> None:
    data = golden("b07_irn_resnet50_rule.npz")
    prefix, gain = str(data["rule_prefix"]), float(data["gain"])
    num_classes, *size = data["cam_pair"].shape
    net: Any = CAMConfig.model_validate({"style": "irn"}).build(build_backbone("resnet50", 16), num_classes).eval()
    fill_set_b(net.backbone, prefix, gain, under="resnet50.")
    net.head.weight.copy_(torch.from_numpy(set_b("classifier.weight", net.head.weight.shape, prefix, gain)))
    maps = net.maps(torch.from_numpy(set_b_input("image", data["input_shape"], prefix)))
    rule = CAM.model_copy(update={"normalize": "none"})
    fused = fuse_all([Pass(maps[:1], maps[1:])], rule, (size[0], size[1]), torch.ones(1, num_classes))
    np.testing.assert_allclose(fused[0].numpy(), data["cam_pair"], atol=2e-5)


def test_ktse_pair_for_irn(golden: Golden) -> None:
    data = golden("b05_ktse_irn_extras.npz")
    maps = torch.from_numpy(data["pair_F21"])[:, 1:]
    rule = PAIR.model_copy(update={"normalize": "none"})
    size = (maps.shape[2], maps.shape[3])
    fused = fuse_all([Pass(maps[:1], maps[1:])], rule, size, torch.ones(1, maps.shape[1]))
    np.testing.assert_allclose(fused[0].numpy(), data["pair_cam"], atol=1e-6)


def test_irn_loader(golden: Golden) -> None:
    data = golden("b15_utils.npz")
    for key in (key for key in data if key.startswith("msf_irn_s")):
        inputs = make_scaled_inputs(data["msf_img"], float(key.removeprefix("msf_irn_s")), imagenet)
        np.testing.assert_allclose(inputs[: len(data[key])].numpy(), data[key], atol=1e-6)
        assert torch.equal(inputs[1], inputs[0].flip(2))


def test_irn_grids(golden: Golden) -> None:
    data = golden("b15_utils.npz")
    for size, strided, rounded in zip(data["sizes"], data["strided4"], data["strided_up16"], strict=True):
        assert compute_grid_size(tuple(size), 4) == tuple(strided)
        assert round_to_cells(tuple(size), 16) == tuple(rounded)


def test_halves_go_to_the_even_number() -> None:
    assert [scale_size((61, 75), 1.5), scale_size((75, 61), 1.5), scale_size((47, 51), 0.5)] == [
        (92, 112),
        (112, 92),
        (24, 26),
    ]
    assert scale_size((1, 1), 0.25) == (1, 1)


def keys(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, PIL's bicubic."""
    x = np.abs(distance)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def test_resize_is_bicubic_on_eight_bits_and_smooths_where_it_shrinks() -> None:
    image = np.zeros((2, 8, 3), np.uint8)
    image[:, 4:] = 255
    inputs = make_scaled_inputs(
        image, 0.5, lambda p: torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1), flip=False
    )
    weights = keys((np.arange(8) + 0.5 - (np.arange(4)[:, None] + 0.5) * 2) / 2)
    expected = (weights / weights.sum(axis=1, keepdims=True)) @ image[0, :, 0]
    assert expected.min() < -1
    assert expected.max() > 256
    assert inputs[0, 0].tolist() == [np.rint(expected.clip(0, 255)).tolist()]


def test_up_sampling_crop_and_mean_by_hand() -> None:
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    raw = FusionRule(normalize="none")
    one = torch.ones(1, 1)
    assert fuse_all([Pass(ramp)], raw, (1, 4), one).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert fuse_all([Pass(ramp)], raw, (1, 4), one, crop=(1, 3)).flatten().tolist() == [0, 0.25, 0.75]
    # The maximum is taken of what the crop leaves.
    cropped = fuse_all([Pass(ramp)], FusionRule(epsilon=0), (1, 4), one, crop=(1, 3))
    assert cropped.flatten().tolist() == pytest.approx([0, 1 / 3, 1])
    # Two passes of the first scale and one of the second: three to average.
    mean = fuse_all([Pass(ramp, 3 * ramp), Pass(ramp)], raw.model_copy(update={"reduce": "mean"}), (1, 2), one)
    assert mean.flatten().tolist() == pytest.approx([1, 2 / 3])
    # Keys' cubic with a = -0.75: at 0.25 the two ones to the right weigh 0.26171875 - 0.03515625.
    cubic = fuse_all([Pass(ramp)], FusionRule(interpolation="bicubic", normalize="none"), (1, 4), one).flatten()
    assert cubic.tolist() == pytest.approx([-0.10546875, 0.2265625, 0.7734375, 1.10546875])


@pytest.mark.parametrize("rule", [CAM, SOFTMAX, L2G, KTSE, PAIR], ids=lambda r: r.rectify)
def test_mirrored_passes_give_the_mirrored_map(rule: FusionRule) -> None:
    passes, labels = random_passes(), torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]])
    swapped = [Pass(one.flipped, one.plain) for one in passes if one.flipped is not None]
    torch.testing.assert_close(
        fuse_all(swapped, rule, (25, 37), labels).flip(3), fuse_all(passes, rule, (25, 37), labels)
    )


@pytest.mark.parametrize("rule", [CAM, L2G, KTSE, PAIR], ids=lambda r: r.rectify)
def test_absent_classes_are_zero_and_present_ones_reach_one(rule: FusionRule) -> None:
    passes, labels = random_passes(), torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    passes = [Pass(one.plain.clone(), one.flipped) for one in passes]
    for plain, flipped in passes:
        assert flipped is not None
        plain[0, 3], flipped[0, 3] = -1, -1
    fused = fuse_all(passes, rule, (25, 37), labels)
    assert fused.shape == (2, 5, 25, 37)
    top = fused.amax(dim=(2, 3))
    assert top[0].tolist() == pytest.approx([1, 0, 1, 0, 0], abs=1e-4)
    assert top[1].tolist() == [0] * 5


def test_sum_and_mean_label_alike() -> None:
    passes, labels = random_passes(), torch.ones(2, 5)
    mean = fuse_all(passes, CAM.model_copy(update={"reduce": "mean"}), (25, 37), labels)
    torch.testing.assert_close(mean, fuse_all(passes, CAM, (25, 37), labels), atol=1e-4, rtol=0)


def test_one_scale_without_flip_is_the_plain_map() -> None:
    maps = torch.rand(1, 2, 4, 6)
    rule = CAM.model_copy(update={"epsilon": 0.0})
    fused = fuse_all([Pass(maps)], rule, (4, 6), torch.ones(1, 2))
    torch.testing.assert_close(fused, maps / maps.amax(dim=(2, 3), keepdim=True))


def test_the_places_of_relu_differ() -> None:
    passes, labels = random_passes(), torch.ones(2, 5)
    results = [
        fuse_all(passes, FusionRule(rectify=r), (25, 37), labels) for r in ("before", "pair", "per_pass", "after")
    ]
    for k, one in enumerate(results):
        for other in results[k + 1 :]:
            assert abs(one - other).max() > 0.01


def test_softmax_then_upsample_is_not_upsample_then_softmax() -> None:
    sharp = torch.zeros(1, 3, 2, 2)
    sharp[0, 0, 0, 0], sharp[0, 1, 1, 1] = 12, 12
    first = fuse_all([Pass(foreground_softmax(sharp))], SOFTMAX, (16, 16), torch.ones(1, 2))
    grown = torch.nn.functional.interpolate(sharp, size=(16, 16), mode="bilinear", align_corners=False)
    then = fuse_all([Pass(foreground_softmax(grown))], SOFTMAX, (16, 16), torch.ones(1, 2))
    assert abs(first - then).max() > 0.1


def test_packing_images_changes_no_bit() -> None:
    passes, labels = random_passes(4), torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5, [1] * 5])
    for rule in (CAM, L2G, KTSE):
        whole = fuse_all(passes, rule, (25, 37), labels)
        for k in range(4):
            alone = [Pass(p[k : k + 1], f[k : k + 1]) for p, f in passes if f is not None]
            assert torch.equal(fuse_all(alone, rule, (25, 37), labels[k : k + 1])[0], whole[k])


def test_a_constant_stays_constant_up_to_the_border() -> None:
    passes = [Pass(torch.full((1, 1, h, w), 0.7), torch.full((1, 1, h, w), 0.7)) for h, w in ((2, 3), (5, 7))]
    fused = fuse_all(passes, CAM, (20, 30), torch.ones(1, 1))
    torch.testing.assert_close(fused, torch.ones(1, 1, 20, 30), atol=1e-5, rtol=0)


def test_normalisation_by_hand() -> None:
    maps = torch.tensor([[[1.0, 3.0, 5.0]], [[0.0, 0.0, 0.0]]])
    assert normalize_maps(maps, FusionRule(epsilon=0))[0, 0].tolist() == pytest.approx([0.2, 0.6, 1])
    assert normalize_maps(maps, FusionRule(normalize="minmax", epsilon=0))[0, 0].tolist() == [0, 0.5, 1]
    assert normalize_maps(maps, FusionRule(epsilon=0))[1, 0].tolist() == [0, 0, 0]


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least one scale"):
        fuse_all([], CAM, (4, 4), torch.ones(1, 2))
    with pytest.raises(UserError, match="maps of 2 classes"):
        fuse_all([Pass(torch.ones(1, 2, 3, 3))], CAM, (4, 4), torch.ones(1, 3))
