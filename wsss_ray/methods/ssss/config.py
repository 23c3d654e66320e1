"""SSSS: single-stage segmentation from image labels (Araslanov & Roth, CVPR 2020), the baseline of WS-FCN."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from wsss_ray.config import Changes
from wsss_ray.methods.ssss.decoder import DecoderASPP, Norms, SkipAndCue
from wsss_ray.methods.ssss.network import SingleStage, SingleStageConfig
from wsss_ray.nets.backbone import Backbone

HEAD_NAMES = {f"last_conv.{index}.": f"head.{index}." for index in (0, 1, 4, 5, 8)}
ASPP_NAMES = {
    **{f"aspp.aspp{k}.atrous_conv.": f"context.branches.{k - 1}.0." for k in (1, 2, 3, 4)},
    **{f"aspp.aspp{k}.bn.": f"context.branches.{k - 1}.1." for k in (1, 2, 3, 4)},
    "aspp.global_avg_pool.1.": "context.image.0.",
    "aspp.global_avg_pool.2.": "context.image.1.",
    "aspp.conv1.": "context.fuse.0.",
    "aspp.bn1.": "context.fuse.1.",
}
CUE_NAMES = {
    "fc8_skip.": "coupling.skip.",
    "fc8_x.": "coupling.merge.",
    "shallow_mask.fc_deep.": "coupling.cue.",
    "shallow_mask.fc_skip.": "coupling.detail.",
    "shallow_mask.fc_cls.": "coupling.out.",
}
RELEASED_NAMES = {**ASPP_NAMES, **CUE_NAMES, **HEAD_NAMES}
"""Name prefixes in the released decoder's state -> here (see ``single_stage.rename``)."""


class SSSSConfig(SingleStageConfig):
    """SSSS; both profiles are the released code, which says more than the paper does."""

    name: Annotated[Literal["ssss"], Changes("weights")] = "ssss"
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Changes("weights")] = (12, 24, 36)
    """Rates of the atrous pyramid; smaller ones suit small maps."""
    context_norms: Annotated[Norms, Changes("weights")] = "still"
    """BatchNorm of the pyramid: the released one keeps its statistics at (0, 1)."""
    context_dropout: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.5
    skip_channels: Annotated[PositiveInt, Changes("weights")] = 48

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """Atrous pyramid on ``out``, skip and global cue injection from ``low``; ``base`` is not used."""
        channels = backbone.channels
        context = DecoderASPP(channels["out"], self.width, self.dilations, self.context_norms, self.context_dropout)
        coupling = SkipAndCue(channels["low"], self.width, self.skip_channels)
        return SingleStage(self, backbone, context, coupling, num_classes)
