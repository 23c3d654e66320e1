# SPDX-License-Identifier: Apache-2.0
"""Seeds scored while a localizer trains: their mIoU, and recall and precision of the foreground."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wsss_ray.contracts import FusionRule
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.watch import SeedReading, SeedWatch
from wsss_ray.methods.cam import CAMConfig


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Given(nn.Module):
    """Maps of two classes, whatever the image: the left half of the first, a value of all of the second."""

    def __init__(self, values: tuple[float, float]) -> None:
        super().__init__()
        self.values = values

    def maps(self, images: Tensor) -> Tensor:
        maps = torch.zeros(len(images), 2, *images.shape[2:])
        maps[:, 0, :, : images.shape[3] // 2] = self.values[0]
        maps[:, 0, :, images.shape[3] // 2 :] = self.values[1]
        maps[:, 1, 0] = 1
        return maps


def watch_of(labels: list[list[int]], masks: list[np.ndarray]) -> SeedWatch:
    image = png(np.zeros((*masks[0].shape, 3), np.uint8))
    rows: Any = [
        {"image_id": str(k), "image": image, "labels": label, "mask": png(mask)}
        for k, (label, mask) in enumerate(zip(labels, masks, strict=True))
    ]
    rule = FusionRule(normalize="none", reduce="mean")
    own = LocalizeConfig(stride=1, fusion=rule, scales=(1.0,))
    return SeedWatch(rows, SeedReading(2, own, rule, NormalizeConfig(), CAMConfig().background()), 8)


def test_recall_and_precision_by_hand() -> None:
    """Class 0 has the left three quarters of one image, class 1 half the top row of the other."""
    first, second = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8)
    first[:, :6], second[0, :4] = 1, 2
    watch = watch_of([[0], [1]], [first, second])
    assert watch.reading.background == 0.2
    network = Given((0.9, 0.1)).train()
    found = watch.score_seeds(network, torch.device("cpu"))
    # At 0.2: 16 of 24 pixels of class 0, all 16 right; 8 pixels of class 1, of which the 4 there are.
    assert found["seed_recall"] == pytest.approx((16 / 24 + 1) / 2)
    assert found["seed_precision"] == pytest.approx((1 + 4 / 8) / 2)
    # Best below 0.1, where the first image is all class 0: 24 of 32; the second has 24 of 28 background pixels.
    iou = np.array([24 / (24 + 8 + 4), 24 / 32, 4 / 8])
    assert found["seed_miou"] == pytest.approx(iou.mean())
    assert network.training


def test_what_the_threshold_hides_shows_in_recall_alone() -> None:
    mask = np.ones((4, 8), np.uint8)
    watch = watch_of([[0]], [mask])
    loud, quiet = (watch.score_seeds(Given((value, value)), torch.device("cpu")) for value in (0.9, 0.1))
    assert loud["seed_miou"] == quiet["seed_miou"] == 1
    assert (loud["seed_recall"], quiet["seed_recall"]) == (1, 0)
    assert np.isnan(quiet["seed_precision"])
