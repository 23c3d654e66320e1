# SPDX-License-Identifier: Apache-2.0
"""Pieces of the SSSS decoder: context of the last tap, low-level detail, the stochastic gate between them, the head.

Araslanov & Roth (CVPR 2020) through their released code: file names below are those of its models folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from wsss_ray.methods.layers import resize_aligned, spatial_mean

Norms = Literal["still", "train"]
"""``still``: statistics stay at mean 0 and variance 1, only gamma and beta learn; ``train``: ordinary BatchNorm."""
GateRule = Literal["blend", "expectation"]


class StillNorm(nn.BatchNorm2d):
    """BatchNorm without batches: y = gamma x / sqrt(1 + 1e-5) + beta, in training too (mods/aspp)."""

    def train(self, mode: bool = True) -> StillNorm:
        """Stay in eval mode."""
        super().train(False)
        return self


def make_conv(
    num_in: int, num_out: int, size: int | tuple[int, int] = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Convolution that keeps the map's size (odd kernels), Kaiming-normal."""
    height, width = (size, size) if isinstance(size, int) else size
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    layer = nn.Conv2d(num_in, num_out, (height, width), padding=padding, dilation=dilation, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def make_norm(channels: int, norms: Norms = "train") -> nn.BatchNorm2d:
    """BatchNorm of one of the two kinds."""
    built = StillNorm(channels) if norms == "still" else nn.BatchNorm2d(channels)
    return built.train()


def make_embedding(
    num_in: int, num_out: int, size: int = 1, dilation: int = 1, norms: Norms = "train", bias: bool = False
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; with ``size`` 3 it is E of WS-FCN's equations (Sec. III-B)."""
    return nn.Sequential(make_conv(num_in, num_out, size, dilation, bias), make_norm(num_out, norms), nn.ReLU())


class DecoderASPP(nn.Module):
    """Atrous pyramid and an image branch (mods/aspp): (B, num_in, h, w) -> (B, width, h, w), non-negative."""

    def __init__(
        self,
        num_in: int,
        width: int,
        dilations: Sequence[int] = (12, 24, 36),
        norms: Norms = "still",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                make_embedding(num_in, width, 1, norms=norms),
                *(make_embedding(num_in, width, 3, rate, norms) for rate in dilations),
            ]
        )
        # One value per image and channel: batch statistics would not exist for a single image.
        self.image = make_embedding(num_in, width, norms="still")
        self.fuse = make_embedding((len(dilations) + 2) * width, width, norms=norms)
        self.dropout = nn.Dropout(dropout)

    def forward(self, high: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, width, h, w)."""
        parts = [branch(high) for branch in self.branches]
        parts.append(self.image(spatial_mean(high, keepdim=True)).expand_as(parts[0]))
        context: Tensor = self.dropout(self.fuse(torch.cat(parts, dim=1)))
        return context


class SkipAndCue(nn.Module):
    """Skip connection and global cue injection (stage_net, mods/gci)."""

    def __init__(self, num_low: int, width: int, num_skip: int = 48) -> None:
        super().__init__()
        self.skip = make_embedding(num_low, num_skip)
        self.merge = make_embedding(width + num_skip, width, 3)
        self.cue = make_embedding(width, 2 * width)
        self.detail = nn.Sequential(make_conv(num_low, width), nn.BatchNorm2d(width, affine=False))
        self.out = make_embedding(width, width)

    def forward(self, low: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, low, h, w), (B, width, h', w') -> shallow and deep features, both (B, width, h, w), non-negative."""
        deep: Tensor = self.merge(torch.cat([resize_aligned(context, low.shape[2:]), self.skip(low)], dim=1))
        scale, shift = self.cue(deep).amax(dim=(2, 3), keepdim=True).chunk(2, dim=1)
        return self.out(torch.relu(self.detail(low) * (1 + scale) + shift)), deep


def draw_keep_mask(like: Tensor, psi: float) -> Tensor:
    """Bernoulli(1 - psi) in {0, 1}, drawn for every element on its own: the shape of ``like`` (mods/sg)."""
    return (torch.rand_like(like, dtype=torch.float32) >= psi).to(like.dtype)


def apply_stochastic_gate(deep: Tensor, shallow: Tensor, psi: float, keep: Tensor) -> Tensor:
    """The shifted, scaled deep feature where ``keep`` is 1, else the shallow one; on average ``deep`` (mods/sg)."""
    lifted = (deep - psi * shallow) / max(1 - psi, 1e-8)
    return keep * lifted + (1 - keep) * shallow


def apply_test_gate(deep: Tensor, shallow: Tensor, psi: float, rule: GateRule = "blend") -> Tensor:
    """The gate at test time: (1 - psi) deep + psi shallow as released (mods/sg), or the training's mean, ``deep``."""
    return deep if rule == "expectation" else (1 - psi) * deep + psi * shallow


def make_score_head(width: int, num_classes: int, dropout: tuple[float, float] = (0.5, 0.1)) -> nn.Sequential:
    """Two 3x3 embeddings with dropout and a biased 1x1 classifier of the foreground classes (stage_net)."""
    return nn.Sequential(
        *make_embedding(width, width, 3),
        nn.Dropout(dropout[0]),
        *make_embedding(width, width, 3),
        nn.Dropout(dropout[1]),
        make_conv(width, num_classes, bias=True),
    )
