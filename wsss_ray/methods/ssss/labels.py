# SPDX-License-Identifier: Apache-2.0
"""Pseudo labels of SSSS and WS-FCN: which planes a pixel may belong to, and when exactly one claims it.

Araslanov & Roth (CVPR 2020) through their released code (models/stage_net); WS-FCN's is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.contracts import IGNORE


def choose_planes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) labels -> (B, P) mask classes: 0, the labelled ones, then 0 as padding; and (B, P) bool: not padding."""
    num = int(labels.sum(dim=1).max())
    order = labels.argsort(dim=1, descending=True, stable=True)[:, :num]
    real = labels.gather(1, order) > 0
    planes = F.pad((order + 1) * real, (1, 0))
    return planes, F.pad(real, (1, 0), value=True)


def take_planes(maps: Tensor, planes: Tensor) -> Tensor:
    """(B, K, h, w) and (B, P) indices -> (B, P, h, w)."""
    return maps.gather(1, planes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


def make_pseudo_labels(
    maps: Tensor, background: float = 0.7, foreground: float = 0.6, floor: float = 0.2, real: Tensor | None = None
) -> Tensor:
    """(B, P, H, W) scores, background first -> (B, H, W) int64 plane index, 255 where not exactly one plane claims it.

    A plane claims what is strictly above max(ratio * its highest value, floor); one not ``real`` claims nothing.
    """
    ratio = maps.new_full((maps.shape[1],), foreground)
    ratio[0] = background
    threshold = (ratio[:, None, None] * maps.amax(dim=(2, 3), keepdim=True)).clamp(min=floor)
    claimed = maps > threshold
    if real is not None:
        claimed = claimed & real[:, :, None, None]
    index = claimed.int().argmax(dim=1)
    return torch.where(claimed.sum(dim=1) == 1, index, IGNORE)
