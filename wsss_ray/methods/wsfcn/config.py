# SPDX-License-Identifier: Apache-2.0
"""WS-FCN: flexible context aggregation and semantically consistent fusion on SSSS (Wang et al., TNNLS 2023).

The equations and the released code differ, and the published parameter counts are the code's; every difference is a
setting whose default the profile chooses.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import nn

from wsss_ray.config import Changes, Config
from wsss_ray.methods.ssss.decoder import DecoderASPP, Norms, SkipAndCue
from wsss_ray.methods.ssss.network import DropRate, SingleStageConfig, SingleStageNetwork
from wsss_ray.methods.wsfcn.context import (
    FCA,
    RELEASED_FCA,
    FCAConfig,
    LargeConv,
    NonLocal,
    PyramidPooling,
    Rates,
)
from wsss_ray.methods.wsfcn.fusion import RELEASED_SF2, SF2, SF2Config
from wsss_ray.nets.backbone import Backbone


class WSFCNConfig(SingleStageConfig):
    """WS-FCN and the rows of its Tables I and II; ``profile`` sets what ``fca`` and ``sf2`` leave open."""

    name: Annotated[Literal["wsfcn"], Changes("weights")] = "wsfcn"
    context: Annotated[Literal["fca", "aspp", "non_local", "large_conv", "ppm"], Changes("weights")] = "fca"
    """Table II: the module that gathers context; ``aspp`` is the baseline's."""
    coupling: Annotated[Literal["sf2", "gci"], Changes("weights")] = "sf2"
    """Table I: how context meets low-level detail; ``gci`` is the baseline's."""
    fca: Annotated[FCAConfig, Changes("weights")] = FCAConfig()
    sf2: Annotated[SF2Config, Changes("weights")] = SF2Config()
    context_norms: Annotated[Norms, Changes("weights")] = "still"
    """BatchNorm of the context module: the code keeps the statistics at (0, 1), the paper does not say."""
    dilations: Annotated[Rates, Field(min_length=1), Changes("weights")] = (12, 24, 36)
    """Of the atrous pyramid, where ``context`` is ``aspp``."""
    context_dropout: Annotated[DropRate, Changes("weights")] = 0.5
    """Of the atrous pyramid."""
    large_kernel: Annotated[PositiveInt, Changes("weights")] = 7
    skip_channels: Annotated[PositiveInt, Changes("weights")] = 48
    """Of ``gci``."""
    warmup_epochs: Annotated[NonNegativeInt, Changes("weights")] = 7
    """Epochs with the classification loss alone (Sec. IV-B)."""
    new_layer_multiplier: Annotated[PositiveFloat, Changes("weights")] = 20.0
    """The code's, for all that is not backbone; Sec. IV-B says 20 times, "i.e. 0.001", of a base rate of 0.001."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
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
    def _check_kernel(self) -> WSFCNConfig:
        if self.large_kernel % 2 == 0:
            raise ValueError("large_kernel must be odd, so that the map keeps its size")
        return self

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> SingleStageNetwork:
        """The chosen context module on ``out`` and the chosen coupling with ``low``; ``base`` is not used."""
        channels = backbone.channels
        context = build_context(self, channels["out"])
        coupling = (
            SkipAndCue(channels["low"], self.width, self.skip_channels)
            if self.coupling == "gci"
            else SF2(self.sf2, channels["low"], self.width)
        )
        return SingleStageNetwork(self, backbone, context, coupling, num_classes)


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
