# SPDX-License-Identifier: Apache-2.0
"""A generated set of images on which plain class activation maps fail in the way the field cares about.

Every class is a creature with a small head whose pattern and colours are its own, and a larger body whose colour says
little about the class. A classifier needs only the head, so its maps find heads and miss bodies. Sizes vary widely, one
to three classes share an image, creatures hide each other and stand in clutter, and some landscapes go with a class.
Image i of a split depends on (seed, split, i) and the configuration alone, never on how many others are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from wsss_ray.config import Changes, Config, UserError
from wsss_ray.data import image as pic
from wsss_ray.data import toy_drawing as draw
from wsss_ray.data.options import read_options
from wsss_ray.data.source import MAX_CLASSES, Item, Row, Source, blank_row

_SPLITS = ("train", "val")
_FIRST = ("Bi", "Ta", "Lu", "Mo", "Ze", "Pi", "Ra", "Ko", "Nu", "Fe", "Do", "Wi", "Ga", "So", "Ju", "Ve")
_SECOND = ("bo", "mi", "ro", "lla", "ka", "nu", "pe", "zu", "to", "fi", "gga", "so", "wo", "dy", "xi", "va")


WEIGHTS = Changes("weights")


class ToyConfig(Config):
    """How many images of which kind; the difficulty knobs lie in [0, 1]."""

    num_classes: Annotated[int, WEIGHTS] = Field(default=5, ge=1, le=MAX_CLASSES)
    num_train: Annotated[PositiveInt, WEIGHTS] = 400
    num_val: Annotated[NonNegativeInt, WEIGHTS] = 100
    size: Annotated[int, WEIGHTS] = Field(default=128, ge=32, le=1024)
    """Side of the square images in pixels."""
    seed: Annotated[NonNegativeInt, WEIGHTS] = 0
    max_creatures: Annotated[int, WEIGHTS] = Field(default=3, ge=1, le=3)
    """Creatures, each of another class, in one image."""
    min_radius: Annotated[float, WEIGHTS] = Field(default=0.12, gt=0.03, le=0.4)
    """Body radius of the smallest creature as a part of the side; radii are log-uniform between the two bounds."""
    max_radius: Annotated[float, WEIGHTS] = Field(default=0.30, gt=0.03, le=0.4)
    head_size: Annotated[float, WEIGHTS] = Field(default=0.45, gt=0.1, le=0.8)
    """Head radius as a part of the body radius."""
    head_contrast: Annotated[float, WEIGHTS] = Field(default=0.9, ge=0, le=1)
    """How far the two colours of a head pattern lie apart."""
    body_hue_noise: Annotated[float, WEIGHTS] = Field(default=0.75, ge=0, le=1)
    """0: the body's hue names its class; 1: it is random."""
    body_texture: Annotated[float, WEIGHTS] = Field(default=0.35, ge=0, le=1)
    """Strength of the faint class texture on bodies."""
    clutter: Annotated[float, WEIGHTS] = Field(default=0.5, ge=0, le=1)
    """Plants, stones and balls that belong to no class."""
    occlusion: Annotated[float, WEIGHTS] = Field(default=0.5, ge=0, le=1)
    """How far creatures may overlap."""
    cooccurrence: Annotated[float, WEIGHTS] = Field(default=0.5, ge=0, le=1)
    """Probability that the landscape is the one that goes with the image's first class."""
    saliency_quality: Annotated[float, WEIGHTS] = Field(default=0.7, ge=0, le=1)
    """1: the saliency map is the exact foreground; lower: blurred, with misses and false finds."""

    @model_validator(mode="after")
    def _radii(self) -> ToyConfig:
        if self.min_radius > self.max_radius:
            raise ValueError(f"min_radius {self.min_radius} is above max_radius {self.max_radius}; swap them")
        return self

    def num_images(self, split: str) -> int:
        """Images of ``train`` or ``val``."""
        return self.num_train if split == "train" else self.num_val


@dataclass(frozen=True)
class Plan:
    """What is in an image, before it is drawn."""

    landscape: int
    creatures: tuple[draw.Creature, ...]
    """Back to front."""


def class_names(num_classes: int) -> list[str]:
    """Invented names, all different; class c is called the same whatever the number of classes."""
    return [_FIRST[c % 16] + _SECOND[(7 * c + c // 16) % 16] for c in range(num_classes)]


def plan_image(config: ToyConfig, split: str, index: int) -> Plan:
    """Classes, places, sizes and landscape of an image; cheap, so that labels are known without drawing.

    Every class occurs once in ``num_classes`` consecutive images at least. Places keep enough distance, and smaller
    creatures stand in front of larger ones, so that no creature is hidden entirely.
    """
    rng = np.random.default_rng([config.seed, _SPLITS.index(split), index, 1])
    count = min(int(rng.choice(3, p=(0.45, 0.35, 0.2))) + 1, config.max_creatures, config.num_classes)
    first = index % config.num_classes
    others = rng.permutation(config.num_classes - 1)[: count - 1]
    classes = [first, *((first + 1 + int(other)) % config.num_classes for other in others)]
    landscape = first if rng.random() < config.cooccurrence else int(rng.integers(draw.NUM_LANDSCAPES))
    low, high = np.log(config.min_radius), np.log(config.max_radius * (1.0, 0.88, 0.72)[count - 1])
    radii = np.exp(rng.uniform(min(low, high), high, size=count))
    order = np.argsort(-radii, kind="stable")
    places: list[tuple[float, float, float]] = []
    for radius in radii[order]:
        places.append(_place(float(radius), places, 1.25 - 0.6 * config.occlusion, rng))
    creatures = tuple(
        draw.Creature(classes[slot], x, y, radius, bool(rng.random() < 0.5), int(rng.integers(2**31)))
        for slot, (x, y, radius) in zip(order.tolist(), places, strict=True)
    )
    return Plan(landscape % draw.NUM_LANDSCAPES, creatures)


def _place(
    radius: float, taken: list[tuple[float, float, float]], spread: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    for attempt in range(60):
        if attempt % 12 == 11:
            radius *= 0.85
        x = rng.uniform(min(0.5, 0.9 * radius), max(0.5, 1 - 0.9 * radius))
        y = rng.uniform(0.34 + 0.4 * radius, max(0.36 + 0.4 * radius, 1 - 1.25 * radius))
        if all(np.hypot(x - a, y - b) > spread * (radius + r) for a, b, r in taken):
            break
    return x, y, radius


def draw_image(config: ToyConfig, split: str, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """RGB (S, S, 3), mask (S, S) with class + 1, parts (S, S) with 1 head and 2 body, saliency (S, S); all uint8."""
    plan = plan_image(config, split, index)
    rng = np.random.default_rng([config.seed, _SPLITS.index(split), index, 2])
    canvas = draw.Canvas(2 * config.size)
    draw.paint_landscape(canvas, plan.landscape, rng)
    num_things = int(rng.binomial(8, config.clutter))
    things = [draw.random_thing(rng) for _ in range(num_things)]
    style = draw.Style(config.head_size, config.head_contrast, config.body_hue_noise, config.body_texture)
    for thing in things[: (num_things + 1) // 2]:
        draw.paint_thing(canvas, thing, in_front=False)
    for creature in plan.creatures:
        draw.paint_creature(canvas, creature, style, config.seed)
    for thing in things[(num_things + 1) // 2 :]:
        draw.paint_thing(canvas, thing, in_front=True)
    rgb, mask, parts = canvas.finish(rng)
    return rgb, mask, parts, draw.imperfect_saliency(mask, canvas.distraction, config.saliency_quality, rng)


def load_toy(item: Item, config: ToyConfig) -> Row:
    """The row of one generated image."""
    rgb, mask, parts, saliency = draw_image(config, item.extra["split"], item.extra["index"])
    return {
        **blank_row(item.image_id),
        "image": pic.encode_jpeg(rgb),
        "labels": list(item.labels or ()),
        "mask": pic.encode_mask(mask),
        "saliency": pic.encode_grey(saliency),
        "parts": pic.encode_mask(parts),
        "height": config.size,
        "width": config.size,
    }


@dataclass(frozen=True)
class ToyItems:
    """All images of a configuration, as items."""

    config: ToyConfig

    def __iter__(self) -> Iterator[Item]:
        for split in _SPLITS:
            for index in range(self.config.num_images(split)):
                labels = sorted({creature.label for creature in plan_image(self.config, split, index).creatures})
                yield Item(
                    f"{split}_{index:06d}", None, tuple(labels), splits=(split,), extra={"split": split, "index": index}
                )


def open_toy(root: str | Path | None = None, *, config: ToyConfig | None = None, **options: Any) -> Source:
    """The generated source; ``config``, or its fields as options; ``root`` is not used."""
    if config is None:
        config = read_options("toy", ToyConfig, options)
    elif options:
        raise UserError(f"toy: give either 'config' or the option {next(iter(options))!r}, not both")
    return Source(
        name="toy",
        classes=class_names(config.num_classes),
        items=ToyItems(config),
        load=partial(load_toy, config=config),
        splits=_SPLITS if config.num_val else _SPLITS[:1],
        options=config.model_dump(mode="json"),
    )
