# SPDX-License-Identifier: Apache-2.0
"""Image-level average precision on validation images while a localizer trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.image import decode_image
from wsss_ray.data.shards import Rows
from wsss_ray.engine.fusion import compute_unit_scale, make_scaled_inputs
from wsss_ray.score.precision import compute_mean_average_precision

BATCH = 16


@dataclass(frozen=True)
class World:
    """The place of a worker among those that share the global batch."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class ValidationImage:
    """A validation image as the network takes it."""

    image: Tensor
    """(3, H, W) normalised."""
    labels: np.ndarray
    """(C,) float32 in {0, 1}."""


def choose_evenly(total: int, limit: int) -> list[int]:
    """At most ``limit`` evenly spaced indices below ``total``, ascending."""
    count = min(limit, total)
    return sorted({round(float(place)) for place in np.linspace(0, total - 1, count)}) if count else []


def load_validation_images(
    rows: Rows, num_classes: int, normalize: NormalizeConfig, limit: int, long_side: int | None = None
) -> list[ValidationImage]:
    """Up to ``limit`` evenly spaced labelled images: decoded, normalised, at their own size or brought to
    ``long_side``.
    """
    images = []
    for index in choose_evenly(len(rows), limit):
        row = rows[index]
        labels = np.zeros(num_classes, dtype=np.float32)
        labels[list(row["labels"])] = 1
        pixels = decode_image(row["image"], row["image_id"])
        unit = compute_unit_scale((pixels.shape[0], pixels.shape[1]), long_side)
        images.append(ValidationImage(make_scaled_inputs(pixels, unit, normalize.apply, flip=False)[0], labels))
    return images


@torch.no_grad()
def measure_precision(
    network: nn.Module, images: Sequence[ValidationImage], world: World, memory_format: torch.memory_format, bf16: bool
) -> float | None:
    """Image-level mean average precision in [0, 1], the images shared among workers; None for a network without
    image-level ``logits``.
    """
    if not hasattr(network, "logits"):
        return None
    by_size: dict[tuple[int, ...], list[ValidationImage]] = {}
    for image in images[world.rank :: world.size]:
        by_size.setdefault(tuple(image.image.shape), []).append(image)
    scores, truths = [], []
    for group in by_size.values():
        for start in range(0, len(group), BATCH):
            chunk = group[start : start + BATCH]
            inputs = torch.stack([image.image for image in chunk]).to(world.device, memory_format=memory_format)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                logits: Tensor = network.logits(inputs)  # type: ignore[operator]
            scores.append(logits.float().cpu().numpy())
            truths.append(np.stack([image.labels for image in chunk]))
    everything: list[Any] = [(scores, truths)]
    if world.size > 1:
        everything = [None] * world.size
        dist.all_gather_object(everything, (scores, truths))
    all_scores = [part for piece in everything for part in piece[0]]
    all_truths = [part for piece in everything for part in piece[1]]
    return compute_mean_average_precision(np.concatenate(all_scores), np.concatenate(all_truths))
