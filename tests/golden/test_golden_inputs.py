# SPDX-License-Identifier: Apache-2.0
"""Golden numbers about what tests are given: sums of rule-made weights, and where SMAF's stored maps stand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden_rules import set_a
from wsss_ray.data.augment import AugmentConfig, NormalizeConfig, render
from wsss_ray.data.geometry import Geometry

FEATURES, MIDDLE = 4096, 128
"""Channels of ResNet-38's last tap, and of SMAF's layer between it and the classifier."""
HEADS = {
    "cls": {"fc8": ("cls/fc8.weight", FEATURES, 4)},
    "eps": {"fc8": ("eps/fc8.weight", FEATURES, 8)},
    "smaf": {"cov_feat": ("smaf/cov_feat.weight", FEATURES, 2), "fc8": ("smaf/fc8.weight", MIDDLE, 6)},
    "l2g": {
        "fc8": ("l2g/fc8.weight", FEATURES, 4),
        "f8_3": ("l2g/f8_3.weight", 512, 1),
        "f8_4": ("l2g/f8_4.weight", 1024, 1),
        "f9": ("l2g/f9.weight", 195, 2),
    },
}
"""Layer -> the name its weight is made from, its input channels and gain."""
OUTPUTS = {"cov_feat": MIDDLE, "f8_3": 64, "f8_4": 128, "f9": 192}


@pytest.mark.parametrize("name", ["cls", "eps", "smaf", "l2g", "l2g_coconorm"])
def test_sums_of_head_weights(golden, name):
    arrays = golden(f"06_infer_{name}.npz")
    num_maps = arrays["head_s0_orig"].shape[0]
    for layer, (key, num_in, gain) in HEADS[name.split("_")[0]].items():
        shape = (OUTPUTS.get(layer, num_maps), num_in, 1, 1)
        weight = set_a(key, shape, str(arrays["salt"]), "weight", gain)
        np.testing.assert_allclose(weight.ravel()[:8], arrays[f"first8_{layer}.weight"], rtol=0, atol=1e-6)
        assert weight.sum(dtype=np.float64) == pytest.approx(float(arrays[f"sum_{layer}.weight"]), rel=1e-4, abs=1e-3)


def test_stored_maps_keep_their_channels(golden):
    arrays = golden("10_geometry_smaf.npz")
    for key, case in json.loads(str(arrays["meta"]))["cases"].items():
        image, stored, channels = (arrays[f"{key}__{name}"] for name in ("image", "lp", "lp_channels"))
        planes = np.zeros((int(channels.max()) + 2, *stored.shape[1:]), np.float32)
        planes[channels] = stored
        offset = (case["img_top"] - case["cont_top"], case["img_left"] - case["cont_left"])
        geometry = Geometry(tuple(case["resized_hw"]), case["crop"], offset, case["flip"])
        maps = render({"image": image, "maps": planes}, geometry, [], AugmentConfig(), NormalizeConfig())["maps"]
        np.testing.assert_allclose(maps[channels].numpy(), arrays[f"{key}__out_lp"], atol=1e-6, rtol=0)
        others = np.setdiff1d(np.arange(len(planes)), channels)
        assert not maps[others].any()
