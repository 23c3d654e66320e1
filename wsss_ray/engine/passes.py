# SPDX-License-Identifier: Apache-2.0
"""Forward passes over whole images: scales and flips, images of one size at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import Pass, make_scaled_inputs, scale_size
from wsss_ray.engine.pixels import normalize_pixels, resize_pixels, resizes_columns_first

Decoded = TypeVar("Decoded")

MAX_PIXELS = 12_000_000
"""Input pixels of one forward pass at most, so that large images at scale 2 fit in memory."""


@dataclass(frozen=True)
class Device:
    """Where a network runs, and how it is fed."""

    normalize: NormalizeConfig
    device: torch.device
    batch_size: int = 8
    """Images of one size in one forward pass at most."""


def group_by_size(sizes: Sequence[tuple[int, ...]], batch_size: int) -> Iterator[list[int]]:
    """Indices of equal (H, W), at most ``batch_size`` at a time, in a fixed order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


@torch.inference_mode()
def forward_scale(
    forward: Callable[[Tensor], Tensor], images: Sequence[np.ndarray], scale: float, flip: bool, on: Device, bf16: bool
) -> Pass:
    """The output at one scale of same-sized (H, W, 3) uint8 images and, with ``flip``, of their mirror images.

    Returns (B, K, h, w) float32 on the device; those of the mirror images are still mirrored. ``bf16`` runs under
    autocast.
    """
    plain = make_inputs(images, scale, on)
    inputs = torch.cat([plain, plain.flip(3)]) if flip else plain
    share = max(1, MAX_PIXELS // (inputs.shape[2] * inputs.shape[3]))
    outputs = []
    for start in range(0, len(inputs), share):
        chunk = inputs[start : start + share].contiguous(memory_format=torch.channels_last)
        with torch.autocast(on.device.type, torch.bfloat16, enabled=bf16):
            outputs.append(forward(chunk).float())
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return Pass(output[: len(plain)], output[len(plain) :] if flip else None)


def make_inputs(images: Sequence[np.ndarray], scale: float, on: Device) -> Tensor:
    """Same-sized (H, W, 3) uint8 RGB images -> (B, 3, h, w) float32 on the device, resized and normalised.

    A GPU is sent the bytes and does both; the numbers are those of PIL and of ``NormalizeConfig.apply``.
    """
    size = (images[0].shape[0], images[0].shape[1])
    new = scale_size(size, scale)
    if on.device.type == "cpu" or not resizes_columns_first(size, new):
        made = [make_scaled_inputs(image, scale, on.normalize.apply, flip=False) for image in images]
        return torch.cat(made).to(on.device)
    pixels = torch.from_numpy(np.stack(images)).to(on.device)
    return normalize_pixels(resize_pixels(pixels, new), on.normalize)


def decode_ahead(decode: Callable[[int], Decoded], groups: Sequence[Sequence[int]]) -> Iterator[list[Decoded]]:
    """What ``decode`` makes of every index, group by group; the next group is decoded while the last is in work."""

    def decode_group(group: Sequence[int]) -> list[Decoded]:
        return [decode(index) for index in group]

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for group in groups:
            coming = pool.submit(decode_group, group)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()
