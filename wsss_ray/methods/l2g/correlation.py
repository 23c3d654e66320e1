# SPDX-License-Identifier: Apache-2.0
"""The pixel-correlation module: scores gathered from pixels that look alike (SEAM, CVPR 2020; released L2G).

It is not in the paper of L2G, but in its code (models/resnet38.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_ray.methods.layers import resize_aligned
from wsss_ray.nets.backbone import Backbone

EPSILON = 1e-5
TAP_WIDTHS = (64, 128)
"""Channels the earlier and the later tap are projected to."""


def normalize_embedding(embedding: Tensor) -> Tensor:
    """(B, D, h, w) -> unit vectors (B, D, h * w): every position divided by its norm + 1e-5."""
    flat = embedding.flatten(2)
    norm: Tensor = flat.norm(dim=1, keepdim=True)
    return flat / (norm + EPSILON)


def compute_affinity(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, D, P), (B, D, Q) unit vectors -> (B, P, Q): cosine, negatives cut, each column divided by its sum + 1e-5."""
    cosine = torch.relu(rows.transpose(1, 2) @ columns)
    return cosine / (cosine.sum(dim=1, keepdim=True) + EPSILON)


def correlate_maps(maps: Tensor, unit: Tensor, chunk: int = 4096) -> Tensor:
    """(B, K, h, w) maps gathered over all positions by affinity: column q of the result is sum_p maps_p A_pq.

    ``chunk`` columns at a time, so that a large image never needs the whole P x P matrix at once.
    """
    flat = maps.flatten(2)
    gathered = [flat @ compute_affinity(unit, part) for part in torch.split(unit, chunk, dim=2)]
    return torch.cat(gathered, dim=2).view_as(maps)


class PixelCorrelation(nn.Module):
    """E = W9 [image; W83 sg(conv4); W84 sg(conv5)]: bias-free 1x1 convolutions, no ReLU, no gradient to the taps."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.taps = choose_taps(backbone)
        widths = TAP_WIDTHS[-len(self.taps) :]
        self.project = nn.ModuleList(
            nn.Conv2d(backbone.channels[tap], width, 1, bias=False)
            for tap, width in zip(self.taps, widths, strict=True)
        )
        self.embed = nn.Conv2d(3 + sum(widths), sum(widths), 1, bias=False)
        for projection in self.project:
            for weight in projection.parameters():
                nn.init.kaiming_normal_(weight)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def stack_inputs(self, images: Tensor, taps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """(B, 3 + widths, h, w): the shrunk image (bilinear, align_corners True) over the projected taps."""
        parts = [images, *(conv(taps[tap].detach()) for conv, tap in zip(self.project, self.taps, strict=True))]
        return torch.cat([p if p.shape[2:] == size else resize_aligned(p, size) for p in parts], dim=1)

    def forward(self, maps: Tensor, images: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """(B, K, h, w) maps -> the same, gathered from correlated positions.

        The released module gathers the features and classifies them after; both steps are linear, so gathering K scores
        gives the same numbers and gradients for a fraction of the work.
        """
        size = (maps.shape[2], maps.shape[3])
        return correlate_maps(maps, normalize_embedding(self.embed(self.stack_inputs(images, taps, size))))


def choose_taps(backbone: Backbone) -> list[str]:
    """conv4 and conv5 where the backbone has them, else its last two taps before ``out``, else ``out`` itself."""
    if {"conv4", "conv5"} <= set(backbone.channels):
        return ["conv4", "conv5"]
    return [tap for tap in backbone.channels if tap != "out"][-2:] or ["out"]
