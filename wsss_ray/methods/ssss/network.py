# SPDX-License-Identifier: Apache-2.0
"""One network that classifies and segments at once, and its settings: what SSSS and WS-FCN share.

Araslanov & Roth (CVPR 2020) through their released code (models/stage_net); WS-FCN's is the same.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import IGNORE, Batch, FusionRule, Need, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.layers import classification_loss, resize_aligned
from wsss_ray.methods.ssss.decoder import (
    GateRule,
    apply_stochastic_gate,
    apply_test_gate,
    draw_keep_mask,
    make_score_head,
)
from wsss_ray.methods.ssss.labels import choose_planes, make_pseudo_labels, take_planes
from wsss_ray.methods.ssss.losses import BACKGROUND_LOGIT, balanced_loss, prepend_background, score_classes
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters
from wsss_ray.refine.pamr import refine_with_pamr

Fraction = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]


class SingleStageConfig(MethodConfig):
    """Shared settings; WS-FCN on COCO: 5 PAMR iterations, penalty floor .1, threshold floor .1, background .8."""

    single_stage: ClassVar[bool] = True
    width: Annotated[PositiveInt, Changes("weights")] = 256
    """Channels of the decoder."""
    warmup_epochs: Annotated[NonNegativeInt, Changes("weights")] = 5
    """Epochs with the classification loss alone."""
    psi: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.3
    """Probability with which the gate lets the shallow feature through."""
    gate_at_test: Annotated[GateRule, Changes("weights")] = "blend"
    """It changes no weight, but the precision measured while training, and what the stored network answers."""
    penalty_power: Annotated[float, Field(ge=0), Changes("weights")] = 3.0
    """p of the size-focal penalty."""
    penalty_floor: Annotated[float, Field(gt=0), Changes("weights")] = 0.01
    """lambda of the size-focal penalty."""
    pamr_iterations: Annotated[NonNegativeInt, Changes("weights")] = 10
    pamr_dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Changes("weights")] = (1, 2, 4, 8, 12, 24)
    ratio_background: Annotated[Fraction, Changes("weights")] = 0.7
    ratio_foreground: Annotated[Fraction, Changes("weights")] = 0.6
    """A pixel is a class's where its score exceeds this share of the class's highest score in the image ..."""
    threshold_floor: Annotated[Fraction, Changes("weights")] = 0.2
    """... and this value."""
    segmentation_weight: Annotated[float, Field(ge=0), Changes("weights")] = 1.0
    head_dropout: Annotated[tuple[DropRate, DropRate], Changes("weights")] = (0.5, 0.1)
    new_layer_multiplier: Annotated[PositiveFloat, Changes("weights")] = 10.0
    """Learning rate of all that is not backbone over the backbone's. Published for ResNet-38 and 20 epochs; short
    schedules take less, since a decoder at ten times the rate has not learnt the classes when the warm-up ends."""

    @property
    def needs(self) -> frozenset[Need]:
        """Pixels, which guide PAMR."""
        return frozenset({"rgb"})

    def fusion(self) -> FusionRule:
        """Probabilities are averaged, neither rectified nor normalised (SSSS infer_val)."""
        return FusionRule(rectify="none", reduce="mean", normalize="none")

    def background(self) -> float:
        """0.25, the constant WS-FCN's released inference gives background; SSSS has no constant of its own."""
        return 0.25


class SingleStageNetwork(nn.Module):
    """Backbone, a context module on its last tap, a module that couples it with the low tap, a gate and a head.

    ``context``: (B, out, h', w') -> (B, width, h', w'). ``coupling``: (low, context) -> (shallow, deep) at stride 4.
    """

    def __init__(
        self, config: SingleStageConfig, backbone: Backbone, context: nn.Module, coupling: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.context = context
        self.coupling = coupling
        self.head = make_score_head(config.width, num_classes, config.head_dropout)

    def decode(self, low: Tensor, high: Tensor, keep: Tensor | None = None) -> Tensor:
        """The two taps -> (B, C, h, w) foreground logits; ``keep`` is the gate's mask, drawn in training where None."""
        shallow, deep = self.coupling(low, self.context(high))
        if keep is None and self.training:
            keep = draw_keep_mask(deep, self.config.psi)
        if keep is None:
            mixed = apply_test_gate(deep, shallow, self.config.psi, self.config.gate_at_test)
        else:
            mixed = apply_stochastic_gate(deep, shallow, self.config.psi, keep)
        logits: Tensor = self.head(mixed)
        return logits.float()

    def foreground(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) logits at the low tap's stride."""
        taps = self.backbone(images)
        return self.decode(taps["low"], taps["out"])

    def pool(self, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Logits -> image scores and softmax with this method's penalty."""
        return score_classes(foreground, self.config.penalty_power, self.config.penalty_floor)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) softmax of the foreground classes."""
        return prepend_background(self.foreground(images)).softmax(dim=1)[:, 1:]

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) logits, the constant background last."""
        return F.pad(self.foreground(images), (0, 0, 0, 0, 0, 1), value=BACKGROUND_LOGIT)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) scores y of nGWP and the size-focal penalty."""
        return self.pool(self.foreground(images))[0]

    def scores(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, H, W) softmax, background first, enlarged with aligned corners, not cleaned."""
        return self.predict_scores(images)[0]

    def predict_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``scores`` and ``logits`` from one forward pass."""
        logits, masks = self.pool(self.foreground(images))
        return resize_aligned(masks, images.shape[2:]), logits

    @torch.no_grad()
    def make_pseudo_masks(self, masks: Tensor, batch: Batch) -> Tensor:
        """(B, C + 1, h, w) softmax -> (B, S, S) int64: PAMR, only labelled classes, thresholds; 255 off the image."""
        config = self.config
        if batch.rgb is None:
            raise UserError("PAMR refines masks on the image's pixels: give the batch rgb")
        planes, real = choose_planes(batch.labels)
        guide = resize_aligned(batch.rgb, masks.shape[2:])
        refined = refine_with_pamr(guide, take_planes(masks, planes), config.pamr_iterations, config.pamr_dilations)
        refined = resize_aligned(refined, batch.image.shape[2:]) * batch.inside
        index = make_pseudo_labels(
            refined, config.ratio_background, config.ratio_foreground, config.threshold_floor, real
        )
        unknown = index == IGNORE
        classes = planes.gather(1, index.masked_fill(unknown, 0).flatten(1)).view_as(index)
        return classes.masked_fill(unknown, IGNORE)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``cls``, and after the warm-up ``seg`` on the network's own refined masks."""
        return self.loss_of_logits(self.foreground(batch.image), batch, progress)

    def loss_of_logits(self, foreground: Tensor, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same from (B, C, h, w) logits."""
        scores, masks = self.pool(foreground)
        parts = {"cls": classification_loss(scores, batch.labels)}
        if progress.epoch < self.config.warmup_epochs:
            return parts
        target = self.make_pseudo_masks(masks, batch)
        logits = resize_aligned(prepend_background(foreground), batch.image.shape[2:])
        per_image = balanced_loss(logits, target, batch.labels)
        parts["seg"] = self.config.segmentation_weight * per_image.mean()
        parts["monitor/labelled"] = (target != IGNORE).float().mean()
        parts["monitor/complete"] = (per_image.detach() > 0).float().mean()
        return parts

    def param_groups(self) -> list[ParamGroup]:
        """Pretrained and new, weights and biases; biases at twice the rate, not decayed."""
        new = self.config.new_layer_multiplier
        return group_parameters(self, (1.0, 2.0, new, 2 * new))
