# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0, 1 and 2: strong ImageNet features at a cost that two CPU cores can train."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, BatchNormMode, check_output_stride
from wsss_ray.nets.same_conv import SameConv2d

Variant = Literal[0, 1, 2]
SCALING: dict[Variant, tuple[float, float]] = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Variant -> factor of the channels and of the number of blocks."""
STEM, HEAD = 32, 1280
"""Channels, the same in every Lite variant."""


@dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 1: ``num_blocks`` inverted bottlenecks, the first with the stride."""

    num_blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
TAPS_AFTER = {1: "low", 2: "conv4", 4: "conv5"}
"""Index in ``STAGES`` -> tap: the last maps of strides 4, 8 and 16."""


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, if wanted, ReLU6."""

    def __init__(self, conv: SameConv2d, relu: bool = True):
        norm = nn.BatchNorm2d(conv.out_channels, eps=1e-3, momentum=0.01)
        layers: list[tuple[str, nn.Module]] = [("conv", conv), ("bn", norm)]
        super().__init__(OrderedDict(layers + ([("relu", nn.ReLU6(inplace=True))] if relu else [])))


class Block(nn.Module):
    """Inverted bottleneck: 1x1 to ``expansion`` times the channels, depthwise, linear 1x1; skip where shapes allow."""

    def __init__(self, num_in: int, stage: Stage, stride: int, dilation: int):
        super().__init__()
        width = num_in * stage.expansion
        self.skips = stride == 1 and num_in == stage.channels
        self.expand = ConvNorm(SameConv2d(num_in, width, 1)) if stage.expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(SameConv2d(width, width, stage.kernel, stride, dilation, groups=width))
        self.project = ConvNorm(SameConv2d(width, stage.channels, 1), relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h', w'), signed."""
        branch: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + branch if self.skips else branch


class EfficientNetLite(Backbone):
    """EfficientNet-Lite (Tan and Le 2019; Lite: 2020): no squeeze-and-excite, ReLU6, stem and head not scaled.

    Taps ``low``, ``conv4``, ``conv5`` (linear bottlenecks, so signed) and ``out`` (1280 channels in [0, 6]). Output
    stride 32 as published; 16 and 8 drop the last one or two strides and dilate what follows them by 2 and 4, so that
    on maps of odd size the cells of the published network come out unchanged. Inputs are (image - 127) / 128, preset
    "efficientnet_lite". ``freeze_through`` counts blocks: 3 keeps the stem and the first three (up to stride 4) as
    they are, 0 nothing.
    """

    output_strides = (32, 16, 8)

    def __init__(
        self,
        output_stride: int = 32,
        variant: Variant = 0,
        batch_norm: BatchNormMode = "frozen",
        freeze_through: int = 0,
    ):
        super().__init__()
        check_output_stride(f"efficientnet_lite{variant}", output_stride, self.output_strides)
        self.stem = ConvNorm(SameConv2d(3, STEM, 3, 2))
        self.channels, self.strides, self.taps_after = {}, {}, {}
        blocks: list[nn.Module] = []
        num_in, stride, dilation = STEM, 2, 1
        for index, stage in enumerate(scale_stages(variant)):
            step = stage.stride if stride * stage.stride <= output_stride else 1
            for k in range(stage.num_blocks):
                # The first block of a stage reads the maps before it, which are not dilated yet.
                blocks.append(Block(num_in, stage, step if k == 0 else 1, dilation))
                num_in = stage.channels
                if k == 0:
                    dilation *= stage.stride // step
            stride *= step
            if index in TAPS_AFTER:
                tap = TAPS_AFTER[index]
                self.taps_after[len(blocks) - 1] = tap
                self.channels[tap], self.strides[tap] = num_in, stride
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(SameConv2d(num_in, HEAD, 1))
        self.channels["out"], self.strides["out"] = HEAD, stride
        if not 0 <= freeze_through <= len(blocks):
            raise UserError(
                f"efficientnet_lite{variant} has {len(blocks)} blocks; freeze_through cannot be {freeze_through}"
            )
        self.freeze([self.stem, *blocks[:freeze_through]] if freeze_through else [], batch_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the four taps; every stride halves with rounding up."""
        taps, x = {}, self.stem(images)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps_after:
                taps[self.taps_after[index]] = x
        taps["out"] = self.head(x)
        return taps


def scale_stages(variant: Variant) -> Sequence[Stage]:
    """The stages of a variant; Lite leaves the number of blocks of the first and the last as it is."""
    width, depth = SCALING[variant]
    ends = (STAGES[0], STAGES[-1])
    return [
        Stage(
            stage.num_blocks if stage in ends else math.ceil(depth * stage.num_blocks),
            stage.kernel,
            stage.stride,
            stage.expansion,
            round_channels(width * stage.channels),
        )
        for stage in STAGES
    ]


def round_channels(wanted: float) -> int:
    """The nearest multiple of 8, but never less than 90 % of what is wanted."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
