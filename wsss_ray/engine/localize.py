"""Class maps of whole images: scales and flips of same-sized images share one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from wsss_ray.config import Config
from wsss_ray.contracts import ClassMaps, FusionRule
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import fuse_present, strided_size, unit_scale, whole_cells
from wsss_ray.engine.passes import passes, same_size

Scales = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class LocalizeConfig(Config):
    """Class maps of every image of the training split, over scales and flips."""

    scales: Scales = (0.5, 1.0, 1.5, 2.0)
    long_side: PositiveInt | None = None
    """Longer side in pixels that scale 1 stands for; None: the image's own, as in every paper. The network of a
    schedule on small images needs it for large photographs."""
    flip: bool = True
    stride: PositiveInt = 4
    """Maps are fused and stored on the image's grid divided by this (1 is what EPS and L2G do, 4 is IRN's)."""
    fusion: FusionRule | None = None
    """None takes the rule of the method's paper."""
    precision: Literal["fp32", "bf16"] = "fp32"


def class_maps(
    network: nn.Module,
    ids: Sequence[str],
    images: Sequence[np.ndarray],
    present: Sequence[Sequence[int]],
    config: LocalizeConfig,
    normalize: NormalizeConfig,
    device: torch.device,
    batch_size: int,
) -> list[ClassMaps]:
    """Fused, normalised maps of the classes present in each image, on its grid of ``config.stride``."""
    results: dict[int, ClassMaps] = {}
    rule = config.fusion
    assert isinstance(rule, FusionRule)
    for indices in same_size(images, batch_size):
        chosen = [images[index] for index in indices]
        height, width = chosen[0].shape[:2]
        unit = unit_scale((height, width), config.long_side)
        scales = [unit * scale for scale in config.scales]
        outputs = list(passes(network.maps, chosen, scales, config.flip, normalize, device, config.precision))  # type: ignore[arg-type]
        labels = torch.zeros(len(indices), outputs[0].plain.shape[1])
        for place, index in enumerate(indices):
            labels[place, list(present[index])] = 1
        grid = strided_size((height, width), config.stride)
        canvas = whole_cells(grid, rule.multiple) if config.stride == 1 else grid
        fused = fuse_present(outputs, rule, canvas, labels, crop=grid).numpy()
        start = 0
        for index in indices:
            classes = np.asarray(sorted(present[index]), dtype=np.int32)
            results[index] = ClassMaps(ids[index], classes, fused[start : start + len(classes)], (height, width))
            start += len(classes)
    return [results[index] for index in range(len(images))]
