# SPDX-License-Identifier: Apache-2.0
"""Brushes of the toy set: landscapes, creatures and clutter on a double-size canvas that is halved at the end.

Lengths and places are parts of the side, x to the right and y down; colours are float RGB in [0, 1].
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

_LIGHT = (-0.55, -0.75)
"""Where the light comes from, in body coordinates."""
_GOLDEN = 0.61803398875
# Sky top, sky at the horizon, ground at the horizon, ground at the bottom; the kind decides the surface.
_LANDSCAPES: tuple[tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]], ...] = (
    ("hills", (0.42, 0.66, 0.90), (0.86, 0.93, 0.96), (0.60, 0.76, 0.45), (0.34, 0.56, 0.30)),
    ("water", (0.55, 0.74, 0.90), (0.97, 0.90, 0.82), (0.45, 0.70, 0.80), (0.14, 0.38, 0.56)),
    ("dunes", (0.53, 0.72, 0.84), (0.98, 0.91, 0.78), (0.93, 0.80, 0.58), (0.79, 0.58, 0.38)),
    ("hills", (0.33, 0.27, 0.50), (0.96, 0.67, 0.54), (0.45, 0.38, 0.46), (0.22, 0.21, 0.33)),
    ("snow", (0.60, 0.72, 0.86), (0.93, 0.94, 0.97), (0.93, 0.95, 0.98), (0.72, 0.80, 0.90)),
    ("water", (0.16, 0.20, 0.38), (0.50, 0.45, 0.62), (0.28, 0.35, 0.52), (0.08, 0.13, 0.26)),
)
NUM_LANDSCAPES = len(_LANDSCAPES)
_PATTERNS = ("stripes", "checks", "dots", "rings", "rays", "waves")


@dataclass(frozen=True)
class Creature:
    """One object: its class, body centre and radius, which way it looks, and the seed of its details."""

    label: int
    x: float
    y: float
    radius: float
    looks_left: bool
    seed: int


@dataclass(frozen=True)
class Style:
    """The knobs of ``ToyConfig`` that shape creatures."""

    head_size: float
    head_contrast: float
    body_hue_noise: float
    body_texture: float


@dataclass(frozen=True)
class Thing:
    """Clutter: a stone, a bush, a tuft of grass or a ball."""

    kind: str
    x: float
    y: float
    radius: float
    hue: float
    seed: int


class Canvas:
    """The image, its masks, and where something eye-catching that is no object stands."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.rgb = np.zeros((side, side, 3), np.float32)
        self.mask = np.zeros((side, side), np.uint8)
        self.parts = np.zeros((side, side), np.uint8)
        self.distraction = np.zeros((side // 2, side // 2), np.float32)

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice, np.ndarray, np.ndarray]:
        """Rows and columns within ``reach`` of a place, and their offsets from it (dy, dx), broadcastable."""
        top, bottom = (int(np.clip((y + d) * self.side, 0, self.side)) for d in (-reach, reach))
        left, right = (int(np.clip((x + d) * self.side, 0, self.side)) for d in (-reach, reach))
        dy = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) / self.side - np.float32(y)
        dx = (np.arange(left, right, dtype=np.float32)[None, :] + 0.5) / self.side - np.float32(x)
        return slice(top, bottom), slice(left, right), dy, dx

    def blend(self, rows: slice, columns: slice, colour: np.ndarray, alpha: np.ndarray) -> None:
        """Lay a colour, (3,) or (h, w, 3), over a window with opacity (h, w)."""
        here = self.rgb[rows, columns]
        here += alpha[..., None] * (colour - here)

    def shadow(self, x: float, y: float, rx: float, ry: float, strength: float) -> None:
        """A soft dark ellipse on the ground."""
        rows, columns, dy, dx = self.window(x, y, 2.2 * max(rx, ry))
        self.rgb[rows, columns] *= (1 - strength * np.exp(-1.3 * ((dx / rx) ** 2 + (dy / ry) ** 2)))[..., None]

    def finish(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Halve: RGB with a little grain, mask and parts by one pixel of every four."""
        half = self.side // 2
        rows = self.rgb[0::2] + self.rgb[1::2]
        rgb = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
        rgb += np.float32(0.007) * rng.standard_normal((half, half, 1), dtype=np.float32)
        return (
            (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8),
            self.mask[1::2, 1::2].copy(),
            self.parts[1::2, 1::2].copy(),
        )


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def smooth(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, an S between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def paint_landscape(canvas: Canvas, landscape: int, rng: np.random.Generator) -> None:
    """Sky with sun and clouds over hills, dunes, snow or water."""
    kind, *colours = _LANDSCAPES[landscape % NUM_LANDSCAPES]
    top, low, near, far = (
        np.clip(np.array(c, np.float32) + rng.normal(0, 0.025, 3).astype(np.float32), 0, 1) for c in colours
    )
    horizon = float(rng.uniform(0.34, 0.52))
    line = (np.arange(canvas.side, dtype=np.float32) + 0.5) / canvas.side
    sky = np.clip(line / horizon, 0, 1)[:, None, None] ** 1.4
    canvas.rgb[:] = top + sky * (low - top)
    _sun(canvas, horizon, low, rng)
    for _ in range(int(rng.integers(0, 4))):
        _cloud(canvas, horizon, rng)
    if kind != "water":
        for layer in range(2):
            ridge = horizon - rng.uniform(0.01, 0.10) * (1 - layer) + _ripple(line, rng, 0.028 + 0.02 * layer)
            canvas.blend(*_all(canvas), low + (near - low) * (0.45 + 0.3 * layer), _below(line, ridge))
    ridge = np.full_like(line, horizon) if kind == "water" else horizon + 0.04 + _ripple(line, rng, 0.02)
    depth = np.clip((line - horizon) / (1 - horizon), 0, 1)[:, None, None]
    ground = near + depth * (far - near)
    x, y = line[None, :], line[:, None]
    stretch = np.clip(y - horizon, 0.012, 1)
    phase = rng.uniform(0, 6.28, 4).tolist()
    if kind == "water":
        waves = np.sin(9 * np.log(stretch) * 2.6 + 2.2 * np.sin(x * 9 + phase[0]) + phase[1]) * np.sin(
            x * 17 + phase[2] + 5 * y
        )
        ground = ground + (0.055 * waves * smooth(0, 0.1, y - horizon))[..., None]
    else:
        bands = np.sin(14 * np.log(stretch) + 2.5 * np.sin(x * 5 + phase[0])) + 0.6 * np.sin(x * 23 + 31 * y + phase[1])
        ground = ground + ((0.022 if kind == "snow" else 0.030) * bands)[..., None]
    canvas.blend(*_all(canvas), ground, _below(line, ridge))


def _sun(canvas: Canvas, horizon: float, glow: np.ndarray, rng: np.random.Generator) -> None:
    x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.8 * horizon), rng.uniform(0.035, 0.06)
    rows, columns, dy, dx = canvas.window(x, y, 0.45)
    distance = np.sqrt(dx**2 + dy**2)
    canvas.blend(rows, columns, np.clip(glow + 0.12, 0, 1), 0.75 * np.exp(-distance / 0.11))
    canvas.blend(
        rows, columns, np.array([1.0, 0.97, 0.88], np.float32), 1 - smooth(radius - 0.006, radius + 0.006, distance)
    )


def _cloud(canvas: Canvas, horizon: float, rng: np.random.Generator) -> None:
    x, y, size = rng.uniform(0, 1), rng.uniform(0.05, 0.75 * horizon), rng.uniform(0.035, 0.075)
    rows, columns, dy, dx = canvas.window(x, y, 4 * size)
    alpha = np.zeros(np.broadcast_shapes(dy.shape, dx.shape), np.float32)
    for _ in range(4):
        a, b, r = rng.uniform(-1.6, 1.6) * size, rng.uniform(-0.3, 0.2) * size, rng.uniform(0.6, 1.0) * size
        alpha = np.maximum(alpha, 1 - smooth(0.25, 1.0, ((dx - a) / (1.5 * r)) ** 2 + ((dy - b) / (0.75 * r)) ** 2))
    canvas.blend(rows, columns, np.array([1.0, 0.99, 0.98], np.float32), 0.72 * alpha)


def _ripple(line: np.ndarray, rng: np.random.Generator, height: float) -> np.ndarray:
    phases, speeds = rng.uniform(0, 6.28, 3).tolist(), rng.uniform((3, 7, 13), (6, 11, 19)).tolist()
    total = sum(
        np.sin(speed * line + phase) / (k + 1) for k, (speed, phase) in enumerate(zip(speeds, phases, strict=True))
    )
    rippled: np.ndarray = (height * total).astype(np.float32)
    return rippled


def _below(line: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    return smooth(-0.004, 0.004, line[:, None] - ridge[None, :])


def _all(canvas: Canvas) -> tuple[slice, slice]:
    return slice(0, canvas.side), slice(0, canvas.side)


def random_thing(rng: np.random.Generator) -> Thing:
    """A piece of clutter somewhere on the ground."""
    kind = ("stone", "bush", "grass", "ball")[int(rng.integers(4))]
    return Thing(
        kind,
        rng.uniform(0.03, 0.97),
        rng.uniform(0.5, 0.97),
        rng.uniform(0.03, 0.085),
        rng.random(),
        int(rng.integers(2**31)),
    )


def paint_thing(canvas: Canvas, thing: Thing, in_front: bool) -> None:
    """Draw clutter; in front of creatures it is pushed to the lower edge and hides what is behind it."""
    rng = np.random.default_rng(thing.seed)
    y = max(thing.y, 0.86) if in_front else thing.y
    radius = thing.radius * (0.85 if in_front else 1.0)
    if thing.kind == "grass":
        _grass(canvas, thing.x, y, radius, rng)
        return
    canvas.shadow(thing.x + 0.3 * radius, y + 0.85 * radius, 1.2 * radius, 0.35 * radius, 0.35)
    rows, columns, dy, dx = canvas.window(thing.x, y, 1.5 * radius)
    u, v = dx / radius, dy / radius
    if thing.kind == "ball":
        colour, bumps, flat = hsv(thing.hue, 0.5, 0.85), 0.0, 1.0
    elif thing.kind == "stone":
        colour, bumps, flat = hsv(0.08 + 0.06 * thing.hue, 0.10, 0.62), 0.10, 1.35
    else:
        colour, bumps, flat = hsv(0.24 + 0.14 * thing.hue, 0.48, 0.62), 0.10, 1.15
    angle = np.arctan2(v, u)
    lobes = (3.5, 1.5) if thing.kind == "bush" else (2.0, 3.0)
    edge = 1 + bumps * (
        np.abs(np.sin(lobes[0] * angle + rng.uniform(0, 6))) + 0.6 * np.abs(np.sin(lobes[1] * angle)) - 0.8
    )
    reach = np.sqrt(u**2 + (flat * v) ** 2) / edge
    alpha = 1 - smooth(0.96, 1.04, reach)
    light = 0.80 + 0.30 * (_LIGHT[0] * u + _LIGHT[1] * v)
    if thing.kind == "bush":
        light = light + 0.07 * np.sin(8 * u + rng.uniform(0, 6) + 2 * np.sin(5 * v)) * np.sin(9 * v)
    canvas.blend(rows, columns, np.clip(colour * light[..., None], 0, 1), alpha)
    _cover(canvas, rows, columns, alpha)
    half = (
        slice(rows.start // 2, rows.start // 2 + len(alpha[::2])),
        slice(columns.start // 2, columns.start // 2 + alpha[::2, ::2].shape[1]),
    )
    if thing.kind == "ball":
        target = canvas.distraction[half]
        np.maximum(target, alpha[::2, ::2][: target.shape[0], : target.shape[1]], out=target)


def _grass(canvas: Canvas, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    rows, columns, dy, dx = canvas.window(x, y, 2.2 * radius)
    for _ in range(7):
        lean, root, length = rng.uniform(-0.9, 0.9), rng.uniform(-1, 1) * 0.7 * radius, rng.uniform(1.0, 2.0) * radius
        height = np.clip((radius - dy) / length, 0, 1)
        width = 0.11 * radius * (1 - height) + 1e-5
        distance = np.abs(dx - root - lean * radius * height**2) / width
        alpha = (1 - smooth(0.6, 1.4, distance)) * (dy <= radius) * (height < 1)
        canvas.blend(rows, columns, hsv(rng.uniform(0.22, 0.33), 0.5, rng.uniform(0.45, 0.7)), alpha)
        _cover(canvas, rows, columns, alpha)


def _cover(canvas: Canvas, rows: slice, columns: slice, alpha: np.ndarray) -> None:
    hidden = alpha > 0.5
    canvas.mask[rows, columns][hidden] = 0
    canvas.parts[rows, columns][hidden] = 0


def paint_creature(canvas: Canvas, creature: Creature, style: Style, world: int) -> None:
    """Shadow, tail, legs, body and head of one creature; ``world`` is the seed that fixes what its class looks like."""
    look = np.random.default_rng([world, creature.label, 7])
    rng = np.random.default_rng(creature.seed)
    side = -1.0 if creature.looks_left else 1.0
    radius, x, y = creature.radius, creature.x, creature.y
    class_hue = (creature.label * _GOLDEN + 0.03) % 1.0
    hue = class_hue + (rng.random() - 0.5) * style.body_hue_noise
    body = hsv(hue, rng.uniform(0.22, 0.50), rng.uniform(0.62, 0.9))
    tilt = rng.uniform(-0.22, 0.22)
    long, tall = rng.uniform(0.95, 1.12), rng.uniform(0.62, 0.8)

    canvas.shadow(x + 0.15 * radius, y + 1.02 * radius, 1.15 * radius, 0.26 * radius, 0.45)
    rows, columns, dy, dx = canvas.window(x, y, 1.75 * radius)
    u, v = side * dx / radius, dy / radius
    soft = 1.0 / (radius * canvas.side)
    turned_u, turned_v = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)

    legs = np.zeros(np.broadcast_shapes(dy.shape, dx.shape), np.float32)
    for place in (-0.55, -0.2, 0.22, 0.55):
        step = rng.uniform(-0.08, 0.08)
        foot = np.abs(u - place - step * np.clip(v, 0, 1)) - 0.105 - 0.035 * smooth(0.8, 1.0, v)
        legs = np.maximum(
            legs, (1 - smooth(-soft, soft, foot)) * smooth(-0.05, 0.05, v) * (1 - smooth(1.0 - soft, 1.0 + soft, v))
        )
    swing = rng.uniform(0.3, 0.9)
    tail_line = -0.05 - swing * np.clip(-u - 0.75, 0, 1) ** 1.3
    tail_width = 0.10 * np.clip(1.55 + u, 0, 0.8) + 0.01
    tail = (1 - smooth(-soft, soft, np.abs(v - tail_line) - tail_width)) * (u < -0.6) * (u > -1.55)
    angle = np.arctan2(turned_v / tall, turned_u / long)
    bumps = 1 + 0.045 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.035 * np.sin(3 * angle + rng.uniform(0, 6))
    reach = np.sqrt((turned_u / long) ** 2 + (turned_v / tall) ** 2) / bumps
    trunk = 1 - smooth(1 - soft, 1 + soft, reach)

    back = np.maximum(legs, tail)
    canvas.blend(rows, columns, np.clip(body * 0.72, 0, 1), back)
    light = 0.86 + 0.22 * (_LIGHT[0] * side * turned_u + _LIGHT[1] * turned_v / tall) - 0.16 * smooth(0.6, 1.0, reach)
    belly = 0.35 * smooth(0.1, 0.8, turned_v)
    faint = (
        style.body_texture * 0.16 * _pattern(creature.label + 3, 0.55 * turned_u, 0.55 * turned_v, look.uniform(4, 7))
    )
    colour = (body + belly[..., None] * (0.96 - body)) * (light + faint)[..., None]
    gloss = 0.22 * np.exp(-7 * ((u + 0.3 * side * np.sign(side)) ** 2 + (v + 0.42) ** 2))
    canvas.blend(rows, columns, np.clip(colour + gloss[..., None], 0, 1), trunk)
    _mark(canvas, rows, columns, np.maximum(trunk, back), creature.label + 1, 2)
    _paint_head(canvas, creature, style, Pose(side, class_hue, look), rng)


@dataclass(frozen=True)
class Pose:
    """How one creature stands and what its class looks like."""

    side: float
    """1: it looks to the right, -1: to the left."""
    hue: float
    look: np.random.Generator
    """Draws what is the same for all creatures of a class."""


def _paint_head(canvas: Canvas, creature: Creature, style: Style, pose: Pose, rng: np.random.Generator) -> None:
    side, hue, look = pose.side, pose.hue, pose.look
    radius = creature.radius * style.head_size
    x = creature.x + side * creature.radius * rng.uniform(0.80, 0.95)
    y = creature.y - creature.radius * rng.uniform(0.30, 0.55)
    x = float(np.clip(x, 0.6 * radius, 1 - 0.6 * radius))
    rows, columns, dy, dx = canvas.window(x, y, 1.75 * radius)
    u, v = side * dx / radius, dy / radius
    soft = 1.0 / (radius * canvas.side)
    reach = np.sqrt(u**2 + (1.04 * v) ** 2)
    face = 1 - smooth(1 - soft, 1 + soft, reach)
    first, second = hsv(hue, 0.80, 0.92), hsv(hue + 0.5 + look.uniform(-0.12, 0.12), 0.55, 0.30)
    second = first + style.head_contrast * (second - first)
    pattern = _pattern(creature.label, u, v, 2.6 + 0.5 * ((creature.label // len(_PATTERNS)) % 3))
    light = 0.98 + 0.20 * (_LIGHT[0] * side * u + _LIGHT[1] * v) - 0.22 * smooth(0.7, 1.0, reach)
    ears = np.zeros_like(face)
    for place in (-0.5, 0.42):
        tip = np.sqrt(((u - place) / 0.30) ** 2 + ((v + 0.88) / 0.46) ** 2)
        ears = np.maximum(ears, 1 - smooth(1 - 3 * soft, 1 + 3 * soft, tip))
    canvas.blend(rows, columns, first * 0.75, ears)
    mix = smooth(-0.16, 0.16, pattern)[..., None]
    canvas.blend(rows, columns, np.clip((first + mix * (second - first)) * light[..., None], 0, 1), face)
    for place in (0.02, 0.52):
        white, dark = np.ones(3, np.float32), np.array([0.10, 0.09, 0.14], np.float32)
        canvas.blend(rows, columns, white, _cover_dot(u - place, v + 0.16, 0.235, soft))
        canvas.blend(rows, columns, dark, _cover_dot(u - place - 0.07, v + 0.14, 0.125, soft))
        canvas.blend(rows, columns, white, _cover_dot(u - place - 0.02, v + 0.20, 0.045, soft))
    _mark(canvas, rows, columns, np.maximum(face, ears), creature.label + 1, 1)


def _cover_dot(u: np.ndarray, v: np.ndarray, radius: float, soft: float) -> np.ndarray:
    return 1 - smooth(radius - soft, radius + soft, np.sqrt(u**2 + v**2))


def _mark(canvas: Canvas, rows: slice, columns: slice, alpha: np.ndarray, index: int, part: int) -> None:
    inside = alpha > 0.5
    canvas.mask[rows, columns][inside] = index
    canvas.parts[rows, columns][inside] = part


def _pattern(label: int, u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    """A pattern in [-1, 1] that belongs to a class; kind and direction follow from the label."""
    kind = _PATTERNS[label % len(_PATTERNS)]
    turn = 2.399963 * (label // len(_PATTERNS)) + 0.5
    a, b = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    waves = np.float32(np.pi * frequency)
    drawn: np.ndarray
    if kind == "stripes":
        drawn = np.sin(waves * a + 0 * b)
    elif kind == "checks":
        drawn = np.sin(0.8 * waves * a) * np.sin(0.8 * waves * b) * 1.8
    elif kind == "dots":
        drawn = np.cos(0.95 * waves * a) + np.cos(0.95 * waves * b) - 0.55
    elif kind == "rings":
        drawn = np.sin(1.15 * waves * np.sqrt(u**2 + v**2))
    elif kind == "rays":
        drawn = np.sin((6 + 2 * (label // len(_PATTERNS) % 3)) * np.arctan2(b, a))
    else:
        drawn = np.sin(waves * a + 1.4 * np.sin(1.1 * waves * b))
    return drawn


def imperfect_saliency(
    mask: np.ndarray, distraction: np.ndarray, quality: float, rng: np.random.Generator
) -> np.ndarray:
    """(S, S) uint8: the foreground as a detector without classes might see it; ``quality`` 1 returns it exactly."""
    target = np.zeros(mask.shape, np.float32)
    worse = 1.0 - quality
    for label in np.unique(mask[mask > 0]):
        strength = 1.0 if rng.random() > 0.5 * worse else rng.uniform(0, 0.5)
        target[mask == label] = strength
    if worse == 0:
        return (target > 0).astype(np.uint8) * 255
    target = np.maximum(target, distraction * min(1.0, 1.6 * worse) * (rng.random() < 0.8))
    side = mask.shape[0]
    image = Image.fromarray((target * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side * 0.045 * worse))
    coarse = Image.fromarray(rng.integers(0, 256, size=(9, 9)).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noise = (np.asarray(coarse, np.float32) / 255 - 0.5) * 0.7 * worse
    value = np.asarray(image, np.float32) / 255
    seen: np.ndarray = np.clip(smooth(0.15 * worse, 1 - 0.2 * worse, value + noise * (value + 0.15)), 0, 1)
    return (seen * 255).astype(np.uint8)
