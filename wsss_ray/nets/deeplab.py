# SPDX-License-Identifier: Apache-2.0
"""DeepLab v1 (LargeFOV) and v2 (ASPP) heads on any backbone, and the multi-scale input of deeplab-pytorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wsss_ray.config import Changes, Config, UserError
from wsss_ray.contracts import IGNORE, Batch, Need, ParamGroup, Progress
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters

Rate = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class SegmenterConfig(Config):
    """Settings of one segmenter; ``name`` picks it."""

    needs: ClassVar[frozenset[Need]] = frozenset({"mask"})
    """What its batches must carry."""
    name: Annotated[str, Changes("weights")]

    def build(self, backbone: Backbone, num_classes: int) -> nn.Module:
        """The network (``contracts.Trainable`` and ``Segments``) for K = ``num_classes``, background included."""
        raise TypeError(f"segmenter {self.name!r} has no build()")


class DeepLabConfig(SegmenterConfig):
    """What all DeepLabs share; the defaults are those of deeplab-pytorch."""

    multi_scale_input: Annotated[bool, Changes("weights")] = True
    """Train and predict with the pixel-wise maximum of the image's own and the ``input_scales`` logits."""
    input_scales: Annotated[tuple[Scale, ...], Changes("weights")] = (0.5, 0.75)
    input_resize: Annotated[Literal["scale_factor", "size_ratio"], Changes("weights")] = "scale_factor"
    """Coordinate step of the scaled inputs: 1/scale (torch >= 1.6) or the ratio of sizes (torch <= 1.5)."""
    lr_multipliers: Annotated[tuple[float, float, float, float], Changes("weights")] = (1.0, 1.0, 10.0, 20.0)
    """Backbone weights, backbone biases, head weights, head biases."""
    decay_backbone_biases: Annotated[bool, Changes("weights")] = True
    """Off in Caffe's VGG, which gives them multiplier 2 and no decay. Head biases are never decayed."""
    align_corners: Annotated[bool, Changes("weights")] = False
    """How ``scores`` brings logits to the image's size (True in SEAM's retraining)."""

    def build_head(self, num_in: int, num_classes: int) -> nn.Module:
        """(B, num_in, h, w) features -> (B, K, h, w) logits."""
        raise TypeError(f"segmenter {self.name!r} has no build_head()")

    def build(self, backbone: Backbone, num_classes: int) -> DeepLab:
        """The segmenter for ``num_classes`` = K classes, background included."""
        return DeepLab(backbone, self.build_head(backbone.channels["out"], num_classes), self)


class DeepLabV1Config(DeepLabConfig):
    """LargeFOV: one dilated 3x3, then 1x1 (Chen et al. 2015; L2G's released VGG and ResNet-101 heads)."""

    name: Annotated[Literal["deeplab_v1"], Changes("weights")] = "deeplab_v1"
    kind: Annotated[Literal["largefov", "linear", "seam"], Changes("weights")] = "largefov"
    """``linear`` is deeplab-pytorch's single 1x1; ``seam`` has two BatchNorms and one dropout (512 wide there)."""
    rate: Annotated[Rate, Changes("weights")] = 12
    hidden: Annotated[Width, Changes("weights")] = 1024
    dropout: Annotated[Dropout, Changes("weights")] = 0.5
    channel_dropout: Annotated[bool, Changes("weights")] = True
    norm_momentum: Annotated[float, Field(gt=0, le=1), Changes("weights")] = 3e-4
    """Weight of a batch in the running statistics of the ``seam`` head. SEAM's is for its 20,000 steps: after n steps
    1 - (1 - momentum)^n of the statistics have been seen, 19 % after 700."""

    def build_head(self, num_in: int, num_classes: int) -> nn.Module:
        """The head that ``kind`` names."""
        if self.kind == "linear":
            return init_small(nn.Conv2d(num_in, num_classes, 1))
        if self.kind == "largefov":
            return build_branch(num_in, num_classes, self.rate, self.hidden, self.dropout, self.channel_dropout)
        layers: list[nn.Module] = [
            nn.Conv2d(num_in, self.hidden, 3, padding=self.rate, dilation=self.rate),
            nn.BatchNorm2d(self.hidden, momentum=self.norm_momentum, affine=False),
            nn.ReLU(),
            nn.Conv2d(self.hidden, self.hidden, 1),
            nn.BatchNorm2d(self.hidden, momentum=self.norm_momentum, affine=False),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Conv2d(self.hidden, num_classes, 1),
        ]
        return init_small(nn.Sequential(*layers))


class DeepLabV2Config(DeepLabConfig):
    """ASPP: the sum of one branch per atrous rate (Chen et al. 2018)."""

    name: Annotated[Literal["deeplab_v2"], Changes("weights")] = "deeplab_v2"
    rates: Annotated[tuple[Rate, ...], Field(min_length=1), Changes("weights")] = (6, 12, 18, 24)
    hidden: Annotated[Width | None, Changes("weights")] = None
    """None: a branch is one 3x3 (ResNet-101). 1024: 3x3, 1x1, 1x1 with dropout between (VGG-16, "ASPP-L")."""
    dropout: Annotated[Dropout, Changes("weights")] = 0.5
    """Only where there are hidden layers."""
    channel_dropout: Annotated[bool, Changes("weights")] = False

    def build_head(self, num_in: int, num_classes: int) -> nn.Module:
        """One branch per rate, summed."""
        return ASPP(
            build_branch(num_in, num_classes, rate, self.hidden, self.dropout, self.channel_dropout)
            for rate in self.rates
        )


class ASPP(nn.ModuleList):
    """Branches on the same features, summed."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, K, h, w)."""
        return torch.stack([part(features) for part in self]).sum(0)


def build_branch(
    num_in: int, num_classes: int, rate: int, hidden: int | None, dropout: float, channel_dropout: bool
) -> nn.Module:
    """A dilated 3x3 to the classes, or 3x3, 1x1, 1x1 through ``hidden`` channels; weights N(0, 0.01), biases 0."""
    conv = nn.Conv2d(num_in, hidden or num_classes, 3, padding=rate, dilation=rate)
    if hidden is None:
        return init_small(conv)
    drop = nn.Dropout2d if channel_dropout else nn.Dropout
    rest = [nn.ReLU(), drop(dropout), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), drop(dropout)]
    return init_small(nn.Sequential(conv, *rest, nn.Conv2d(hidden, num_classes, 1)))


def init_small(module: nn.Module) -> nn.Module:
    """Set every convolution to N(0, 0.01) and its bias to 0."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.01)
    return module


class DeepLab(nn.Module):
    """A backbone, a head and the multi-scale input (msc.py of deeplab-pytorch)."""

    def __init__(self, backbone: Backbone, head: nn.Module, config: DeepLabConfig):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config

    def compute_logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, h, w) logits of the image as it is."""
        logits: Tensor = self.head(self.backbone(images)["out"])
        return logits

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> logits.

        In training those of scale 1, of every input scale (own sizes) and their maximum; else only the maximum.
        """
        first = self.compute_logits(images)
        if not self.config.multi_scale_input:
            return [first]
        ratio = self.config.input_resize == "size_ratio"
        others = [
            self.compute_logits(
                F.interpolate(images, scale_factor=scale, mode="bilinear", recompute_scale_factor=ratio or None)
            )
            for scale in self.config.input_scales
        ]
        grown = [F.interpolate(other, first.shape[2:], mode="bilinear") for other in others]
        fused = torch.stack([first, *grown]).max(0).values
        return [first, *others, fused] if self.training else [fused]

    def scores(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, H, W) probabilities: logits up-sampled to the image, then softmax."""
        logits = self(images)[-1]
        corners = self.config.align_corners
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=corners).softmax(1)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """One cross-entropy per logit map (mean over labelled pixels); their sum is the loss."""
        if batch.mask is None:
            raise UserError("a segmenter trains on masks, but the batch has none: run the refine step first")
        outputs = self(batch.image)
        names = ["seg/1"]
        if len(outputs) > 1:
            names += [f"seg/{scale:g}" for scale in self.config.input_scales] + ["seg/max"]
        elif self.config.multi_scale_input:
            names = ["seg/max"]
        return {name: compute_pixel_loss(logits, batch.mask) for name, logits in zip(names, outputs, strict=True)}

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head, weights and biases, with the settings' multipliers; all head tensors are in."""
        groups = group_parameters(self, self.config.lr_multipliers)
        if self.config.decay_backbone_biases:
            groups = [replace(g, weight_decay=None) if g.name == "pretrained biases" else g for g in groups]
        return groups


def compute_pixel_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of (B, K, h, w) logits against a (B, H, W) mask shrunk to their size; 0 where nothing is labelled.

    Shrinking takes the label at each cell's centre (PIL's NEAREST, torch's ``nearest-exact``), as deeplab-pytorch does.
    """
    small = F.interpolate(mask[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
    total = F.cross_entropy(logits, small, ignore_index=IGNORE, reduction="sum")
    return total / (small != IGNORE).sum().clamp(min=1)
