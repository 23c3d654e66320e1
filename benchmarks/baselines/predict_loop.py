# SPDX-License-Identifier: Apache-2.0
"""Masks by hand: the probabilities of all scales and flips, averaged at the image's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


@torch.inference_mode()
def predict_mask(
    scores: Callable[[Tensor], Tensor],
    image: np.ndarray,
    scales: Sequence[float],
    flip: bool,
    prepare: Callable[[np.ndarray], Tensor],
    device: torch.device,
) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int64 labels; ``prepare`` normalises to (3, h, w), ``scores`` gives (B, K, h, w)."""
    height, width = image.shape[:2]
    total = torch.zeros((), device=device)
    for scale in scales:
        size = (round(width * scale), round(height * scale))
        pixels = image if scale == 1 else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        plain = prepare(pixels)
        views = torch.stack([plain, plain.flip(2)]) if flip else plain[None]
        found = scores(views.to(device).contiguous(memory_format=torch.channels_last)).float()
        if flip:
            found = found[:1] + found[1:].flip(3)
        total = total + F.interpolate(found, (height, width), mode="bilinear", align_corners=False)[0]
    labels: np.ndarray = total.argmax(dim=0).cpu().numpy()
    return labels
