# SPDX-License-Identifier: Apache-2.0
"""Fused maps at their place among all classes, as most golden files hold them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wsss_ray.contracts import FusionRule
from wsss_ray.engine.fusion import Pass, fuse_present


def fuse_all(
    passes: Sequence[Pass],
    rule: FusionRule,
    size: tuple[int, int],
    labels: Tensor,
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """(B, C, H, W), classes without a label 0 everywhere."""
    maps = fuse_present(passes, rule, size, labels, crop)
    full = maps.new_zeros(*labels.shape, *maps.shape[1:])
    full[labels > 0] = maps
    return full
