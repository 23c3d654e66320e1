# SPDX-License-Identifier: Apache-2.0
"""Joint augmentation: image, saliency, pseudo mask and class maps go through one draw of resize, mirror and crop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from wsss_ray.config import Config
from wsss_ray.data.colour import WEIGHTS, JitterConfig, NormalizeConfig, change_colours, draw_jitter
from wsss_ray.data.geometry import (
    Geometry,
    draw_area,
    draw_offset,
    draw_swapped_offset,
    maps_through,
    resized,
    scale_by,
    side_to,
    through,
    window,
)

__all__ = ["AugmentConfig", "JitterConfig", "NormalizeConfig", "augment", "draw_geometry", "render"]
IGNORE = 255
Resize = Literal["none", "long_side", "short_side", "scale", "choice", "area", "squash"]


class AugmentConfig(Config):
    """How a training sample is cut from an image; the default is that of the PSA family (EPS, SEAM, SMAF)."""

    resize: Annotated[Resize, WEIGHTS] = "long_side"
    """``long_side``, ``short_side``: to a whole number drawn from ``range``; ``scale``: by a factor from ``range``;
    ``choice``: by one of ``choices`` (DeepLab; sizes cut to whole numbers); ``area``: a random-resized crop;
    ``squash``: to the crop's square."""
    range: Annotated[tuple[PositiveFloat, PositiveFloat], WEIGHTS] = (256, 512)
    choices: Annotated[tuple[PositiveFloat, ...], WEIGHTS] = ()
    area: Annotated[tuple[PositiveFloat, PositiveFloat], WEIGHTS] = (0.9, 1.0)
    """Part of the image's area kept by ``area``."""
    aspect: Annotated[tuple[PositiveFloat, PositiveFloat], WEIGHTS] = (3 / 4, 4 / 3)
    interpolation: Annotated[Literal["bicubic", "bilinear", "linear"], WEIGHTS] = "bicubic"
    crop: Annotated[PositiveInt, WEIGHTS] = 448
    flip: Annotated[float, WEIGHTS] = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring."""
    flip_last: Annotated[bool, WEIGHTS] = False
    """Mirror after padding and cropping (deeplab-pytorch), so that padding may come to lie on the left."""
    pad: Annotated[Literal["random", "right_bottom"], WEIGHTS] = "random"
    """Where an image smaller than the crop lies on the canvas: anywhere, or upper left (DeepLab)."""
    crop_before_normalize: Annotated[bool, WEIGHTS] = False
    """Canvas is black before normalising (L2G, PSA's AffinityNet) instead of 0 after it, the mean colour."""
    swap_axes: Annotated[bool, WEIGHTS] = False
    """L2G's released crop, which confuses rows and columns and leaves images that are not square."""
    jitter: Annotated[JitterConfig | None, WEIGHTS] = None
    saliency_interpolation: Annotated[Literal["image", "bilinear", "nearest"], WEIGHTS] = "image"
    """As the image (EPS, SMAF, L2G on COCO) or nearest (L2G on VOC)."""
    saliency_max: Annotated[bool, WEIGHTS] = False
    """Divide the saliency of the window by its maximum (L2G)."""
    maps_align_corners: Annotated[bool, WEIGHTS] = True
    """Resizing of class maps, as SMAF's loader."""

    @model_validator(mode="after")
    def _fits(self) -> AugmentConfig:
        if self.range[0] > self.range[1] or self.area[0] > self.area[1] or self.aspect[0] > self.aspect[1]:
            raise ValueError("range, area and aspect go from low to high; swap the two numbers")
        if self.resize == "choice" and not self.choices:
            raise ValueError("resize 'choice' needs choices, for example [0.5, 0.75, 1.0, 1.25, 1.5]")
        if self.resize == "scale" and self.range[1] > 16:
            raise ValueError(f"resize 'scale' takes factors in range, for example [0.5, 1.5], not pixels {self.range}")
        if self.resize in ("long_side", "short_side") and any(side != int(side) for side in self.range):
            raise ValueError(
                f"resize {self.resize!r} takes whole pixels in range, for example [256, 512], not {self.range}"
            )
        if self.resize == "area" and self.area[1] > 1:
            raise ValueError(f"area {self.area}: parts of the image go up to 1")
        if self.swap_axes and self.pad != "random":
            raise ValueError("swap_axes and pad 'right_bottom' are of different papers; choose one")
        return self


def draw_geometry(config: AugmentConfig, height: int, width: int, rng: np.random.Generator) -> Geometry:
    """Every random number of the geometry of one sample."""
    low, high = config.range
    box = None
    if config.resize == "none":
        size = (height, width)
    elif config.resize in ("long_side", "short_side"):
        target = int(rng.integers(int(low), int(high) + 1))
        size = side_to(height, width, target, "long" if config.resize == "long_side" else "short")
    elif config.resize == "scale":
        size = scale_by(height, width, float(rng.uniform(low, high)))
    elif config.resize == "choice":
        size = scale_by(height, width, config.choices[int(rng.integers(len(config.choices)))], "floor")
    else:
        size = (config.crop, config.crop)
        if config.resize == "area":
            box = draw_area(height, width, config.area, config.aspect, rng)
    flip = bool(rng.random() < config.flip)
    if config.swap_axes:
        offset = draw_swapped_offset(size, config.crop, rng)
    else:
        offset = draw_offset(size, config.crop, rng, config.pad)
    return Geometry(size, config.crop, offset, flip, box, config.flip_last)


def augment(
    decoded: dict[str, Any],
    config: AugmentConfig,
    rng: np.random.Generator,
    normalize: NormalizeConfig,
    rgb: bool = True,
) -> dict[str, torch.Tensor]:
    """One random training sample of a decoded image.

    ``decoded`` holds ``image`` (H, W, 3) uint8 and optionally ``saliency`` (H, W[, 3]) uint8, ``mask`` (H, W) uint8
    and ``maps`` (N, H, W) float32, all of one size. Returns ``image`` (3, S, S) normalised, ``inside`` (1, S, S) in
    {0, 1}, with ``rgb`` also ``rgb`` (3, S, S) in [0, 1], and of what was given ``saliency`` (1, S, S) in [0, 1],
    ``mask`` (S, S) int64, ``maps`` (N, S, S).
    """
    height, width = decoded["image"].shape[:2]
    geometry = draw_geometry(config, height, width, rng)
    changes = draw_jitter(config.jitter, rng) if config.jitter is not None else []
    return render(decoded, geometry, changes, config, normalize, rgb)


def render(
    decoded: dict[str, Any],
    geometry: Geometry,
    changes: list[tuple[str, float]],
    config: AugmentConfig,
    normalize: NormalizeConfig,
    rgb: bool = True,
) -> dict[str, torch.Tensor]:
    """The sample of ``augment`` for given draws."""
    after_crop = config.jitter is not None and config.jitter.after_crop
    image = resized(decoded["image"], geometry, config.interpolation)
    if changes and not after_crop:
        image = change_colours(image, changes)
    view = window(image, geometry)
    if changes and after_crop:
        view = change_colours(view, changes)
    inside = torch.from_numpy(window(np.ones(geometry.size, np.float32), geometry).copy())[None]
    tensor = normalize.apply(view)
    sample = {
        "image": tensor if config.crop_before_normalize else tensor * inside,
        "inside": inside,
    }
    if rgb:
        plain = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))).float()
        sample["rgb"] = plain.div_(255).mul_(inside)
    if decoded.get("saliency") is not None:
        sample["saliency"] = _saliency(decoded["saliency"], geometry, config)
    if decoded.get("mask") is not None:
        mask = through(decoded["mask"], geometry, "nearest", fill=IGNORE)
        sample["mask"] = torch.from_numpy(mask.astype(np.int64))
    if decoded.get("maps") is not None:
        sample["maps"] = torch.from_numpy(maps_through(decoded["maps"], geometry, config.maps_align_corners))
    return sample


def _saliency(array: np.ndarray, geometry: Geometry, config: AugmentConfig) -> torch.Tensor:
    """(1, S, S) in [0, 1]; a colour file is averaged over its channels last, as EPS does."""
    how = config.interpolation if config.saliency_interpolation == "image" else config.saliency_interpolation
    view = through(array, geometry, how).astype(np.float32) / np.float32(255)
    if view.ndim == 3:
        view = view.mean(axis=2, dtype=np.float32)
    if config.saliency_max:
        view = view / (view.max() + np.float32(1e-10))
    return torch.from_numpy(np.ascontiguousarray(view))[None]
