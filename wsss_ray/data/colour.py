# SPDX-License-Identifier: Apache-2.0
"""Colours: what a network's inputs are normalised with, and random jitter."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator
from torch import Tensor

from wsss_ray.config import Changes, Config

Preset = Literal["imagenet", "l2g_coco", "caffe_bgr", "efficientnet_lite"]
_PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, bool]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0, False),
    "l2g_coco": ((0.471, 0.448, 0.408), (0.234, 0.239, 0.242), 255.0, False),
    "caffe_bgr": ((104.008, 116.669, 122.675), (1.0, 1.0, 1.0), 1.0, True),
    "efficientnet_lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), 1.0, False),
}
"""Mean, standard deviation (in channel order of the network), divisor before them, and whether that order is BGR."""


WEIGHTS = Changes("weights")


class NormalizeConfig(Config):
    """What a network expects: ``imagenet`` (RGB in [0, 1]), ``l2g_coco`` (the same with L2G's COCO numbers),
    ``caffe_bgr`` (BGR in 0..255 minus the mean), ``efficientnet_lite`` (RGB, (image - 127) / 128); may be written as
    the name alone.
    """

    preset: Annotated[Preset, WEIGHTS] = "imagenet"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    def describe(self) -> dict[str, Any]:
        """What ``apply`` does, for other programs: ``(pixels[channels] / divisor - mean) / std``."""
        mean, std, divisor, reverse = _PRESETS[self.preset]
        channels = "BGR" if reverse else "RGB"
        return {"channels": channels, "divisor": divisor, "mean": list(mean), "std": list(std)}

    def apply(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB -> (3, H, W) float32."""
        table, order = _table(self.preset)
        return torch.from_numpy(np.stack([table[place][image[..., channel]] for place, channel in enumerate(order)]))


@lru_cache
def _table(preset: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """(3, 256) float32 normalised levels per network channel, and the RGB channel each one reads."""
    mean, std, divisor, reverse = _PRESETS[preset]
    levels = np.arange(256, dtype=np.float64) / divisor
    table = (levels[None, :] - np.array(mean)[:, None]) / np.array(std)[:, None]
    return table.astype(np.float32), (2, 1, 0) if reverse else (0, 1, 2)


class JitterConfig(Config):
    """Random brightness, contrast, saturation (factors from [1 - x, 1 + x]) and hue (shift in [-x, x] turns), in
    random order.
    """

    brightness: Annotated[float, WEIGHTS] = Field(default=0.3, ge=0)
    contrast: Annotated[float, WEIGHTS] = Field(default=0.3, ge=0)
    saturation: Annotated[float, WEIGHTS] = Field(default=0.3, ge=0)
    hue: Annotated[float, WEIGHTS] = Field(default=0.1, ge=0, le=0.5)
    probability: Annotated[float, WEIGHTS] = Field(default=1.0, ge=0, le=1)
    after_crop: Annotated[bool, WEIGHTS] = False
    """Jitter the cropped window, black padding included (L2G), instead of the image."""


Change = tuple[str, float]
"""A property and its drawn factor or shift."""


def draw_jitter(config: JitterConfig, rng: np.random.Generator) -> list[Change]:
    """The changes to make, in order; none when the draw says so."""
    amounts = {"brightness": config.brightness, "contrast": config.contrast, "saturation": config.saturation}
    changes = [(name, float(rng.uniform(max(0.0, 1 - amount), 1 + amount))) for name, amount in amounts.items()]
    changes.append(("hue", float(rng.uniform(-config.hue, config.hue))))
    order = rng.permutation(len(changes))
    if rng.random() >= config.probability:
        return []
    return [changes[place] for place in order.tolist()]


def change_colours(image: np.ndarray, changes: list[Change]) -> np.ndarray:
    """(H, W, 3) uint8 with the changes made one after the other, each rounded to uint8."""
    pil = Image.fromarray(np.ascontiguousarray(image))
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for name, amount in changes:
        if name == "hue":
            hue, saturation, value = pil.convert("HSV").split()
            turned = (np.array(hue, np.int16) + int(amount * 255)) % 256
            pil = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
        else:
            pil = enhancers[name](pil).enhance(amount)
    return np.array(pil)
