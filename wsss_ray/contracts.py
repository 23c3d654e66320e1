# SPDX-License-Identifier: Apache-2.0
"""What a localizer, a segmenter and a trainable refiner promise, and the batch they are given.

Label spaces: image labels and class maps are foreground only, ``C`` classes, 0-based. Masks have background 0, class
``c`` at ``c + 1`` and 255 for "unknown"; ``K = C + 1``. Nothing here knows a data set, Ray or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from wsss_ray.config import Config

IGNORE = 255
Need = Literal["rgb", "saliency", "maps", "mask", "partner"]
"""What a trainable wants in its batch besides image and labels (see ``Batch``)."""


@dataclass
class Batch:
    """One training batch; every spatial tensor went through the same resize, flip and crop as ``image``."""

    image: Tensor
    """(B, 3, S, S) float, normalised for the network; canvas outside the image is 0 (the mean colour)."""
    labels: Tensor
    """(B, C) float in {0, 1}."""
    inside: Tensor
    """(B, 1, S, S) float in {0, 1}: 1 where the image is, 0 on the padded canvas."""
    rgb: Tensor | None = None
    """(B, 3, S, S) float in [0, 1]: the un-normalised image (guide of PAMR, PAR and CRF), 0 on the canvas."""
    saliency: Tensor | None = None
    """(B, 1, S, S) float in [0, 1], soft; 0 on the canvas."""
    maps: Tensor | None = None
    """(B, C, S, S) float in [0, 1]: the base localizer's fused class maps, absent classes and canvas 0."""
    mask: Tensor | None = None
    """(B, S, S) int64: pseudo mask, 255 unknown and on the canvas."""
    partner: Batch | None = None
    """For every image another one that shares a class with it, augmented on its own."""

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> Batch:
        """The batch on another device, images in ``memory_format`` if one is given; pinned memory without waiting."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batch):
                moved[field.name] = value.to(device, memory_format)
            elif isinstance(value, Tensor):
                form = memory_format if memory_format is not None and value.dim() == 4 else torch.preserve_format
                moved[field.name] = value.to(device, memory_format=form, non_blocking=True)
        return replace(self, **moved)

    def pin(self) -> Batch:
        """The batch in memory that a GPU reads by itself."""
        pinned: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batch):
                pinned[field.name] = value.pin()
            elif isinstance(value, Tensor):
                pinned[field.name] = value.pin_memory()
        return replace(self, **pinned)


@dataclass(frozen=True)
class Progress:
    """Where training stands, for losses that change with it."""

    epoch: int
    """0-based."""
    step: int
    """0-based optimiser step over the whole run."""
    num_epochs: int
    num_steps: int


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning-rate multiplier; ``weight_decay`` None means the recipe's."""

    name: str
    params: list[torch.nn.Parameter]
    lr_multiplier: float = 1.0
    weight_decay: float | None = None


@runtime_checkable
class Trainable(Protocol):
    """Anything the train stage can train: an ``nn.Module`` with these verbs. Localizers, segmenters, IRNet,
    AffinityNet.
    """

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Named scalar parts; the trainer sums them. Parts named ``monitor/...`` are logged, not summed.

        Their means over an epoch are in the history, in MLflow (``train/monitor/...``) and on the run's page, and in a
        study's column where ``score.names.MONITORS`` lists one.
        """

    def param_groups(self) -> list[ParamGroup]:
        """Every trainable parameter in exactly one group; frozen ones in none."""


@runtime_checkable
class Localizer(Trainable, Protocol):
    """A network that learns from image labels and yields class maps."""

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, C, h, w) class evidence, un-normalised. Signed only where its fusion rule
        rectifies later.
        """

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C or C + 1, h, w) raw differentiable scores, background last where there is one.

        What self-training (SMAF) and any method built on another one starts from.
        """

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) image-level logits (for average precision and class gates)."""


@runtime_checkable
class Segments(Protocol):
    """A network that predicts masks: a segmenter, or a single-stage localizer."""

    def scores(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, K, h, w) probabilities, background first."""


@runtime_checkable
class GatedSegments(Segments, Protocol):
    """One that gives its image logits by the same forward pass: gated prediction then runs it once, not twice."""

    def predict_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised -> ``scores``, and (B, C) image-level logits."""


class FusionRule(Config):
    """How the maps of several scales and flips of an image become one map per class (paper sections in each
    method).
    """

    rectify: Literal["none", "before", "pair", "per_pass", "after"] = "before"
    """Where ReLU stands: before up-sampling; after adding a map and its flip; after up-sampling each pass; after
    fusing."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Up-sampling of each pass to the common grid, align_corners False."""
    reduce: Literal["sum", "mean"] = "sum"
    normalize: Literal["max", "minmax", "none"] = "max"
    """Per class over the whole image."""
    epsilon: float = 1e-5
    multiple: Annotated[int, Field(ge=1)] = 1
    """Maps stored at the image's own size are up-sampled to a multiple of this, then cropped (IRN: 16)."""


@dataclass(frozen=True)
class ClassMaps:
    """Fused, normalised maps of the classes present in one image."""

    image_id: str
    classes: np.ndarray
    """(P,) int32, 0-based foreground classes present, ascending."""
    maps: np.ndarray
    """(P, h, w) float32 in [0, 1] on the stored grid (image size divided by the localize stage's stride)."""
    size: tuple[int, int]
    """(H, W) of the image."""

    def full(self) -> np.ndarray:
        """(P, H, W) float32: the maps at image size (bilinear, align_corners False)."""
        if self.maps.shape[0] == 0 or self.maps.shape[1:] == self.size:
            return (
                self.maps.reshape(len(self.classes), *self.maps.shape[1:])
                if len(self.classes)
                else np.zeros((0, *self.size), np.float32)
            )
        grid = torch.from_numpy(np.ascontiguousarray(self.maps))[None]
        return F.interpolate(grid, size=self.size, mode="bilinear", align_corners=False)[0].numpy()
