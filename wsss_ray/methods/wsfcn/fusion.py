# SPDX-License-Identifier: Apache-2.0
"""Semantically consistent fusion (SF2) of WS-FCN, Eq. 7-12 (Wang et al., TNNLS 2023, Sec. III-C)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.config import Config
from wsss_ray.methods.layers import resize_aligned, resize_bilinear
from wsss_ray.methods.ssss.decoder import make_conv, make_embedding

Combine = Literal["product", "sum", "concat"]
OffsetUnit = Literal["pixel", "released"]


class SF2Config(Config):
    """Semantically consistent fusion; defaults are Eq. 7-12, ``RELEASED_SF2`` the code's."""

    align: bool = True
    """Warp by learned offsets (Eq. 11-12); False enlarges (Table II Summation, Concatenation, Multiplication)."""
    combine: Combine = "product"
    """What both features share: the product of Eq. 7-8, or Table II's sum or convolved concatenation."""
    extra_embed: bool = False
    """The code's second embedding before the product and third after it; Eq. 7-8 multiply the first ones."""
    project: bool = False
    """Halve the channels of both features before the offset convolution (code)."""
    offset_norm: bool = True
    """E of Eq. 11, whose ReLU leaves offsets that are never negative; False is the code's plain convolution."""
    offset_unit: OffsetUnit = "pixel"
    """pixel: one enlarged pixel (Eq. 12). released: 1 / W of the normalised width, (W - 1) / 2W of a pixel."""


RELEASED_SF2: dict[str, Any] = {"extra_embed": True, "project": True, "offset_norm": False, "offset_unit": "released"}


def warp_feature(feature: Tensor, offsets: Tensor, unit: OffsetUnit = "pixel") -> Tensor:
    """Enlarge (B, K, h, w) to the size of (B, 2, H, W) offsets, each position moved by its (x, y) (Eq. 9, 12).

    No offset is bilinear enlarging with aligned corners (Eq. 10); outside is 0. See ``SF2Config.offset_unit``.
    """
    height, width = offsets.shape[2:]
    offsets = offsets.float()
    extent = offsets.new_tensor([width, height])
    scale = 1 / extent if unit == "released" else 2 / (extent - 1).clamp(min=1)
    rows = torch.linspace(-1, 1, height, device=offsets.device)
    columns = torch.linspace(-1, 1, width, device=offsets.device)
    base = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    grid = base + offsets.permute(0, 2, 3, 1) * scale
    return F.grid_sample(feature.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Align(nn.Module):
    """The context moved to where the low-level feature says it belongs: gamma of Eq. 7-8 (Eq. 9-12)."""

    def __init__(self, config: SF2Config, num_low: int, width: int) -> None:
        super().__init__()
        self.unit = config.offset_unit
        half = max(width // 2, 1)
        self.low = nn.Conv2d(num_low, half, 1, bias=False) if config.project else nn.Identity()
        self.high = nn.Conv2d(width, half, 1, bias=False) if config.project else nn.Identity()
        num_in = 2 * half if config.project else num_low + width
        self.offset: nn.Module = nn.Conv2d(num_in, 2, 3, padding=1, bias=False)
        if config.offset_norm:
            self.offset = make_embedding(num_in, 2, 3)

    def compute_offsets(self, low: Tensor, high: Tensor) -> Tensor:
        """p_offset of Eq. 11, (B, 2, H, W), x then y; here alone enlarging does not align corners (released code)."""
        raised = resize_bilinear(self.high(high), low.shape[2:])
        offsets: Tensor = self.offset(torch.cat([raised, self.low(low)], dim=1))
        return offsets

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, low, H, W) and (B, width, h, w) -> the second at the first's size."""
        return warp_feature(high, self.compute_offsets(low, high), self.unit)


class Stream(nn.Module):
    """The embeddings E that one of the two features goes through (Eq. 7 or 8, or the code's longer way)."""

    def __init__(self, num_in: int, width: int, extra_embed: bool) -> None:
        super().__init__()
        self.first = make_embedding(num_in, width, 3, bias=True)
        self.second = make_embedding(width, width, 3, bias=True) if extra_embed else nn.Identity()
        self.third = make_embedding(width, width, 3, bias=True) if extra_embed else nn.Identity()
        self.last = make_embedding(width, width, 3, bias=True)


class SF2(nn.Module):
    """Both features receive what they agree on (Eq. 7-8, Fig. 4).

    Table II has a sum or a convolved concatenation in place of the product, and no alignment (inferred from counts).
    """

    def __init__(self, config: SF2Config, num_low: int, width: int) -> None:
        super().__init__()
        self.combine = config.combine
        self.align = Align(config, num_low, width) if config.align else None
        self.low = Stream(num_low, width, config.extra_embed)
        self.high = Stream(width, width, config.extra_embed)
        self.concat = make_conv(2 * width, width, 3) if config.combine == "concat" else None

    def combine_embeddings(self, low: Tensor, high: Tensor) -> Tensor:
        """What the two embeddings share, added to both streams: their product in Eq. 7-8."""
        if self.concat is not None:
            combined: Tensor = self.concat(torch.cat([low, high], dim=1))
            return combined
        return low + high if self.combine == "sum" else low * high

    def fuse_streams(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """F^l' and F^h' of Eq. 7-8 from features of one size."""
        first_low, first_high = self.low.first(low), self.high.first(high)
        joint = self.combine_embeddings(self.low.second(first_low), self.high.second(first_high))
        return self.low.last(self.low.third(joint) + first_low), self.high.last(self.high.third(joint) + first_high)

    def forward(self, low: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, low, H, W), (B, width, h, w) -> low and high stream, (B, width, H, W), non-negative."""
        raised = resize_aligned(context, low.shape[2:]) if self.align is None else self.align(low, context)
        return self.fuse_streams(low, raised)
