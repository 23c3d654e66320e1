# SPDX-License-Identifier: Apache-2.0
"""Forward passes over whole images: scales and flips, images of one size at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import Pass, make_scaled_inputs

MAX_PIXELS = 12_000_000
"""Input pixels of one forward pass at most, so that large images at scale 2 fit in memory."""


@dataclass(frozen=True)
class Device:
    """Where a network runs, and how it is fed."""

    normalize: NormalizeConfig
    device: torch.device
    batch_size: int = 8
    """Images of one size in one forward pass at most."""


def group_by_size(images: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Indices of images of one size, at most ``batch_size`` at a time, in a fixed order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape[:2], []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


@torch.inference_mode()
def forward_scale(
    forward: Callable[[Tensor], Tensor], images: Sequence[np.ndarray], scale: float, flip: bool, on: Device, bf16: bool
) -> Pass:
    """The output at one scale of same-sized (H, W, 3) uint8 images and, with ``flip``, of their mirror images.

    Returns (B, K, h, w) float32; those of the mirror images are still mirrored. ``bf16`` runs under autocast.
    """
    plain = torch.cat([make_scaled_inputs(image, scale, on.normalize.apply, flip=False) for image in images])
    inputs = torch.cat([plain, plain.flip(3)]) if flip else plain
    share = max(1, MAX_PIXELS // (inputs.shape[2] * inputs.shape[3]))
    outputs = []
    for start in range(0, len(inputs), share):
        chunk = inputs[start : start + share].to(on.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(on.device.type, torch.bfloat16, enabled=bf16):
            outputs.append(forward(chunk).float().cpu())
    output = torch.cat(outputs)
    return Pass(output[: len(plain)], output[len(plain) :] if flip else None)
