"""WS-FCN: flexible context aggregation and semantically consistent fusion on SSSS (Wang et al., TNNLS 2023).

The equations and the released code differ, and the published parameter counts are the code's; every difference is a
setting whose default the profile chooses.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from wsss_ray.config import Changes, Config
from wsss_ray.methods.ssss.config import ASPP_NAMES, CUE_NAMES, HEAD_NAMES
from wsss_ray.methods.ssss.decoder import (
    DecoderASPP,
    LargeConv,
    NonLocal,
    Norms,
    PyramidPooling,
    SkipAndCue,
    conv,
    embed,
    enlarge,
    global_mean,
    norm,
)
from wsss_ray.methods.ssss.network import Multipliers, SingleStage, SingleStageConfig
from wsss_ray.nets.backbone import Backbone

Rates = tuple[PositiveInt, ...]
Combine = Literal["product", "sum", "concat"]
OffsetUnit = Literal["pixel", "released"]


class FCAConfig(Config):
    """Flexible context aggregation (Sec. III-B); defaults are Eq. 1-6, ``RELEASED_FCA`` the code's."""

    kernels: Annotated[Rates, Field(min_length=1)] = (1, 3, 5, 7)
    """Lengths of the strip convolutions, odd."""
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
    def _paired(self) -> FCAConfig:
        if len(self.kernels) != len(self.dilations):
            raise ValueError(
                f"{len(self.kernels)} kernels but {len(self.dilations)} dilations: give one dilation a kernel"
            )
        if any(size % 2 == 0 for size in self.kernels):
            raise ValueError("kernels must be odd, so that the map keeps its size")
        return self


class SF2Config(Config):
    """Semantically consistent fusion (Sec. III-C); defaults are Eq. 7-12, ``RELEASED_SF2`` the code's."""

    align: bool = True
    """Warp by learned offsets (Eq. 11-12); False enlarges (Table II Summation, Concatenation, Multiplication)."""
    combine: Combine = "product"
    extra_embed: bool = False
    """The code's second embedding before the product and third after it; Eq. 7-8 multiply the first ones."""
    project: bool = False
    """Halve the channels of both features before the offset convolution (code)."""
    offset_norm: bool = True
    """E of Eq. 11, whose ReLU leaves offsets that are never negative; False is the code's plain convolution."""
    offset_unit: OffsetUnit = "pixel"
    """pixel: one enlarged pixel (Eq. 12). released: 1 / W of the normalised width, (W - 1) / 2W of a pixel."""


RELEASED_FCA: dict[str, Any] = {
    "dilations": (1, 12, 24, 36),
    "shared_attention": True,
    "image_pool": True,
    "fuse": "conv1",
    "dropout": 0.5,
    "idle_norms": True,
}
RELEASED_SF2: dict[str, Any] = {"extra_embed": True, "project": True, "offset_norm": False, "offset_unit": "released"}


class WSFCNConfig(SingleStageConfig):
    """WS-FCN and the rows of its Tables I and II; ``profile`` sets what ``fca`` and ``sf2`` leave open."""

    name: Annotated[Literal["wsfcn"], Changes("weights")] = "wsfcn"
    context: Annotated[Literal["fca", "aspp", "non_local", "large_conv", "ppm"], Changes("weights")] = "fca"
    coupling: Annotated[Literal["sf2", "gci"], Changes("weights")] = "sf2"
    fca: Annotated[FCAConfig, Changes("weights")] = FCAConfig()
    sf2: Annotated[SF2Config, Changes("weights")] = SF2Config()
    context_norms: Annotated[Norms, Changes("weights")] = "still"
    """BatchNorm of the context module: the code keeps the statistics at (0, 1), the paper does not say."""
    dilations: Annotated[Rates, Field(min_length=1), Changes("weights")] = (12, 24, 36)
    """Of the atrous pyramid, where ``context`` is ``aspp``."""
    context_dropout: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.5
    """Of the atrous pyramid."""
    large_kernel: Annotated[PositiveInt, Changes("weights")] = 7
    skip_channels: Annotated[PositiveInt, Changes("weights")] = 48
    """Of ``gci``."""
    warmup_epochs: Annotated[NonNegativeInt, Changes("weights")] = 7
    multipliers: Annotated[Multipliers, Changes("weights")] = (1.0, 2.0, 20.0, 40.0)
    """The code's, for all that is not backbone; the paper says 20 times, "i.e. 0.001", of a base rate of 0.001."""

    @model_validator(mode="before")
    @classmethod
    def _profile_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("profile") != "released":
            return data
        filled = dict(data)
        for key, released in (("fca", RELEASED_FCA), ("sf2", RELEASED_SF2)):
            given = filled.get(key, {})
            if isinstance(given, Config):
                given = given.model_dump(exclude_unset=True)
            filled[key] = {**released, **given} if isinstance(given, dict) else given
        return filled

    @model_validator(mode="after")
    def _keeps_the_size(self) -> WSFCNConfig:
        if self.large_kernel % 2 == 0:
            raise ValueError("large_kernel must be odd, so that the map keeps its size")
        return self

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """The chosen context module on ``out`` and the chosen coupling with ``low``; ``base`` is not used."""
        channels = backbone.channels
        context = build_context(self, channels["out"])
        coupling = (
            SkipAndCue(channels["low"], self.width, self.skip_channels)
            if self.coupling == "gci"
            else SF2(self.sf2, channels["low"], self.width)
        )
        return SingleStage(self, backbone, context, coupling, num_classes)


def build_context(config: WSFCNConfig, num_in: int) -> nn.Module:
    """The module that gathers context: (B, num_in, h, w) -> (B, width, h, w)."""
    width, norms = config.width, config.context_norms
    if config.context == "fca":
        return FCA(config.fca, num_in, width, norms)
    if config.context == "large_conv":
        return LargeConv(num_in, width, config.large_kernel, norms)
    if config.context == "ppm":
        return PyramidPooling(num_in, width, norms=norms)
    if config.context == "non_local":
        return NonLocal(num_in, width, norms)
    return DecoderASPP(num_in, width, config.dilations, norms, config.context_dropout)


class Strips(nn.Module):
    """Eq. 1: a column then a row, plus a row then a column, of ``size`` taps; no norm, no ReLU."""

    def __init__(self, num_in: int, width: int, size: int, dilation: int = 1, idle_norm: bool = False) -> None:
        super().__init__()
        column, row = (size, 1), (1, size)
        self.column_row = nn.Sequential(conv(num_in, width, column, dilation), conv(width, width, row, dilation))
        self.row_column = nn.Sequential(conv(num_in, width, row, dilation), conv(width, width, column, dilation))
        if idle_norm:
            self.idle = norm(width, "still")

    def forward(self, x: Tensor) -> Tensor:
        return self.column_row(x) + self.row_column(x)


class ChannelAttention(nn.Module):
    """Eq. 2: (B, width, h, w) -> (B, width, 1, 1) in (0, 1), from the mean and the maximum over positions.

    ``shared``: both go through one 1x1-ReLU-1x1 network; otherwise through a 1x1 convolution each.
    """

    def __init__(self, width: int, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        if shared:
            self.both = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width))
        else:
            self.of_mean, self.of_max = conv(width, width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        of_mean, of_max = (self.both, self.both) if self.shared else (self.of_mean, self.of_max)
        return torch.sigmoid(of_mean(global_mean(x)) + of_max(x.amax(dim=(2, 3), keepdim=True)))


class SpatialRecalibration(nn.Module):
    """Eq. 5-6: F + sigmoid(conv3x3([mean over channels; max over channels])) F."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 1, 3)

    def attention(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, 1, h, w) in (0, 1)."""
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x) * x


class FCA(nn.Module):
    """Strips under channel attention, fused and recalibrated (Eq. 1-6): (B, in, h, w) -> (B, width, h, w)."""

    def __init__(self, config: FCAConfig, num_in: int, width: int, norms: Norms = "still") -> None:
        super().__init__()
        num_strips = len(config.kernels)
        self.strips = nn.ModuleList(
            Strips(num_in, width, size, dilation, config.idle_norms)
            for size, dilation in zip(config.kernels, config.dilations, strict=True)
        )
        num_attentions = 1 if config.shared_attention else num_strips
        self.attention = nn.ModuleList(ChannelAttention(width, config.shared_attention) for _ in range(num_attentions))
        self.image = embed(num_in, width, norms="still") if config.image_pool else None
        num_fused = (num_strips + config.image_pool) * width
        self.fuse = (
            embed(num_fused, width, 3, norms=norms)
            if config.fuse == "conv3_relu"
            else nn.Sequential(conv(num_fused, width), norm(width, norms))
        )
        self.recalibrate = SpatialRecalibration() if config.spatial else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def common(self, high: Tensor) -> Tensor:
        """F^com, before recalibration (Eq. 4)."""
        parts = []
        for k, strips in enumerate(self.strips):
            part = strips(high)
            parts.append(self.attention[k % len(self.attention)](part) * part)
        if self.image is not None:
            parts.append(self.image(global_mean(high)).expand_as(parts[0]))
        return self.fuse(torch.cat(parts, dim=1))

    def forward(self, high: Tensor) -> Tensor:
        return self.dropout(self.recalibrate(self.common(high)))


def warp(feature: Tensor, flow: Tensor, unit: OffsetUnit = "pixel") -> Tensor:
    """Enlarge (B, K, h, w) to the size of (B, 2, H, W) offsets, each position moved by its (x, y) (Eq. 9, 12).

    No offset is bilinear enlarging with aligned corners; outside is 0. ``unit``: see ``SF2Config.offset_unit``.
    """
    height, width = flow.shape[2:]
    flow = flow.float()
    extent = flow.new_tensor([width, height])
    scale = 1 / extent if unit == "released" else 2 / (extent - 1).clamp(min=1)
    rows = torch.linspace(-1, 1, height, device=flow.device)
    columns = torch.linspace(-1, 1, width, device=flow.device)
    base = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    grid = base + flow.permute(0, 2, 3, 1) * scale
    return F.grid_sample(feature.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Align(nn.Module):
    """Offsets from both features (Eq. 11): (B, low, H, W) and (B, width, h, w) -> the second at the first's size."""

    def __init__(self, num_low: int, width: int, project: bool, offset_norm: bool, unit: OffsetUnit) -> None:
        super().__init__()
        self.unit = unit
        half = max(width // 2, 1)
        self.low = nn.Conv2d(num_low, half, 1, bias=False) if project else nn.Identity()
        self.high = nn.Conv2d(width, half, 1, bias=False) if project else nn.Identity()
        num_in = 2 * half if project else num_low + width
        self.offset: nn.Module = nn.Conv2d(num_in, 2, 3, padding=1, bias=False)
        if offset_norm:
            self.offset = embed(num_in, 2, 3)

    def flow(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, 2, H, W) offsets, x then y; here alone enlarging does not align corners (released code)."""
        raised = F.interpolate(self.high(high), size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.offset(torch.cat([raised, self.low(low)], dim=1))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return warp(high, self.flow(low, high), self.unit)


class Stream(nn.Module):
    """The embeddings one of the two features goes through (Eq. 7 or 8, or the code's longer way)."""

    def __init__(self, num_in: int, width: int, extra_embed: bool) -> None:
        super().__init__()
        self.first = embed(num_in, width, 3, bias=True)
        self.second = embed(width, width, 3, bias=True) if extra_embed else nn.Identity()
        self.third = embed(width, width, 3, bias=True) if extra_embed else nn.Identity()
        self.last = embed(width, width, 3, bias=True)


class SF2(nn.Module):
    """Both features receive what they agree on: (low, context) -> low and high stream, (B, width, H, W), non-negative.

    Table II has a sum or a convolved concatenation in place of the product, and no alignment (inferred from counts).
    """

    def __init__(self, config: SF2Config, num_low: int, width: int) -> None:
        super().__init__()
        self.combine = config.combine
        self.align = (
            Align(num_low, width, config.project, config.offset_norm, config.offset_unit) if config.align else None
        )
        self.low = Stream(num_low, width, config.extra_embed)
        self.high = Stream(width, width, config.extra_embed)
        self.concat = conv(2 * width, width, 3) if config.combine == "concat" else None

    def join(self, low: Tensor, high: Tensor) -> Tensor:
        """What the two embeddings share, added to both streams."""
        if self.concat is not None:
            return self.concat(torch.cat([low, high], dim=1))
        return low + high if self.combine == "sum" else low * high

    def fuse(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 7-8 from features of one size."""
        first_low, first_high = self.low.first(low), self.high.first(high)
        joint = self.join(self.low.second(first_low), self.high.second(first_high))
        return self.low.last(self.low.third(joint) + first_low), self.high.last(self.high.third(joint) + first_high)

    def forward(self, low: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        raised = enlarge(context, low.shape[2:]) if self.align is None else self.align(low, context)
        return self.fuse(low, raised)


FCA_NAMES = {
    **{
        f"fca.fca{k}.conv{path}_{step}.": f"context.strips.{k - 1}.{name}.{step - 1}."
        for k in (1, 2, 3, 4)
        for path, name in ((1, "column_row"), (2, "row_column"))
        for step in (1, 2)
    },
    "fca.ca.sharedMLP.": "context.attention.0.both.",
    "fca.sa.": "context.recalibrate.",
    "fca.global_avg_pool.1.": "context.image.0.",
    "fca.global_avg_pool.2.": "context.image.1.",
    "fca.conv1.": "context.fuse.0.",
    "fca.bn1.": "context.fuse.1.",
}
SF2_NAMES = {
    f"sf2.{part}{step}{suffix}.": f"coupling.{stream}.{name}.{index}."
    for index, part in enumerate(("conv", "bn"))
    for step, name in enumerate(("first", "second", "third", "last"), start=1)
    for suffix, stream in (("h", "low"), ("v", "high"))
}
ALIGN_NAMES = {
    "align1.down_l.": "coupling.align.low.",
    "align1.down_h.": "coupling.align.high.",
    "align1.flow_make.": "coupling.align.offset.",
}
RELEASED_NAMES = {**FCA_NAMES, **SF2_NAMES, **ALIGN_NAMES, **ASPP_NAMES, **CUE_NAMES, **HEAD_NAMES}
"""Name prefixes in the released decoder's state -> here (see ``single_stage.rename``); idle norms are left out."""
