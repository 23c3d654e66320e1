# SPDX-License-Identifier: Apache-2.0
"""Class maps of whole images: scales and flips of same-sized images share one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt

from wsss_ray.config import Changes, Config
from wsss_ray.contracts import ClassMaps, FusionRule, Localizer
from wsss_ray.engine.fusion import compute_grid_size, compute_unit_scale, fuse_present, round_to_cells
from wsss_ray.engine.passes import Device, forward_scale, group_by_size
from wsss_ray.engine.precision import Precision, use_bf16

Scales = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class LocalizeConfig(Config):
    """Class maps of every image of the training split, over scales and flips."""

    scales: Annotated[Scales, Changes("maps")] = (0.5, 1.0, 1.5, 2.0)
    long_side: Annotated[PositiveInt | None, Changes("maps")] = None
    """Longer side in pixels that scale 1 stands for; None: the image's own, as in every paper. The network of a
    schedule on small images needs it for large photographs."""
    flip: Annotated[bool, Changes("maps")] = True
    stride: Annotated[PositiveInt, Changes("maps")] = 4
    """Maps are fused and stored on the image's grid divided by this (1 is what EPS and L2G do, 4 is IRN's)."""
    fusion: Annotated[FusionRule | None, Changes("maps")] = None
    """None takes the rule of the method's paper."""
    precision: Annotated[Precision, Changes("maps")] = "fp32"


@dataclass(frozen=True)
class LabelledImage:
    """An image and the classes that its image-level labels name."""

    image_id: str
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""
    classes: tuple[int, ...]
    """0-based foreground classes."""


def read_class_maps(
    network: Localizer, images: Sequence[LabelledImage], config: LocalizeConfig, fusion: FusionRule, on: Device
) -> list[ClassMaps]:
    """Fused, normalised maps of the classes present in each image, on its grid of ``config.stride``, in order."""
    results: dict[int, ClassMaps] = {}
    for indices in group_by_size([image.pixels.shape[:2] for image in images], on.batch_size):
        maps = _read_same_size(network, [images[index] for index in indices], config, fusion, on)
        results.update(zip(indices, maps, strict=True))
    return [results[index] for index in range(len(images))]


def _read_same_size(
    network: Localizer, images: Sequence[LabelledImage], config: LocalizeConfig, fusion: FusionRule, on: Device
) -> list[ClassMaps]:
    pixels = [image.pixels for image in images]
    height, width = pixels[0].shape[:2]
    unit = compute_unit_scale((height, width), config.long_side)
    bf16 = use_bf16(config.precision, on.device)
    outputs = [forward_scale(network.maps, pixels, unit * scale, config.flip, on, bf16) for scale in config.scales]
    labels = torch.zeros(len(images), outputs[0].plain.shape[1])
    for place, image in enumerate(images):
        labels[place, list(image.classes)] = 1
    grid = compute_grid_size((height, width), config.stride)
    canvas = round_to_cells(grid, fusion.multiple) if config.stride == 1 else grid
    fused = fuse_present(outputs, fusion, canvas, labels, crop=grid).cpu().numpy()
    maps, start = [], 0
    for image in images:
        classes = np.asarray(sorted(image.classes), dtype=np.int32)
        maps.append(ClassMaps(image.image_id, classes, fused[start : start + len(classes)], (height, width)))
        start += len(classes)
    return maps
