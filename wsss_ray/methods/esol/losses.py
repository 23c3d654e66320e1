# SPDX-License-Identifier: Apache-2.0
"""The terms of ESOL's losses, and what shows that its expansion has run away (Li et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.methods.layers import spatial_mean


def clip_features(features: Tensor, beta: float, over: Literal["channel", "image"], detach: bool) -> Tensor:
    """F'_clip = min(x, beta max x) of (B, C, h, w), the maximum over each image's places or its channels too (Eq. 7).

    ``detach`` makes the maximum a constant for the gradient; ``beta`` 1 leaves the features as they are.
    """
    if beta == 1:
        return features
    ceiling = beta * features.amax(dim=(2, 3) if over == "channel" else (1, 2, 3), keepdim=True)
    return torch.minimum(features, ceiling.detach() if detach else ceiling)


def area_loss(
    scores: Tensor, labels: Tensor, form: Literal["sigmoid", "normalized"], classes: Literal["all", "present"]
) -> Tensor:
    """L_area: the mean of P_k over places, classes and images, in [0, 1] (Eq. 6).

    ``scores`` (B, C, h, w), ``labels`` (B, C) in {0, 1}; see ``ESOLConfig.area_map`` and ``ESOLConfig.area_classes``.
    """
    if form == "sigmoid":
        area = spatial_mean(torch.sigmoid(scores))
    else:
        positive = torch.relu(scores)
        area = spatial_mean(positive / (positive.amax(dim=(2, 3), keepdim=True) + 1e-5))
    if classes == "all":
        return area.mean()
    return ((area * labels).sum(dim=1) / labels.sum(dim=1).clamp(min=1)).mean()


def present_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -ln sigmoid over the classes that are in their image; 0 where there is none. A monitor, no loss."""
    return (F.softplus(-logits) * labels).sum() / labels.sum().clamp(min=1)


def detect_runaway(
    history: Sequence[Mapping[str, float]], max_outside: float = 0.25, min_offset: float = 1.0
) -> str | None:
    """Why an expansion has run away, or None; ``history`` are the means of its loss parts, epoch by epoch.

    The inverse loss (Eq. 5) has no minimum. It has gone too far where taps read beyond the map (share above
    ``max_outside``), or where they are more than ``min_offset`` cells away and, twice in a row, went further while the
    loss of present classes fell (steps overshoot) or foreground ``recall`` did (an entry of runs with
    ``train.validate_seeds``; Sec. 4.3.1: too large an alpha drifts to the background). Shorter ways only mix
    neighbours, and the loss then falls by chance too.
    """
    for epoch, now in enumerate(history):
        outside = now.get("monitor/outside", 0.0)
        if not outside <= max_outside:
            return f"epoch {epoch}: {outside:.0%} of the samples left the map"
        if epoch < 2 or now.get("monitor/offset", 0.0) < min_offset:
            continue
        window = history[epoch - 2 : epoch + 1]
        for key, what in (("monitor/present_bce", "the loss of present classes"), ("recall", "foreground recall")):
            if _is_monotone(window, "monitor/offset", 1) and _is_monotone(window, key, -1):
                return f"epoch {epoch}: offsets grow while {what} falls"
    return None


def _is_monotone(window: Sequence[Mapping[str, float]], key: str, sign: int) -> bool:
    """Whether ``key`` is in all of the window and strictly rises (sign 1) or falls (-1)."""
    if not all(key in record for record in window):
        return False
    return all(sign * (b[key] - a[key]) > 0 for a, b in zip(window, window[1:], strict=False))
