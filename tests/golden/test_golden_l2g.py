# SPDX-License-Identifier: Apache-2.0
"""L2G against released numbers: labels from 8-bit maps, the order of its boxes, a patch of a view."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from wsss_ray.contracts import ClassMaps
from wsss_ray.data.augment import AugmentConfig, NormalizeConfig, render
from wsss_ray.data.geometry import Geometry, side_to
from wsss_ray.methods import METHODS
from wsss_ray.methods.views import crop_views, sample_cells
from wsss_ray.refine.seeds import ThresholdSeedsConfig


@pytest.mark.parametrize("name", ["l2g", "l2g_coconorm"])
def test_labels_of_8_bit_maps(golden, name):
    """The label script reads the maps from PNGs; its background constant is the method's."""
    arrays = golden(f"06_infer_{name}.npz")
    maps = arrays["fused_8bit"].astype(np.float32) / 255
    size = (maps.shape[1], maps.shape[2])
    threshold = METHODS["l2g"](profile="released").background()
    held = ClassMaps("a", arrays["present"].astype(np.int32), maps, size)
    mask = ThresholdSeedsConfig(threshold=threshold).refine(arrays["image"], held)
    np.testing.assert_array_equal(mask, arrays["pred_from_8bit"])


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_boxes_go_image_by_image(golden, name):
    """Each row of the released boxes names its image; ours are told apart by their place alone."""
    arrays = golden(f"04b_l2g_kd_{name}.npz")
    whole, boxes = torch.from_numpy(arrays["global_logits"]), torch.from_numpy(arrays["boxes"])[:, :, 1:]
    rows = torch.from_numpy(arrays["out_boxes5"])
    stride = round(arrays["saliency"].shape[-1] / whole.shape[-1])
    size = arrays["local_logits"].shape[2:]
    together = sample_cells(whole, boxes, size, stride, "roi")
    assert len(together) == len(rows)
    for number, row in enumerate(rows):
        image = whole[int(row[0])][None]
        alone = sample_cells(image, row[None, None, 1:].long(), size, stride, "roi")
        assert (together[number] - alone[0]).abs().max() <= 1e-5, number


def test_patches_of_a_view(golden):
    arrays = golden("10_geometry_l2g.npz")
    config = AugmentConfig(crop_before_normalize=True, saliency_interpolation="nearest", saliency_max=True)
    for key, case in json.loads(str(arrays["meta"]))["cases"].items():
        image = arrays[f"{key}__image"]
        size = side_to(*image.shape[:2], min(case["resized_hw"]), "short")
        geometry = Geometry(size, case["view"], (case["y0"], case["x0"]))
        view = render({"image": image}, geometry, [], config, NormalizeConfig())["image"]
        boxes = torch.from_numpy(arrays[f"{key}__boxes"])[None, :, 1:]
        patch = crop_views(view[None], boxes)[5].numpy()
        expected = arrays[f"{key}__out_patch5"]
        every = patch.shape[1] // expected.shape[1]
        np.testing.assert_allclose(patch[:, ::every, ::every], expected, atol=1e-6, rtol=0)
