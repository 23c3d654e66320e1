"""Pieces of the SSSS decoder: context of the last tap, low-level detail, the stochastic gate between them, the head.

The text of Araslanov & Roth (CVPR 2020) is followed through its released code, models/mods and models/stage_net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norms = Literal["still", "train"]
"""``still``: statistics stay at mean 0 and variance 1, only gamma and beta learn; ``train``: ordinary BatchNorm."""
GateTest = Literal["blend", "expectation"]


class StillNorm(nn.BatchNorm2d):
    """BatchNorm that never looks at a batch: y = gamma x / sqrt(1 + 1e-5) + beta, in training too (SSSS ASPP)."""

    def train(self, mode: bool = True) -> StillNorm:
        """Stay in eval mode."""
        super().train(False)
        return self


def conv(
    num_in: int, num_out: int, size: int | tuple[int, int] = 1, dilation: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Convolution that keeps the map's size (odd kernels), Kaiming-normal."""
    height, width = (size, size) if isinstance(size, int) else size
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    layer = nn.Conv2d(num_in, num_out, (height, width), padding=padding, dilation=dilation, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def norm(channels: int, norms: Norms = "train") -> nn.BatchNorm2d:
    """BatchNorm of one of the two kinds."""
    built = StillNorm(channels) if norms == "still" else nn.BatchNorm2d(channels)
    return built.train()


def embed(
    num_in: int, num_out: int, size: int = 1, dilation: int = 1, norms: Norms = "train", bias: bool = False
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU: E of the WS-FCN paper where ``size`` is 3 (Sec. III-B)."""
    return nn.Sequential(conv(num_in, num_out, size, dilation, bias), norm(num_out, norms), nn.ReLU())


def enlarge(x: Tensor, size: Sequence[int] | torch.Size) -> Tensor:
    """(B, K, h, w) -> (B, K, *size), bilinear with aligned corners: how SSSS resizes everything inside the network."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def global_mean(x: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, K, 1, 1)."""
    return x.mean(dim=(2, 3), keepdim=True)


class DecoderASPP(nn.Module):
    """Atrous pyramid and an image branch (SSSS mods/aspp): (B, num_in, h, w) -> (B, width, h, w), non-negative."""

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
            [embed(num_in, width, 1, norms=norms), *(embed(num_in, width, 3, rate, norms) for rate in dilations)]
        )
        # One value per image and channel: batch statistics would not exist for a single image.
        self.image = embed(num_in, width, norms="still")
        self.fuse = embed((len(dilations) + 2) * width, width, norms=norms)
        self.dropout = nn.Dropout(dropout)

    def forward(self, high: Tensor) -> Tensor:
        parts = [branch(high) for branch in self.branches]
        parts.append(self.image(global_mean(high)).expand_as(parts[0]))
        return self.dropout(self.fuse(torch.cat(parts, dim=1)))


class SkipAndCue(nn.Module):
    """Skip connection and global cue injection (SSSS stage_net, mods/gci).

    (B, low, h, w) and the context (B, width, h', w') -> shallow and deep features, both (B, width, h, w), non-negative.
    """

    def __init__(self, num_low: int, width: int, num_skip: int = 48) -> None:
        super().__init__()
        self.skip = embed(num_low, num_skip)
        self.merge = embed(width + num_skip, width, 3)
        self.cue = embed(width, 2 * width)
        self.detail = nn.Sequential(conv(num_low, width), nn.BatchNorm2d(width, affine=False))
        self.out = embed(width, width)

    def forward(self, low: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        deep = self.merge(torch.cat([enlarge(context, low.shape[2:]), self.skip(low)], dim=1))
        scale, shift = self.cue(deep).amax(dim=(2, 3), keepdim=True).chunk(2, dim=1)
        return self.out(torch.relu(self.detail(low) * (1 + scale) + shift)), deep


def draw_keep(like: Tensor, psi: float) -> Tensor:
    """Bernoulli(1 - psi) in {0, 1}, drawn for every element on its own: the shape of ``like``."""
    return (torch.rand_like(like, dtype=torch.float32) >= psi).to(like.dtype)


def stochastic_gate(deep: Tensor, shallow: Tensor, psi: float, keep: Tensor) -> Tensor:
    """The shifted, scaled deep feature where ``keep`` is 1, else the shallow one; on average ``deep`` (SSSS mods)."""
    lifted = (deep - psi * shallow) / max(1 - psi, 1e-8)
    return keep * lifted + (1 - keep) * shallow


def settled_gate(deep: Tensor, shallow: Tensor, psi: float, rule: GateTest = "blend") -> Tensor:
    """The gate at test time: (1 - psi) deep + psi shallow as released, or the training expectation, ``deep``."""
    return deep if rule == "expectation" else (1 - psi) * deep + psi * shallow


def score_head(width: int, num_classes: int, dropout: tuple[float, float] = (0.5, 0.1)) -> nn.Sequential:
    """Two 3x3 embeddings with dropout and a biased 1x1 classifier of the foreground classes (SSSS stage_net)."""
    return nn.Sequential(
        *embed(width, width, 3),
        nn.Dropout(dropout[0]),
        *embed(width, width, 3),
        nn.Dropout(dropout[1]),
        conv(width, num_classes, bias=True),
    )


class LargeConv(nn.Sequential):
    """One big convolution for context (WS-FCN Table II "+ Large Conv"; wiring inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, size: int = 7, norms: Norms = "still") -> None:
        super().__init__(*embed(num_in, width, size, norms=norms))


class PyramidPooling(nn.Module):
    """Means over 1, 2, 3 and 6 bins beside the map (WS-FCN Table II "+ PPM"; inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, bins: Sequence[int] = (1, 2, 3, 6), norms: Norms = "still") -> None:
        super().__init__()
        share = num_in // len(bins)
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(embed(num_in, share, norms=norms if size > 1 else "still") for size in bins)
        self.fuse = embed(num_in + share * len(bins), width, 3, norms=norms)

    def forward(self, high: Tensor) -> Tensor:
        pooled = [
            enlarge(branch(F.adaptive_avg_pool2d(high, size)), high.shape[2:])
            for branch, size in zip(self.branches, self.bins, strict=True)
        ]
        return self.fuse(torch.cat([high, *pooled], dim=1))


class NonLocal(nn.Module):
    """Attention between all positions, added (WS-FCN Table II "+ Non-local"; inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, norms: Norms = "still") -> None:
        super().__init__()
        inner = max(num_in // 2, 1)
        self.query, self.key, self.value = conv(num_in, inner), conv(num_in, inner), conv(num_in, inner)
        self.back = conv(inner, num_in)
        self.out = embed(num_in, width, norms=norms)

    def forward(self, high: Tensor) -> Tensor:
        query, key, value = (layer(high).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(1, 2)).softmax(dim=2)
        seen = (weights @ value).transpose(1, 2).unflatten(2, high.shape[2:])
        return self.out(high + self.back(seen))
