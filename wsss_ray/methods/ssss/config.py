# SPDX-License-Identifier: Apache-2.0
"""SSSS: single-stage segmentation from image labels (Araslanov & Roth, CVPR 2020), the baseline of WS-FCN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from wsss_ray.config import Changes
from wsss_ray.methods.ssss.decoder import DecoderASPP, Norms, SkipAndCue
from wsss_ray.methods.ssss.network import DropRate, SingleStageConfig, SingleStageNetwork
from wsss_ray.nets.backbone import Backbone


class SSSSConfig(SingleStageConfig):
    """SSSS; both profiles are the released code, which says more than the paper does."""

    name: Annotated[Literal["ssss"], Changes("weights")] = "ssss"
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Changes("weights")] = (12, 24, 36)
    """Rates of the atrous pyramid; smaller ones suit small maps."""
    context_norms: Annotated[Norms, Changes("weights")] = "still"
    """BatchNorm of the pyramid: the released one keeps its statistics at (0, 1)."""
    context_dropout: Annotated[DropRate, Changes("weights")] = 0.5
    skip_channels: Annotated[PositiveInt, Changes("weights")] = 48

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> SingleStageNetwork:
        """Atrous pyramid on ``out``, skip and global cue injection from ``low``; ``base`` is not used."""
        channels = backbone.channels
        context = DecoderASPP(channels["out"], self.width, self.dilations, self.context_norms, self.context_dropout)
        coupling = SkipAndCue(channels["low"], self.width, self.skip_channels)
        return SingleStageNetwork(self, backbone, context, coupling, num_classes)
