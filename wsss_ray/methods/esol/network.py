# SPDX-License-Identifier: Apache-2.0
"""ESOL: taps learn to leave the object's strongest parts, then to come back to the object (Li et al., NeurIPS 2022).

No code was released. What the paper leaves open is a setting here, and its docstring says what the paper prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import Batch, FusionRule, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.esol.losses import area_loss, clip_features, detect_runaway, present_loss
from wsss_ray.methods.layers import build_class_head, classification_loss, spatial_mean
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.deform import Backend, DeformConv2d
from wsss_ray.nets.groups import group_parameters

Phase = Literal["classifier", "expansion", "shrinkage"]
Part = Literal["offsets", "conv1", "conv2", "classifier"]
ExtraConv = nn.Conv2d | DeformConv2d
STRUCTURE = ("channels", "kernel", "bias", "activation", "conv2")
"""Settings that all phases of one run share, since later ones take over the layers of earlier ones."""
CLIPPING = ("beta", "clip_max")
"""Settings that the expansion and the shrinkage share: the second goes on with the features of the first."""
HEAD_RATE = 10.0
"""Learning rate of the classifier over the backbone's, as IRN has it for new layers."""
ADVICE: dict[Phase, str] = {
    "classifier": "lower the learning rate",
    "expansion": "lower alpha times the learning rate (base.method.alpha, base.train.optimizer.lr in 'esol')",
    "shrinkage": "lower the learning rate (train.optimizer.lr)",
}
"""What to do about offsets that ran away."""


class ESOLConfig(MethodConfig):
    """One phase of ESOL; the later two start from a ``base`` in the phase before, and take over its network."""

    name: Annotated[Literal["esol"], Changes("weights")] = "esol"
    phase: Annotated[Phase, Changes("weights")] = "classifier"

    channels: Annotated[int | None, Field(ge=1), Changes("weights")] = None
    """Width of the two extra convolutions; None: the backbone's (2048 on ResNet-50)."""
    kernel: Annotated[Literal[1, 3], Changes("weights")] = 3
    """Kernel of the extra convolutions: "3x3 or 1x1" (Sec. 4.1); 1 makes each sampler a plain warp."""
    bias: Annotated[bool, Changes("weights")] = True
    """Whether the extra convolutions have a bias; the paper does not say."""
    activation: Annotated[Literal["relu", "none"], Changes("weights")] = "relu"
    """After each extra convolution; the paper names none, but clipping needs positive maxima."""
    init: Annotated[Literal["torch", "identity"], Changes("weights")] = "torch"
    """Start of the extra convolutions; ``identity`` (Dirac) where the high rate makes them diverge."""
    extra_lr_multiplier: Annotated[float, Field(gt=0), Changes("weights")] = 10.0
    """Of the extra convolutions: IRN's rate for new layers, or 1 if unstable; the classifier always has 10."""
    conv2: Annotated[Literal["all", "skip", "late"], Changes("weights")] = "all"
    """Where the second convolution stands. ``all``: trained with the classifier, plain in the expansion. ``skip``:
    trained too, but left out of the expansion, as in Fig. 2. ``late``: an identity that enters with the shrinkage."""

    expansion_sampler: Annotated[bool, Changes("weights")] = True
    """DT_e of Table 6; without it the shrinkage may start from the classifier at once."""
    shrinkage_sampler: Annotated[bool, Changes("weights")] = True
    """DT_s of Table 6; without it ``trains`` must name what learns instead."""
    trains: Annotated[tuple[Part, ...], Field(min_length=1), Changes("weights")] = ("offsets",)
    """What learns in the later phases: the new sampler's offsets, and further parts that the paper keeps fixed."""
    offset_lr_multiplier: Annotated[float, Field(gt=0), Changes("weights")] = 1.0
    """Of the offset branch; IRN's rule for new layers would be 10."""
    offset_weight_decay: Annotated[float | None, Field(ge=0), Changes("weights")] = None
    """Of the offset branch; None: the recipe's (IRN 1e-4), which is of the order of the loss gradient."""
    deform_backend: Annotated[Backend, Changes("weights")] = "torch"
    """``torch`` gives the same numbers whatever is installed."""

    alpha: Annotated[float, Field(gt=0), Changes("weights")] = 0.01
    """Weight of the inverse loss (Eq. 5): 0.01 in Sec. 4.3.1, 0.001 in Sec. 4.1. Only its product with the rate matters
    where there is neither momentum nor weight decay. Of the expansion alone: the other phases refuse another value."""
    beta: Annotated[float, Field(gt=0, le=1), Changes("weights")] = 0.15
    """Features are clipped at beta times their maximum (Eq. 7); 1 is off."""
    clip_max: Annotated[Literal["channel", "image"], Changes("weights")] = "channel"
    """The maximum over the places of each channel, or over all channels too."""
    clip_detach: Annotated[bool, Changes("weights")] = True
    """Whether the maximum is a constant for the gradient; Eq. 7 does not say. Clipped places then have no gradient, so
    that the inverse loss only takes down what lies below the ceiling."""
    clip_at_inference: Annotated[bool | Literal["always"], Changes("maps")] = True
    """Whether maps are read off clipped features, in the phases that train on them; ``always``: the classifier's too,
    which tells what clipping alone does. ``logits`` are those of training: clipped in the later phases."""
    gamma: Annotated[float, Field(ge=0), Changes("weights")] = 1.0
    """Weight of the classification loss in the shrinkage (Eq. 6)."""
    mu: Annotated[float, Field(ge=0), Changes("weights")] = 1.0
    """Weight of the area loss (Eq. 6)."""
    area_map: Annotated[Literal["sigmoid", "normalized"], Changes("weights")] = "sigmoid"
    """P_k of Eq. 6: the sigmoid of the scores as in CLIMS, or the rectified scores over their maximum."""
    area_classes: Annotated[Literal["all", "present"], Changes("weights")] = "all"
    """``all``: every class of the data set, as printed; ``present``: the mean over each image's own classes."""

    @model_validator(mode="after")
    def _check_combination(self) -> ESOLConfig:
        if self.profile == "released":
            raise ValueError("ESOL has no released code: use profile 'paper'")
        if self.phase != "expansion" and self.alpha != type(self).model_fields["alpha"].default:
            raise ValueError(f"the {self.phase} does not read alpha: set the expansion's, base.method.alpha in 'esol'")
        sampler = {"expansion": self.expansion_sampler, "shrinkage": self.shrinkage_sampler}.get(self.phase, True)
        if not sampler and "offsets" in self.trains:
            hint = "skip the phase, or set" if self.phase == "expansion" else "set"
            raise ValueError(f"the {self.phase} has no offsets to train: {hint} 'trains', for example to ['conv2']")
        if self.phase == "expansion" and self.conv2 != "all" and "conv2" in self.trains:
            raise ValueError(f"conv2 {self.conv2!r} is not in the expansion: take it out of 'trains'")
        return self

    @property
    def wants_base(self) -> bool:
        """True in the phases that start from the one before."""
        return self.phase != "classifier"

    @property
    def clips(self) -> bool:
        """Whether the phase trains on clipped features."""
        return self.phase != "classifier"

    @property
    def clips_maps(self) -> bool:
        """Whether maps are read off clipped features."""
        return self.clip_at_inference == "always" or (self.clips and bool(self.clip_at_inference))

    def fusion(self) -> FusionRule:
        """IRN's: rectified maps of all scales and flips are summed, then each class is divided by its maximum."""
        return FusionRule(rectify="before", reduce="sum", normalize="max", epsilon=1e-5, multiple=16)

    def background(self) -> float:
        """0.15, IRN's ``cam_eval_thres``; the paper reports its best threshold and does not print it."""
        return 0.15

    def warning(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Whether the offsets ran away; in the shrinkage, whose loss should fall, only whether they left the map."""
        limit = 1.0 if self.phase == "expansion" else float("inf")
        found = detect_runaway(history, min_offset=limit)
        return None if found is None else f"the {self.phase} ran away: {found}; {ADVICE[self.phase]}"

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> ESOL:
        """An ``ESOL``; a later phase takes over ``base``'s network, backbone included, and freezes it in place.

        Raises UserError where the base is missing, of another method or phase, or of another structure.
        """
        if not self.wants_base:
            return ESOL.build_classifier(self, backbone, num_classes)
        before = _check_base(self, backbone, num_classes, base)
        return ESOL.build_later_phase(self, before)


class ESOL(nn.Module):
    """Backbone, conv1, clip, conv2, pooling, classifier; a sampler is a convolution with offsets (Eq. 4, Fig. 2)."""

    def __init__(
        self,
        config: ESOLConfig,
        backbone: Backbone,
        conv1: ExtraConv,
        conv2: ExtraConv | None,
        head: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.conv1 = conv1
        self.conv2 = conv2
        self.head = head

    @classmethod
    def build_classifier(cls, config: ESOLConfig, backbone: Backbone, num_classes: int) -> ESOL:
        """The network of the first phase, ready to train on IRN's recipe (Sec. 4.1)."""
        num_in = backbone.channels["out"]
        width = config.channels or num_in
        conv1 = _build_extra_conv(config, num_in, width)
        conv2 = None if config.conv2 == "late" else _build_extra_conv(config, width, width)
        return cls(config, backbone, conv1, conv2, build_class_head(width, num_classes, xavier=False))

    @classmethod
    def build_later_phase(cls, config: ESOLConfig, before: ESOL) -> ESOL:
        """The network of a later phase on the layers of the phase before, all fixed but what ``trains`` names.

        The expansion's sampler is put on the first extra convolution (Sec. 3.2), the shrinkage's on the second (3.3).
        """
        conv1, conv2 = before.conv1, before.conv2
        offsets: dict[Part, nn.Module] = {}
        if config.phase == "expansion" and config.expansion_sampler:
            conv1 = DeformConv2d(_get_regular(conv1), config.deform_backend)
            offsets["offsets"] = conv1.offset
        if config.phase == "shrinkage":
            if conv2 is None:
                width = before.head.in_channels
                conv2 = _build_extra_conv(config.model_copy(update={"init": "identity"}), width, width)
            if config.shrinkage_sampler:
                conv2 = DeformConv2d(_get_regular(conv2), config.deform_backend)
                offsets["offsets"] = conv2.offset
        net = cls(config, before.backbone, conv1, conv2, before.head)
        net.requires_grad_(False)
        parts: dict[Part, nn.Module] = {"conv1": _get_regular(conv1), "classifier": net.head, **offsets}
        if conv2 is not None:
            parts["conv2"] = _get_regular(conv2)
        for name in config.trains:
            parts[name].requires_grad_(True)
        return net.train(before.training)

    def train(self, mode: bool = True) -> ESOL:
        """Train mode; in the later phases the backbone stays in eval mode, so that its features never change."""
        super().train(mode)
        if self.config.phase != "classifier":
            self.backbone.eval()
        return self

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) signed scores of the phase's whole network, clipped as ``maps`` are."""
        return self._compute_scores(images, self.config.clips_maps)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), non-negative: Eq. 2 before it is divided by its maximum."""
        return torch.relu(self.evidence(images))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C), clipped as in training; the classifier is linear without bias: pooling comes last."""
        return spatial_mean(self._compute_scores(images, self.config.clips))

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Classifier: L (Eq. 1). Expansion: -alpha L (Eq. 5). Shrinkage: gamma L + mu L_area (Eq. 6)."""
        config = self.config
        monitors: dict[str, Tensor] = {}
        scores = self._compute_scores(batch.image, config.clips, monitors)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        logits = spatial_mean(scores)
        cross_entropy = classification_loss(logits, batch.labels)
        if config.phase == "classifier":
            return {"cls": cross_entropy}
        area = area_loss(scores, batch.labels, config.area_map, config.area_classes)
        if config.phase == "expansion":
            parts = {"inverse": -config.alpha * cross_entropy}
        else:
            parts = {"cls": config.gamma * cross_entropy, "area": config.mu * area}
        return parts | {
            "monitor/bce": cross_entropy.detach(),
            "monitor/present_bce": present_loss(logits, batch.labels).detach(),
            "monitor/area": area.detach(),
            **monitors,
        }

    def param_groups(self) -> list[ParamGroup]:
        """Backbone, extra convolutions, classifier and offsets, as far as they learn in this phase."""
        samplers = [module.offset for module in (self.conv1, self.conv2) if isinstance(module, DeformConv2d)]
        regular = [_get_regular(module) for module in (self.conv1, self.conv2) if module is not None]
        groups = group_parameters(self.backbone, (1.0, 1.0, 1.0, 1.0), bias_decay=None)
        own: list[tuple[str, Sequence[nn.Module], float, float | None]] = [
            ("extra convolutions", regular, self.config.extra_lr_multiplier, None),
            ("classifier", [self.head], HEAD_RATE, None),
            ("offsets", samplers, self.config.offset_lr_multiplier, self.config.offset_weight_decay),
        ]
        for name, modules, rate, decay in own:
            params = [p for module in modules for p in module.parameters() if p.requires_grad]
            if params:
                groups.append(ParamGroup(name, params, rate, decay))
        return groups

    def _compute_scores(self, images: Tensor, clip: bool, monitors: dict[str, Tensor] | None = None) -> Tensor:
        """(B, C, h, w) scores; how far the sampler of this phase reaches goes into ``monitors``."""
        config = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.phase == "classifier"):
            features = self.backbone(images)["out"]
        features = self._apply_extra(self.conv1, features, monitors)
        if clip:
            features = clip_features(features, config.beta, config.clip_max, config.clip_detach)
        if self.conv2 is not None and not (config.phase == "expansion" and config.conv2 == "skip"):
            features = self._apply_extra(self.conv2, features, monitors)
        scores: Tensor = self.head(features)
        return scores

    def _apply_extra(self, conv: ExtraConv, features: Tensor, monitors: dict[str, Tensor] | None) -> Tensor:
        """One extra convolution and its activation; the last sampler passed, the phase's own, leaves its monitors."""
        if isinstance(conv, DeformConv2d):
            offset = conv.offset(features)
            if monitors is not None:
                length, outside = conv.measure_offsets(offset, (features.shape[2], features.shape[3]))
                monitors.update({"monitor/offset": length, "monitor/outside": outside})
            features = conv.sample(features, offset)
        else:
            features = conv(features)
        return torch.relu(features) if self.config.activation == "relu" else features


def _build_extra_conv(config: ESOLConfig, num_in: int, num_out: int) -> nn.Conv2d:
    """An extra convolution of the classifier, whose weights w_n a sampler takes over (Eq. 3)."""
    conv = nn.Conv2d(num_in, num_out, config.kernel, padding=config.kernel // 2, bias=config.bias)
    if config.init == "identity":
        nn.init.dirac_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return conv


def _get_regular(conv: ExtraConv) -> nn.Conv2d:
    """The convolution itself, without the offsets of a sampler."""
    return conv.regular if isinstance(conv, DeformConv2d) else conv


def _check_base(config: ESOLConfig, backbone: Backbone, num_classes: int, base: nn.Module | None) -> ESOL:
    """The base as the phase before, or a UserError that says what to give instead."""
    wanted = ["classifier"] if config.phase == "expansion" else ["expansion"]
    if config.phase == "shrinkage" and not config.expansion_sampler:
        wanted.append("classifier")
    choice = " or ".join(repr(phase) for phase in wanted)
    if not isinstance(base, ESOL) or base.config.phase not in wanted:
        given = f"esol in phase {base.config.phase!r}" if isinstance(base, ESOL) else type(base).__name__
        raise UserError(f"esol in phase {config.phase!r} starts from esol in phase {choice}, not {given}: set 'base'")
    for key in STRUCTURE + (CLIPPING if base.config.phase == "expansion" else ()):
        ours, theirs = getattr(config, key), getattr(base.config, key)
        if ours != theirs:
            raise UserError(f"method.{key} is {ours} but base.method.{key} is {theirs}: give every phase the same")
    if (
        config.phase == "shrinkage"
        and base.config.phase == "expansion"
        and config.expansion_sampler != base.config.expansion_sampler
    ):
        raise UserError("method.expansion_sampler must be what it was in the expansion: give both phases the same")
    if type(backbone) is not type(base.backbone) or backbone.channels != base.backbone.channels:
        raise UserError(
            f"net is {type(backbone).__name__}, base.net {type(base.backbone).__name__}: give both the same"
        )
    if base.head.out_channels != num_classes:
        raise UserError(
            f"the base knows {base.head.out_channels} classes, the data {num_classes}: train it on this data"
        )
    return base
