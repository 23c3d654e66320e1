# SPDX-License-Identifier: Apache-2.0
"""Flexible context aggregation (FCA) of WS-FCN, Eq. 1-6, and its rivals (Wang et al., TNNLS 2023, Sec. III-B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from wsss_ray.config import Config
from wsss_ray.methods.layers import resize_aligned, spatial_mean
from wsss_ray.methods.ssss.decoder import Norms, make_conv, make_embedding, make_norm

Rates = tuple[PositiveInt, ...]


class FCAConfig(Config):
    """Flexible context aggregation; defaults are Eq. 1-6, ``RELEASED_FCA`` the code's."""

    kernels: Annotated[Rates, Field(min_length=1)] = (1, 3, 5, 7)
    """Lengths of the strip convolutions, odd (Sec. IV-B)."""
    dilations: Annotated[Rates, Field(min_length=1)] = (1, 1, 1, 1)
    """Their rates, one a kernel; the code's (1, 12, 24, 36) are in no equation."""
    shared_attention: bool = False
    """Channel attention: one two-layer network for all strips and both pools (code), or a 1x1 each (Eq. 2)."""
    image_pool: bool = False
    """A fifth branch with the image's mean (code)."""
    fuse: Literal["conv3_relu", "conv1"] = "conv3_relu"
    """E of Eq. 4, or the code's 1x1 and BatchNorm without ReLU."""
    spatial: bool = True
    """Spatial recalibration (Eq. 5-6); False is Table I's FCA_MCLM."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    idle_norms: bool = False
    """Four BatchNorms that nothing uses: part of the released weights and of the published parameter count."""

    @model_validator(mode="after")
    def _check_strips(self) -> FCAConfig:
        if len(self.kernels) != len(self.dilations):
            raise ValueError(
                f"{len(self.kernels)} kernels but {len(self.dilations)} dilations: give one dilation a kernel"
            )
        if any(size % 2 == 0 for size in self.kernels):
            raise ValueError("kernels must be odd, so that the map keeps its size")
        return self


RELEASED_FCA: dict[str, Any] = {
    "dilations": (1, 12, 24, 36),
    "shared_attention": True,
    "image_pool": True,
    "fuse": "conv1",
    "dropout": 0.5,
    "idle_norms": True,
}


class Strips(nn.Module):
    """F^k: a column then a row, plus a row then a column, of ``size`` taps; no norm, no ReLU (Eq. 1)."""

    def __init__(self, num_in: int, width: int, size: int, dilation: int = 1, idle_norm: bool = False) -> None:
        super().__init__()
        column, row = (size, 1), (1, size)
        self.column_row = nn.Sequential(
            make_conv(num_in, width, column, dilation), make_conv(width, width, row, dilation)
        )
        self.row_column = nn.Sequential(
            make_conv(num_in, width, row, dilation), make_conv(width, width, column, dilation)
        )
        if idle_norm:
            self.idle = make_norm(width, "still")

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, width, h, w), signed."""
        strips: Tensor = self.column_row(x) + self.row_column(x)
        return strips


class ChannelAttention(nn.Module):
    """M_c: weights of channels from their mean and maximum over positions (Eq. 2).

    ``shared``: both go through one 1x1-ReLU-1x1 network; otherwise through a 1x1 convolution each.
    """

    def __init__(self, width: int, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        if shared:
            self.both = nn.Sequential(make_conv(width, width), nn.ReLU(), make_conv(width, width))
        else:
            self.of_mean, self.of_max = make_conv(width, width), make_conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, 1, 1) in (0, 1)."""
        of_mean, of_max = (self.both, self.both) if self.shared else (self.of_mean, self.of_max)
        return torch.sigmoid(of_mean(spatial_mean(x, keepdim=True)) + of_max(x.amax(dim=(2, 3), keepdim=True)))


class SpatialRecalibration(nn.Module):
    """F^h = M_s F + F: positions weighed by their channels' mean and maximum (Eq. 5-6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = make_conv(2, 1, 3)

    def attention(self, x: Tensor) -> Tensor:
        """M_s of Eq. 5: (B, width, h, w) -> (B, 1, h, w) in (0, 1)."""
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        """F^h of Eq. 6: (B, width, h, w) -> the same."""
        return x + self.attention(x) * x


class FCA(nn.Module):
    """Strips under channel attention, fused and recalibrated (Eq. 1-6, Fig. 3)."""

    def __init__(self, config: FCAConfig, num_in: int, width: int, norms: Norms = "still") -> None:
        super().__init__()
        num_strips = len(config.kernels)
        self.strips = nn.ModuleList(
            Strips(num_in, width, size, dilation, config.idle_norms)
            for size, dilation in zip(config.kernels, config.dilations, strict=True)
        )
        num_attentions = 1 if config.shared_attention else num_strips
        self.attention = nn.ModuleList(ChannelAttention(width, config.shared_attention) for _ in range(num_attentions))
        self.image = make_embedding(num_in, width, norms="still") if config.image_pool else None
        num_fused = (num_strips + config.image_pool) * width
        self.fuse = (
            make_embedding(num_fused, width, 3, norms=norms)
            if config.fuse == "conv3_relu"
            else nn.Sequential(make_conv(num_fused, width), make_norm(width, norms))
        )
        self.recalibrate = SpatialRecalibration() if config.spatial else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def fuse_strips(self, high: Tensor) -> Tensor:
        """F^com, the strips under their attention fused (Eq. 3-4), before recalibration."""
        parts = []
        for k, strips in enumerate(self.strips):
            part = strips(high)
            parts.append(self.attention[k % len(self.attention)](part) * part)
        if self.image is not None:
            parts.append(self.image(spatial_mean(high, keepdim=True)).expand_as(parts[0]))
        common: Tensor = self.fuse(torch.cat(parts, dim=1))
        return common

    def forward(self, high: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, width, h, w)."""
        context: Tensor = self.dropout(self.recalibrate(self.fuse_strips(high)))
        return context


class LargeConv(nn.Sequential):
    """One big convolution for context (Table II "+ Large Conv"; wiring inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, size: int = 7, norms: Norms = "still") -> None:
        super().__init__(*make_embedding(num_in, width, size, norms=norms))


class PyramidPooling(nn.Module):
    """Means over 1, 2, 3 and 6 bins beside the map (Table II "+ PPM"; inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, bins: Sequence[int] = (1, 2, 3, 6), norms: Norms = "still") -> None:
        super().__init__()
        share = num_in // len(bins)
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(
            make_embedding(num_in, share, norms=norms if size > 1 else "still") for size in bins
        )
        self.fuse = make_embedding(num_in + share * len(bins), width, 3, norms=norms)

    def forward(self, high: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, width, h, w), non-negative."""
        pooled = [
            resize_aligned(branch(F.adaptive_avg_pool2d(high, size)), high.shape[2:])
            for branch, size in zip(self.branches, self.bins, strict=True)
        ]
        context: Tensor = self.fuse(torch.cat([high, *pooled], dim=1))
        return context


class NonLocal(nn.Module):
    """Attention between all positions, added (Table II "+ Non-local"; inferred from its parameter count)."""

    def __init__(self, num_in: int, width: int, norms: Norms = "still") -> None:
        super().__init__()
        inner = max(num_in // 2, 1)
        self.query, self.key, self.value = (make_conv(num_in, inner) for _ in range(3))
        self.back = make_conv(inner, num_in)
        self.out = make_embedding(num_in, width, norms=norms)

    def forward(self, high: Tensor) -> Tensor:
        """(B, num_in, h, w) -> (B, width, h, w), non-negative."""
        query, key, value = (layer(high).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(1, 2)).softmax(dim=2)
        seen = (weights @ value).transpose(1, 2).unflatten(2, high.shape[2:])
        context: Tensor = self.out(high + self.back(seen))
        return context
