# SPDX-License-Identifier: Apache-2.0
"""Gated pyramid pooling: an image score from class maps of four window sizes (AEFT, ECCV 2022; KTSE Sec. 3.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.methods.layers import resize_bilinear, spatial_mean

PYRAMID = (2, 4, 8, 16)
"""Sides of the pooled grids, coarse to fine."""


def build_pyramid(features: Tensor, sides: tuple[int, ...] = PYRAMID) -> list[Tensor]:
    """(B, C, h, w) -> one (B, C, h, w) per side: averaged on a side x side grid, then brought back (bilinear)."""
    pooled = [F.adaptive_avg_pool2d(features, side) for side in sides]
    return [resize_bilinear(grid, features.shape[-2:]) for grid in pooled]


def score_classes(features: Tensor, pooled: Tensor) -> Tensor:
    """(B, C, h, w) twice -> (B, C) logits: mean agreement in positive evidence less that in negative evidence."""
    agreed = features.relu() * pooled.relu()
    against = (-features).relu() * (-pooled).relu()
    return spatial_mean(agreed) - spatial_mean(against)


class Gate(nn.Module):
    """Mixes a coarse and a fine map, positive and negative evidence apart, by weights that all classes share."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.positive = nn.Conv2d(2 * num_classes, 2, 3, padding=1, bias=False)
        self.negative = nn.Conv2d(2 * num_classes, 2, 3, padding=1, bias=False)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C, h, w) twice -> (B, C, h, w) signed."""
        return self._mix(coarse, fine, self.positive) - self._mix(-coarse, -fine, self.negative)

    @staticmethod
    def _mix(coarse: Tensor, fine: Tensor, gate: nn.Conv2d) -> Tensor:
        coarse, fine = coarse.relu(), fine.relu()
        weights = torch.sigmoid(gate(torch.cat([coarse, fine], dim=1)))
        return 0.5 * (coarse * weights[:, :1] + fine * weights[:, 1:])


class GatedPyramidPooling(nn.Module):
    """Folds the pyramid of class maps from coarse to fine, one gate per step."""

    def __init__(self, num_classes: int, sides: tuple[int, ...] = PYRAMID) -> None:
        super().__init__()
        self.sides = sides
        self.gates = nn.ModuleList([Gate(num_classes) for _ in pairwise(sides)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) class maps -> (B, C, h, w) pooled maps, signed; ``score_classes`` turns both into logits."""
        coarse, *finer = build_pyramid(features, self.sides)
        for gate, fine in zip(self.gates, finer, strict=True):
            coarse = gate(coarse, fine)
        return coarse


class PlaneHead(nn.Module):
    """Two 1x1 convolutions to C + 1 planes, background first, and the mean of the C foreground ones over the image."""

    def __init__(self, channels: int, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.classify = nn.Conv2d(hidden, num_classes + 1, 1, bias=False)
        self.add_pooling(num_classes)
        nn.init.xavier_uniform_(self.reduce.weight)
        nn.init.xavier_uniform_(self.classify.weight)

    def add_pooling(self, num_classes: int) -> None:
        """Give the head what ``pool`` needs: nothing here."""

    def planes(self, taps: Tensor) -> Tensor:
        """(B, channels, h, w) backbone features -> (B, C + 1, h, w) signed planes, background first."""
        planes: Tensor = self.classify(self.reduce(taps).relu())
        return planes

    def background(self, taps: Tensor) -> Tensor:
        """The first of ``planes`` alone, (B, 1, h, w); its gradient reaches its own weights and nothing below them."""
        reduced = self.reduce(taps).relu().detach()
        plane: Tensor = F.conv2d(reduced, self.classify.weight[:1])
        return plane

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) foreground planes -> (B, C) logits and the (B, C, h, w) pooled maps they come from."""
        return spatial_mean(features), features


class GPPHead(PlaneHead):
    """The same planes under gated pyramid pooling (Sec. 3.1)."""

    pooling: GatedPyramidPooling

    def add_pooling(self, num_classes: int) -> None:
        """The gates."""
        self.pooling = GatedPyramidPooling(num_classes)

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) foreground planes -> (B, C) logits and the (B, C, h, w) gated maps they come from."""
        pooled = self.pooling(features)
        return score_classes(features, pooled), pooled
