# SPDX-License-Identifier: Apache-2.0
"""Image scores and losses of SSSS and WS-FCN: nGWP, the size-focal penalty, and the balanced cross-entropy.

Araslanov & Roth (CVPR 2020) through their released code (models/stage_net); WS-FCN's is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.contracts import IGNORE
from wsss_ray.methods.layers import spatial_mean

BACKGROUND_LOGIT = 1.0
"""z_0 of every pixel: a constant, never learned."""


def prepend_background(foreground: Tensor) -> Tensor:
    """(B, C, h, w) logits -> (B, C + 1, h, w) with the constant 1 first."""
    return F.pad(foreground, (0, 0, 0, 0, 1, 0), value=BACKGROUND_LOGIT)


def pool_by_masks(logits: Tensor, masks: Tensor) -> Tensor:
    """nGWP: sum_i m_i z_i / (1 + sum_i m_i) for (B, C, h, w) logits and probabilities -> (B, C)."""
    return (masks * logits).sum(dim=(2, 3)) / (1 + masks.sum(dim=(2, 3)))


def focal_penalty(mean_mask: Tensor, power: float = 3.0, floor: float = 0.01) -> Tensor:
    """Size-focal penalty (1 - m)^p ln(lambda + m) of the share m in [0, 1] a class covers; 0 where it covers all."""
    return (1 - mean_mask) ** power * torch.log(floor + mean_mask)


def score_classes(foreground: Tensor, power: float = 3.0, floor: float = 0.01) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) logits -> image scores y = nGWP + penalty (B, C), and the softmax (B, C + 1, h, w)."""
    masks = prepend_background(foreground).softmax(dim=1)
    pooled = pool_by_masks(foreground, masks[:, 1:])
    return pooled + focal_penalty(spatial_mean(masks[:, 1:]), power, floor), masks


def gate_images(counts: Tensor, labels: Tensor) -> Tensor:
    """(B, K) pixels of each class -> (B,) 1 where background and every labelled class has some, else 0."""
    return ((counts > 0).sum(dim=1) == 1 + labels.sum(dim=1)).to(labels.dtype)


def balanced_loss(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """L_seg: class-balanced, gated cross-entropy: (B, K, H, W) logits, (B, H, W) mask, (B, C) labels -> (B,).

    Class c weighs (n - n_c) / (1 + n) with n_c its pixels; the mean is over all pixels, those that are 255 included.
    """
    num_planes = logits.shape[1]
    unknown = target == IGNORE
    flat = target.masked_fill(unknown, num_planes).flatten(1)
    zeros = logits.new_zeros(len(logits), num_planes + 1)
    counts = zeros.scatter_add(1, flat, torch.ones_like(flat, dtype=logits.dtype))[:, :num_planes]
    total = counts.sum(dim=1, keepdim=True)
    weights = F.pad((total - counts) / (1 + total), (0, 1)).gather(1, flat)
    entropy = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").flatten(1)
    return gate_images(counts, labels) * (weights * entropy).mean(dim=1)
