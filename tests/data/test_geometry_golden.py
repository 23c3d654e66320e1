# SPDX-License-Identifier: Apache-2.0
"""Placing, resizing and normalising against what the released loaders of EPS, SMAF, L2G, PSA and IRN produced."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss_ray.data.augment import AugmentConfig, render
from wsss_ray.data.colour import NormalizeConfig
from wsss_ray.data.geometry import Geometry, resize, scale_by, side_to

IMAGENET = NormalizeConfig()


def _cases(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = json.loads(str(arrays["meta"]))["cases"]
    return cases


def _eps_geometry(case: dict[str, Any], image: np.ndarray) -> Geometry:
    size = side_to(*image.shape[:2], case["target_long"], "long")
    assert list(size) == case["resized_hw"]
    offset = (case["img_top"] - case["cont_top"], case["img_left"] - case["cont_left"])
    return Geometry(size, case["crop"], offset, case["flip"])


@pytest.mark.parametrize("name", ["10_geometry_eps.npz", "10_geometry_smaf.npz"])
def test_long_side_family(golden, name):
    arrays = golden(name)
    for key, case in _cases(arrays).items():
        decoded = {"image": arrays[f"{key}__image"], "saliency": arrays[f"{key}__saliency_rgb"]}
        if f"{key}__lp" in arrays:
            decoded["maps"] = arrays[f"{key}__lp"]
        sample = render(decoded, _eps_geometry(case, decoded["image"]), [], AugmentConfig(), IMAGENET)
        np.testing.assert_allclose(sample["image"].numpy(), arrays[f"{key}__out_image"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(sample["saliency"].numpy(), arrays[f"{key}__out_saliency"], atol=1e-6, rtol=0)
        if "maps" in decoded:
            np.testing.assert_allclose(sample["maps"].numpy(), arrays[f"{key}__out_lp"], atol=1e-6, rtol=0)


def test_l2g_views_with_swapped_axes(golden):
    arrays = golden("10_geometry_l2g.npz")
    config = AugmentConfig(crop_before_normalize=True, saliency_interpolation="nearest", saliency_max=True)
    for key, case in _cases(arrays).items():
        image = arrays[f"{key}__image"]
        size = side_to(*image.shape[:2], min(case["resized_hw"]), "short")
        assert list(size) == case["resized_hw"]
        geometry = Geometry(size, case["view"], (case["y0"], case["x0"]))
        sample = render({"image": image, "saliency": arrays[f"{key}__saliency"]}, geometry, [], config, IMAGENET)
        np.testing.assert_allclose(sample["image"].numpy(), arrays[f"{key}__out_view"], atol=1e-6, rtol=0)
        assert int((sample["inside"][0].sum(1) == 0).sum()) == case["pad_rows"]
        assert int((sample["inside"][0].sum(0) == 0).sum()) == case["pad_cols"]
        boxes = arrays[f"{key}__boxes"]
        for place, patch in enumerate((0, 3)):
            _, x0, y0, x1, y1 = boxes[patch].tolist()
            cut = sample["saliency"][:, y0:y1, x0:x1].numpy()
            expected = arrays[f"{key}__out_saliency_crops"][place]
            np.testing.assert_allclose(cut, expected, atol=1e-6, rtol=0)


def test_psa_crops_before_normalising(golden):
    arrays = golden("b09_psa_aff_padding.npz")
    crop = int(arrays["crop_size"])
    left, top = arrays["offset_left_top"].tolist()
    image = arrays["img"]
    config = AugmentConfig(crop_before_normalize=True)
    sample = render({"image": image}, Geometry(image.shape[:2], crop, (-top, -left)), [], config, IMAGENET)
    np.testing.assert_allclose(sample["image"][:, 0].numpy(), arrays["network_input_row0"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(sample["image"][:, ::8, ::8].numpy(), arrays["network_input_every8"], atol=1e-6, rtol=0)


def test_irn_multi_scale_inputs(golden):
    arrays = golden("b15_utils.npz")
    image = arrays["msf_img"]
    for scale in (0.5, 1.0, 1.5, 2.0):
        expected = arrays[f"msf_irn_s{scale}"]
        scaled = IMAGENET.apply(resize(image, scale_by(*image.shape[:2], scale), "bicubic")).numpy()
        np.testing.assert_allclose(scaled, expected[0], atol=1e-6, rtol=0)
        if len(expected) > 1:
            np.testing.assert_allclose(scaled[:, :, ::-1], expected[1], atol=1e-6, rtol=0)


def test_l2g_coco_and_caffe_presets_by_hand():
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    coco = NormalizeConfig.model_validate("l2g_coco").apply(pixel).flatten().tolist()
    assert coco == pytest.approx([(10 / 255 - 0.471) / 0.234, (20 / 255 - 0.448) / 0.239, (30 / 255 - 0.408) / 0.242])
    caffe = NormalizeConfig(preset="caffe_bgr").apply(pixel).flatten().tolist()
    assert caffe == pytest.approx([30 - 104.008, 20 - 116.669, 10 - 122.675], abs=1e-4)


def test_masks_take_pixel_centres():
    """A mask column of 8 halved takes indices 1, 3, 5, 7 (PIL, torch nearest-exact), not 0, 2, 4, 6."""
    mask = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    assert resize(mask, (4, 4), "nearest")[0].tolist() == [1, 3, 5, 7]


def test_linear_is_not_smoothed_when_shrinking():
    """Half size, OpenCV's rule: the mean of the two middle neighbours; PIL's bilinear looks further."""
    row = np.tile(np.array([0, 0, 200, 100, 0, 0, 0, 0], np.uint8), (8, 1))
    assert resize(row, (4, 4), "linear")[0].tolist() == [0, 150, 0, 0]
    assert np.array(Image.fromarray(row).resize((4, 4), Image.Resampling.BILINEAR))[0].tolist() != [0, 150, 0, 0]
