# SPDX-License-Identifier: Apache-2.0
"""Class maps as a plain PyTorch loop makes them: image by image, each scale with its mirror image as a batch of two.

IRN's protocol (Ahn et al. 2019, as released): scales 1, 0.5, 1.5, 2 by PIL bicubic, ReLU before the pair is added, the
sum over scales at stride 4 and once more at full size, every present class divided by its maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SCALES = (1.0, 0.5, 1.5, 2.0)
MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)


def load_pair(image: np.ndarray, scale: float) -> Tensor:
    """(H, W, 3) uint8 RGB -> (2, 3, h, w): the image at one scale and its mirror image, normalised."""
    height, width = (round(side * scale) for side in image.shape[:2])
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    plain = ((scaled / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
    return torch.from_numpy(np.stack([plain, plain[:, :, ::-1]]))


@torch.no_grad()
def make_maps(
    backbone: nn.Module, head: nn.Module, image: np.ndarray, classes: Sequence[int], high_res: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Maps in [0, 1] of the present classes: (P, H / 4, W / 4) and, with ``high_res``, (P, H, W)."""
    height, width = image.shape[:2]
    passes = []
    for scale in SCALES:
        both = F.relu(head(backbone(load_pair(image, scale))["out"]))
        passes.append(both[0] + both[1].flip(-1))
    keep = list(classes)
    grid = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    strided = sum_enlarged(passes, grid)[keep]
    strided = strided / (F.adaptive_max_pool2d(strided, 1) + 1e-5)
    if not high_res:
        return strided, None
    padded = ((height - 1) // 16 + 1) * 16, ((width - 1) // 16 + 1) * 16
    large = sum_enlarged(passes, padded)[keep, :height, :width]
    return strided, large / (F.adaptive_max_pool2d(large, 1) + 1e-5)


def sum_enlarged(passes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(C, ., .) maps of several sizes -> their sum at ``size``."""
    grown = [F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0] for one in passes]
    return torch.stack(grown).sum(dim=0)
