"""One network that classifies and segments at once: scores, pseudo labels and losses shared by SSSS and WS-FCN.

Equations follow the released code of Araslanov & Roth, CVPR 2020 (models/stage_net); WS-FCN's is the same.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes
from wsss_ray.contracts import IGNORE, Batch, FusionRule, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.ssss.decoder import GateTest, draw_keep, enlarge, score_head, settled_gate, stochastic_gate
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import standard_groups
from wsss_ray.refine.pamr import refine_with_pamr

BACKGROUND_LOGIT = 1.0
"""z_0 of every pixel: a constant, never learned."""
Fraction = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Multipliers = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]


class SingleStageConfig(MethodConfig):
    """Shared settings; WS-FCN on COCO: 5 PAMR iterations, penalty floor .1, threshold floor .1, background .8."""

    single_stage: ClassVar[bool] = True
    width: Annotated[PositiveInt, Changes("weights")] = 256
    """Channels of the decoder."""
    warmup_epochs: Annotated[NonNegativeInt, Changes("weights")] = 5
    """Epochs with the classification loss alone."""
    psi: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.3
    """Probability with which the gate lets the shallow feature through."""
    gate_at_test: Annotated[GateTest, Changes("weights")] = "blend"
    penalty_power: Annotated[float, Field(ge=0), Changes("weights")] = 3.0
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
    multipliers: Annotated[Multipliers, Changes("weights")] = (1.0, 2.0, 10.0, 20.0)
    """Learning rates of pretrained weights, pretrained biases, new weights and new biases over the base rate."""

    def fusion(self) -> FusionRule:
        """Probabilities are averaged, neither rectified nor normalised (SSSS infer_val)."""
        return FusionRule(rectify="none", reduce="mean", normalize="none")

    def background(self) -> float:
        """0.25, the constant WS-FCN's released inference gives background; SSSS has no constant of its own."""
        return 0.25


def add_background(foreground: Tensor) -> Tensor:
    """(B, C, h, w) logits -> (B, C + 1, h, w) with the constant 1 first."""
    return F.pad(foreground, (0, 0, 0, 0, 1, 0), value=BACKGROUND_LOGIT)


def weighted_pooling(logits: Tensor, masks: Tensor) -> Tensor:
    """nGWP: sum_i m_i z_i / (1 + sum_i m_i) for (B, C, h, w) logits and probabilities -> (B, C)."""
    return (masks * logits).sum(dim=(2, 3)) / (1 + masks.sum(dim=(2, 3)))


def focal_penalty(mean_mask: Tensor, power: float = 3.0, floor: float = 0.01) -> Tensor:
    """Size-focal penalty (1 - m)^power ln(floor + m) of the share m in [0, 1] a class covers; 0 where it covers all."""
    return (1 - mean_mask) ** power * torch.log(floor + mean_mask)


def class_scores(foreground: Tensor, power: float = 3.0, floor: float = 0.01) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) logits -> (B, C) image scores y and the softmax (B, C + 1, h, w), background first."""
    masks = add_background(foreground).softmax(dim=1)
    pooled = weighted_pooling(foreground, masks[:, 1:])
    return pooled + focal_penalty(masks[:, 1:].mean(dim=(2, 3)), power, floor), masks


def labelled_planes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C) labels -> (B, P) mask classes: 0, the labelled ones, then 0 as padding; and (B, P) bool: not padding."""
    num = int(labels.sum(dim=1).max())
    order = labels.argsort(dim=1, descending=True, stable=True)[:, :num]
    real = labels.gather(1, order) > 0
    planes = F.pad((order + 1) * real, (1, 0))
    return planes, F.pad(real, (1, 0), value=True)


def take_planes(maps: Tensor, planes: Tensor) -> Tensor:
    """(B, K, h, w) and (B, P) indices -> (B, P, h, w)."""
    return maps.gather(1, planes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


def pseudo_labels(
    maps: Tensor, background: float = 0.7, foreground: float = 0.6, floor: float = 0.2, real: Tensor | None = None
) -> Tensor:
    """(B, P, H, W) scores, background first -> (B, H, W) int64 plane index, 255 where not exactly one plane claims it.

    A plane claims what is strictly above max(ratio * its highest value, floor); one not ``real`` claims nothing.
    """
    ratio = maps.new_full((maps.shape[1],), foreground)
    ratio[0] = background
    threshold = (ratio[:, None, None] * maps.amax(dim=(2, 3), keepdim=True)).clamp(min=floor)
    claimed = maps > threshold
    if real is not None:
        claimed = claimed & real[:, :, None, None]
    index = claimed.int().argmax(dim=1)
    return torch.where(claimed.sum(dim=1) == 1, index, IGNORE)


def image_gate(counts: Tensor, labels: Tensor) -> Tensor:
    """(B, K) pixels of each class -> (B,) 1 where background and every labelled class has some, else 0."""
    return ((counts > 0).sum(dim=1) == 1 + labels.sum(dim=1)).to(labels.dtype)


def balanced_loss(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Class-balanced, gated cross-entropy: (B, K, H, W) logits, (B, H, W) mask, (B, C) labels -> (B,).

    Class c weighs (n - n_c) / (1 + n) with n_c its pixels; the mean is over all pixels, those that are 255 included.
    """
    num_planes = logits.shape[1]
    unknown = target == IGNORE
    flat = target.masked_fill(unknown, num_planes).flatten(1)
    zeros = logits.new_zeros(len(logits), num_planes + 1)
    counts = zeros.scatter_add(1, flat, torch.ones_like(flat, dtype=logits.dtype))[:, :num_planes]
    total = counts.sum(dim=1, keepdim=True)
    weights = F.pad((total - counts) / (1 + total), (0, 1)).gather(1, flat)
    entropy = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").flatten(1)
    return image_gate(counts, labels) * (weights * entropy).mean(dim=1)


class SingleStage(nn.Module):
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
        self.head = score_head(config.width, num_classes, config.head_dropout)

    def decode(self, low: Tensor, high: Tensor, keep: Tensor | None = None) -> Tensor:
        """The two taps -> (B, C, h, w) foreground logits; ``keep`` is the gate's mask, drawn in training where None."""
        shallow, deep = self.coupling(low, self.context(high))
        if keep is None and self.training:
            keep = draw_keep(deep, self.config.psi)
        if keep is None:
            mixed = settled_gate(deep, shallow, self.config.psi, self.config.gate_at_test)
        else:
            mixed = stochastic_gate(deep, shallow, self.config.psi, keep)
        return self.head(mixed).float()

    def foreground(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) logits at the low tap's stride."""
        taps = self.backbone(images)
        return self.decode(taps["low"], taps["out"])

    def pool(self, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Logits -> image scores and softmax with this method's penalty."""
        return class_scores(foreground, self.config.penalty_power, self.config.penalty_floor)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) softmax of the foreground classes."""
        return add_background(self.foreground(images)).softmax(dim=1)[:, 1:]

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
        return enlarge(masks, images.shape[2:]), logits

    @torch.no_grad()
    def pseudo_masks(self, masks: Tensor, batch: Batch) -> Tensor:
        """(B, C + 1, h, w) softmax -> (B, S, S) int64: PAMR, only labelled classes, thresholds; 255 off the image."""
        planes, real = labelled_planes(batch.labels)
        guide = enlarge(batch.rgb, masks.shape[2:])
        refined = refine_with_pamr(
            guide, take_planes(masks, planes), self.config.pamr_iterations, self.config.pamr_dilations
        )
        refined = enlarge(refined, batch.image.shape[2:]) * batch.inside
        config = self.config
        index = pseudo_labels(refined, config.ratio_background, config.ratio_foreground, config.threshold_floor, real)
        unknown = index == IGNORE
        classes = planes.gather(1, index.masked_fill(unknown, 0).flatten(1)).view_as(index)
        return classes.masked_fill(unknown, IGNORE)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``cls``, and after the warm-up ``seg`` on the network's own refined masks."""
        return self.losses(self.foreground(batch.image), batch, progress)

    def losses(self, foreground: Tensor, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same from (B, C, h, w) logits."""
        scores, masks = self.pool(foreground)
        parts = {"cls": F.binary_cross_entropy_with_logits(scores, batch.labels)}
        if progress.epoch < self.config.warmup_epochs:
            return parts
        target = self.pseudo_masks(masks, batch)
        per_image = balanced_loss(enlarge(add_background(foreground), batch.image.shape[2:]), target, batch.labels)
        parts["seg"] = self.config.segmentation_weight * per_image.mean()
        parts["monitor/labelled"] = (target != IGNORE).float().mean()
        parts["monitor/complete"] = (per_image.detach() > 0).float().mean()
        return parts

    def param_groups(self) -> list[ParamGroup]:
        """Pretrained and new, weights and biases; biases are not decayed."""
        return standard_groups(self, self.config.multipliers)


def rename(names: dict[str, str], key: str) -> str:
    """A tensor's name in released weights -> its name here; ``names`` maps prefixes. KeyError for an unknown name."""
    prefix = max((prefix for prefix in names if key.startswith(prefix)), key=len, default=None)
    if prefix is None:
        raise KeyError(key)
    return names[prefix] + key.removeprefix(prefix)
