# SPDX-License-Identifier: Apache-2.0
"""KTSE: knowledge transfer with simulated inter-image erasing (Chen et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE, Batch, ParamGroup, Progress
from wsss_ray.methods.ktse import labels as pseudo
from wsss_ray.methods.ktse import losses as terms
from wsss_ray.methods.ktse.pooling import GPPHead, PlaneHead
from wsss_ray.methods.layers import classification_loss, resize_bilinear
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters

if TYPE_CHECKING:
    from wsss_ray.methods.ktse.config import KTSEConfig

HEIGHT, WIDTH = -2, -1
HEADS: dict[str, type[PlaneHead]] = {"gpp": GPPHead, "mean": PlaneHead}
"""``KTSEConfig.pooling`` -> the head."""


@dataclass(frozen=True)
class Anchor:
    """What the network makes of a batch's own images, which several losses start from."""

    planes: Tensor
    """(B, C + 1, h, w) signed, background first."""
    logits: Tensor
    """(B, C)."""
    pooled: Tensor
    """(B, C, h, w) pooled maps."""
    low: Tensor
    """(B, 1, h, w) strongest activation, on the feature grid."""
    high: Tensor
    """(B, 1, H, W) the same at image size."""

    @property
    def features(self) -> Tensor:
        """(B, C, h, w) foreground planes."""
        return self.planes[:, 1:]


class KTSE(nn.Module):
    """A backbone with C + 1 planes, background first, scored by gated pyramid pooling (Sec. 3.1, Fig. 2)."""

    def __init__(self, config: KTSEConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = HEADS[config.pooling](backbone.channels["out"], num_classes, config.hidden)

    def planes(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) float32, signed, background first."""
        return self.head.planes(self.backbone(images)["out"]).float()

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) foreground planes -> (B, C) logits and (B, C, h, w) pooled maps."""
        return self.head.pool(features)

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w), background last."""
        return self.planes(images).roll(-1, dims=1)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), signed: ``KTSEConfig.fusion`` rectifies after up-sampling."""
        return self.planes(images)[:, 1:]

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) of the pooling head."""
        return self.pool(self.planes(images)[:, 1:])[0]

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head at one rate (times ``new_layer_multiplier``), biases like weights."""
        new = self.config.new_layer_multiplier
        return group_parameters(self, (1.0, 1.0, new, new), bias_decay=None)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq. 10, each part with its weight; L_cls (Eq. 2) alone in the warm-up, the others ramped in after it.

        Every branch has gradient.
        """
        config, num = self.config, len(batch.image)
        partner = self._choose_partner(batch)
        if progress.epoch < config.warmup_epochs:
            return self._warmup_parts(batch)

        alone = partner if config.needs_partner_planes else None
        planes = self.planes(batch.image if alone is None else torch.cat([batch.image, alone.image]))
        anchor = self._read_anchor(planes[:num], batch)

        parts = {"cls": classification_loss(anchor.logits, batch.labels)}
        if config.erases:
            parts |= self._erased_parts(batch, anchor)
        target = self._make_labels(anchor.planes, batch) if config.ssr else None
        if target is not None:
            parts |= self._label_parts(anchor, target, batch.labels)
            parts["monitor/labelled"] = (target != IGNORE).float().mean()
        if partner is not None:
            other = None if alone is None else planes[num:]
            parts |= self._joined_parts(batch, partner, anchor.planes, other, target)
        factor = config.ramp_at(progress.epoch)
        kept = {name for name in parts if name == "cls" or name.startswith("monitor/")}
        return {name: part if name in kept else factor * part for name, part in parts.items()}

    def _read_anchor(self, planes: Tensor, batch: Batch) -> Anchor:
        """Logits, pooled maps and activations (Eq. 1) of the images themselves."""
        features, rule = planes[:, 1:], self.config.activation
        logits, pooled = self.pool(features)
        low = terms.strongest_activation(features, batch.labels, rule=rule)
        high = terms.strongest_activation(features, batch.labels, batch.image.shape[-2:], rule)
        return Anchor(planes, logits, pooled, low, high)

    def _warmup_parts(self, batch: Batch) -> dict[str, Tensor]:
        taps = self.backbone(batch.image)["out"]
        planes = self.head.planes(taps).float()
        parts = {"cls": classification_loss(self.pool(planes[:, 1:])[0], batch.labels)}
        if self.config.ssr and self.config.warmup_background:
            both = torch.cat([self.head.background(taps).float(), planes[:, 1:].detach()], dim=1)
            target = self._make_labels(both, batch, num_iterations=0)
            # Signed in both profiles: rectified, a negative plane has no gradient to come up by.
            counted, mean = self._choose_labelled(batch.labels), self.config.ce_mean
            background, foreground = terms.label_losses(both, target, counted, rectify=False, mean=mean)
            parts |= {"bg": background, "fg": self.config.foreground_weight * foreground}
        return parts

    def _choose_labelled(self, labels: Tensor) -> Tensor | None:
        """The images whose foreground labels count: (B,) bool, None for all (simple and complex images, Sec. 3.3)."""
        return labels.sum(dim=1) == 1 if self.config.foreground_images == "simple" else None

    def _choose_partner(self, batch: Batch) -> Batch | None:
        """The images that the first ones of the batch are joined with (Sec. 3.2); None without SIE."""
        if not self.config.sie:
            return None
        limit = self.config.num_pairs
        num = len(batch.image) if limit == "all" else min(limit, len(batch.image))
        if self.config.partner_rule == "random":
            index = torch.arange(num, device=batch.image.device).add(1) % len(batch.image)
            return _select_images(batch, index)
        if batch.partner is None:
            raise UserError("KTSE joins images with a partner: give the batch its partner, or set method.sie=false")
        return _select_images(batch.partner, torch.arange(num, device=batch.image.device))

    def _erased_parts(self, batch: Batch, anchor: Anchor) -> dict[str, Tensor]:
        """Multi-granularity alignment with the erased image (Sec. 3.4), and its rivals of Table 7."""
        config = self.config
        erased = terms.erase_images(batch.image, anchor.high, config.erase_threshold, config.erase_mode)
        masked, features = self.planes(erased)[:, 1:], anchor.features
        parts = {"monitor/erased": (anchor.high >= config.erase_threshold).float().mean()}
        if config.la:
            outside = (anchor.low < config.erase_threshold).to(masked) if config.local_region == "outside" else None
            parts["local"] = terms.local_alignment_loss(masked, features, batch.labels, outside, config.local_margin)
        if config.ga:
            parts["global"] = terms.global_alignment_loss(features, masked, batch.labels)
        if config.rigid_classification or config.soft_gpp_alignment:
            logits, masked_pooled = self.pool(masked)
            if config.rigid_classification:
                parts["rigid"] = classification_loss(logits, batch.labels)
            if config.soft_gpp_alignment:
                parts["soft_gpp"] = terms.global_alignment_loss(anchor.pooled, masked_pooled, batch.labels)
        return parts

    def _make_labels(self, planes: Tensor, batch: Batch, num_iterations: int | None = None) -> Tensor:
        """The refined pseudo label of Sec. 3.3: (B, C + 1, h, w) planes -> (B, H, W) int64."""
        config = self.config
        if batch.rgb is None:
            raise UserError("KTSE refines labels on the image's pixels: give the batch rgb, or set method.ssr=false")
        features = planes[:, 1:].detach()
        iterations = config.par_iterations if num_iterations is None else num_iterations
        with torch.autocast(planes.device.type, enabled=False):
            image = pseudo.make_guide(batch.rgb, batch.inside, config.truncated_guide)
            if config.label_order == "threshold_then_refine":
                return pseudo.threshold_then_refine(features, batch.labels, image, config.label_levels, iterations)
            return pseudo.refine_then_threshold(
                features, batch.labels, image, config.label_levels, iterations, config.guard_maximum
            )[0]

    def _label_parts(self, anchor: Anchor, target: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Self-supervised regularisation of the anchor: w_fg L_ce (Eq. 5) and lambda L_inter (Eq. 6-7)."""
        config = self.config
        counted = self._choose_labelled(labels)
        background, foreground = terms.label_losses(
            anchor.planes, target, counted, config.rectify_scores, config.ce_mean
        )
        if config.inter_source == "scores":
            scores, active = resize_bilinear(anchor.features.relu(), anchor.high.shape[-2:]), anchor.high
        else:
            scores, active = anchor.features, anchor.low
        inter = terms.inter_class_loss(scores, active, labels, config.inter_threshold, config.inter_detach_top)
        return {
            "bg": background,
            "fg": config.foreground_weight * foreground,
            "inter": config.inter_weight * inter,
        }

    def _joined_parts(
        self, batch: Batch, partner: Batch, anchor: Tensor, other: Tensor | None, target: Tensor | None
    ) -> dict[str, Tensor]:
        """Simulated inter-image erasing: L_kt (Eq. 3), and L_ce of the joined image (Eq. 5)."""
        config, num = self.config, len(partner.image)
        axis = HEIGHT if config.concat_axis == "height" else WIDTH
        joined = self.planes(torch.cat([batch.image[:num], partner.image], dim=axis))
        size = list(anchor.shape[-2:])
        size[axis] *= 2
        # A crop that is no multiple of the stride leaves the joined map one cell short.
        joined = resize_bilinear(joined, (size[0], size[1]))

        single, learner = anchor[:num, 1:], joined[:, 1:]
        if config.kt_region == "both" and other is not None:
            single = torch.cat([single, other[:, 1:]], dim=axis)
        else:
            learner = learner.narrow(axis, 0, single.shape[axis])
        if config.kt_detach == "single":
            single = single.detach()
        elif config.kt_detach == "joined":
            learner = learner.detach()
        labels = batch.labels[:num]
        labels = torch.maximum(labels, partner.labels) if config.kt_labels == "union" else labels
        parts = {"kt": terms.knowledge_transfer_loss(single, learner, labels, config.kt_margin)}
        if target is None:
            return parts

        wanted = target[:num]
        if config.concat_supervision == "both" and other is not None:
            wanted = torch.cat([wanted, self._make_labels(other, partner)], dim=axis)
        else:
            joined = joined.narrow(axis, 0, anchor.shape[axis])
        background, foreground = terms.label_losses(joined, wanted, None, config.rectify_scores, config.ce_mean)
        return parts | {"joined_bg": background, "joined_fg": config.foreground_weight * foreground}


def _select_images(batch: Batch, index: Tensor) -> Batch:
    """The images of a batch at ``index``, with what KTSE reads of them."""
    rgb = None if batch.rgb is None else batch.rgb[index]
    return Batch(batch.image[index], batch.labels[index], batch.inside[index], rgb)
