"""Forward passes over whole images: scales and flips, images of one size at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import Pass, scaled_inputs

MAX_PIXELS = 12_000_000
"""Input pixels of one forward pass at most, so that large images at scale 2 fit in memory."""


def same_size(images: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Indices of images of one size, at most ``batch_size`` at a time, in a fixed order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape[:2], []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


@torch.inference_mode()
def passes(
    forward: Callable[[Tensor], Tensor],
    images: Sequence[np.ndarray],
    scales: Sequence[float],
    flip: bool,
    normalize: NormalizeConfig,
    device: torch.device,
    precision: str,
) -> Iterator[Pass]:
    """For every scale the output of same-sized (H, W, 3) uint8 images and, with ``flip``, of their mirror images
    (still mirrored).

    Each ``Pass`` holds (B, K, h, w) float32.
    """
    for scale in scales:
        plain = torch.cat([scaled_inputs(image, scale, normalize.apply, flip=False) for image in images])
        inputs = torch.cat([plain, plain.flip(3)]) if flip else plain
        share = max(1, MAX_PIXELS // (inputs.shape[2] * inputs.shape[3]))
        outputs = []
        for start in range(0, len(inputs), share):
            chunk = inputs[start : start + share].to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs.append(forward(chunk).float().cpu())
        output = torch.cat(outputs)
        yield Pass(output[: len(plain)], output[len(plain) :] if flip else None)
