# SPDX-License-Identifier: Apache-2.0
"""A generated world to pretrain on: textured shapes in front of walls, one object an image.

It is to the toy set what ImageNet is to VOC. Its shapes have corners (the toy's are discs and ellipses with legs), its
textures are irregular or tiled (the toy's are six periodic patterns), its backgrounds are walls (the toy's are
landscapes). It shares no brush with ``toy_drawing``. Image i depends on (seed, i) and the side alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

GOLDEN = 0.61803398875
FINE = 2
"""Outlines are drawn this many times larger, and shrunk."""
Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""(u, v) (h, w) in tiles, and a generator of details -> (h, w) in [-1, 1]."""


def _scatter(u: np.ndarray, v: np.ndarray, rng: np.random.Generator, num_points: int) -> np.ndarray:
    """(num_points, h, w) squared distances to points spread over the range of u and v."""
    a = rng.uniform(u.min(), u.max(), num_points).astype(np.float32)[:, None, None]
    b = rng.uniform(v.min(), v.max(), num_points).astype(np.float32)[:, None, None]
    distance: np.ndarray = (u - a) ** 2 + (v - b) ** 2
    return distance


def _count(u: np.ndarray, v: np.ndarray, per_tile: float, most: int) -> int:
    return int(np.clip(per_tile * (u.max() - u.min()) * (v.max() - v.min()), 5, most))


def _noise(shape: tuple[int, ...], rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """(h, w) smooth noise of about unit range from a grid of rows x columns random numbers."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (max(rows, 2), max(columns, 2))).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float32)


def paint_cells(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat stones of a mosaic."""
    num = _count(u, v, 1.3, 40)
    nearest = _scatter(u, v, rng, num).argmin(0)
    cells: np.ndarray = rng.permutation(np.linspace(-1, 1, num)).astype(np.float32)[nearest]
    return cells


def paint_cracks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark lines where dry mud breaks."""
    near = np.sqrt(np.partition(_scatter(u, v, rng, _count(u, v, 1.0, 40)), 1, axis=0)[:2])
    cracks: np.ndarray = np.clip((near[1] - near[0]) * 8 - 1, -1, 1)
    return cracks


def paint_bricks(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks, every other row shifted."""
    row = np.floor(v)
    place = u / 2 + 0.5 * (row % 2)
    gap = np.minimum(0.5 - np.abs(v - row - 0.5), 2 * (0.5 - np.abs(place - np.floor(place) - 0.5)))
    shade = np.sin(12.9898 * row + 78.233 * np.floor(place) + rng.uniform(0, 6))
    bricks: np.ndarray = np.where(gap < 0.13, -1, 0.65 + 0.35 * shade).astype(np.float32)
    return bricks


def paint_camouflage(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blots with hard edges."""
    side = int(u.max() - u.min() + v.max() - v.min())
    blots: np.ndarray = np.clip(6 * _noise(u.shape, side, side, rng), -1, 1)
    return blots


def paint_triangles(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A plane tiled with triangles of random shades."""
    a, b = 0.8 * (u + v / 3**0.5), 0.8 * (2 * v / 3**0.5)
    p, q = np.floor(a), np.floor(b)
    upper = (a - p) + (b - q) > 1
    shades = rng.uniform(-1, 1, (64, 64, 2)).astype(np.float32)
    tiles: np.ndarray = shades[p.astype(int) % 64, q.astype(int) % 64, upper.astype(int)]
    return tiles


def paint_maze(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Quarter circles of Truchet's tiles, each turned at random."""
    p, q = np.floor(u).astype(int), np.floor(v).astype(int)
    turned = rng.random((64, 64))[p % 64, q % 64] < 0.5
    x, y = u - p, v - q
    x = np.where(turned, 1 - x, x)
    arc = np.minimum(np.abs(np.hypot(x, y) - 0.5), np.abs(np.hypot(1 - x, 1 - y) - 0.5))
    maze: np.ndarray = np.clip((0.2 - arc) * 9, -1, 1)
    return maze


def paint_scales(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tiles of a roof: each shaded from its upper edge to its round lower one."""
    best = np.full(u.shape, -1, np.float32)
    done = np.zeros(u.shape, bool)
    first = np.floor(v / 0.5)
    for step in (1, 0, -1):
        row = first + step
        x = u - 0.5 * (row % 2)
        reach = np.hypot(x - np.floor(x) - 0.5, v - 0.5 * row) / 0.62
        inside = (reach < 1) & (v >= 0.5 * row) & ~done
        best[inside] = 1 - 2 * reach[inside] ** 2
        done |= inside
    return best


def paint_speckle(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small spots of many sizes, nowhere in rows."""
    num = _count(u, v, 1.6, 50)
    sizes = rng.uniform(0.12, 0.38, num).astype(np.float32)[:, None, None]
    spots: np.ndarray = np.clip(6 * (sizes - np.sqrt(_scatter(u, v, rng, num))).max(0), -1, 1)
    return spots


def paint_grain(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Streaks of wood, of uneven width."""
    line = rng.uniform(-1, 1, 96).astype(np.float32)
    bend = v + 0.5 * np.sin(0.7 * u + rng.uniform(0, 6))
    place = 2.6 * (bend - bend.min())
    low = np.floor(place).astype(int) % 95
    part = place - np.floor(place)
    grain: np.ndarray = np.clip(1.5 * (line[low] * (1 - part) + line[low + 1] * part), -1, 1)
    return grain


def paint_scratches(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Straight lines in all directions."""
    num = int(np.clip(1.5 * (u.max() - u.min()), 5, 24))
    angle = rng.uniform(0, np.pi, num).astype(np.float32)[:, None, None]
    a, b = rng.uniform(u.min(), u.max(), num), rng.uniform(v.min(), v.max(), num)
    far = np.abs((u - a[:, None, None]) * np.sin(angle) - (v - b[:, None, None]) * np.cos(angle))
    scratches: np.ndarray = np.clip(2 - 16 * far.min(0), -1, 1).astype(np.float32)
    return scratches


TEXTURES: dict[str, Texture] = {
    "cells": paint_cells,
    "cracks": paint_cracks,
    "bricks": paint_bricks,
    "camouflage": paint_camouflage,
    "triangles": paint_triangles,
    "maze": paint_maze,
    "scales": paint_scales,
    "speckle": paint_speckle,
    "grain": paint_grain,
    "scratches": paint_scratches,
}


def _ring(*radii: float) -> list[tuple[float, float]]:
    """Corners at equal angles, with these radii."""
    turn = 2 * np.pi / len(radii)
    return [(float(r * np.cos(k * turn)), float(r * np.sin(k * turn))) for k, r in enumerate(radii)]


SHAPES: dict[str, list[tuple[float, float]]] = {
    "triangle": _ring(1, 1, 1),
    "square": _ring(1, 1, 1, 1),
    "star": _ring(*(1, 0.42) * 5),
    "saw": _ring(*(1, 0.7) * 9),
    "cross": [(x * s, y * s) for s in (1, -1) for x, y in ((0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3))],
    "arrow": [(1, 0), (0, 0.9), (0, 0.35), (-1, 0.35), (-1, -0.35), (0, -0.35), (0, -0.9)],
    "corner": [(-0.8, -0.8), (0.8, -0.8), (0.8, -0.1), (-0.1, -0.1), (-0.1, 0.8), (-0.8, 0.8)],
    "bolt": [(-0.2, -1), (0.6, -1), (0.15, -0.2), (0.7, -0.2), (-0.4, 1), (-0.1, 0.1), (-0.65, 0.1)],
    "plank": [(-1, -0.38), (1, -0.38), (1, 0.38), (-1, 0.38)],
    "gate": [
        (-0.9, -0.8),
        (0.9, -0.8),
        (0.9, 0.8),
        (0.35, 0.8),
        (0.35, -0.25),
        (-0.35, -0.25),
        (-0.35, 0.8),
        (-0.9, 0.8),
    ],
}
NUM_CLASSES = len(SHAPES) * len(TEXTURES)


def class_name(label: int) -> str:
    """What class ``label`` is: texture and shape."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    return f"{textures[label // len(shapes) % len(textures)]} {shapes[label % len(shapes)]}"


def draw_object(seed: int, index: int, size: int) -> tuple[np.ndarray, int, np.ndarray]:
    """RGB (S, S, 3) uint8, its class, and where the object is, (S, S) bool."""
    rng = np.random.default_rng([seed, index, 3])
    label = int(rng.integers(NUM_CLASSES))
    texture, shape = class_name(label).split()
    rgb = _paint_wall(size, rng)
    num_shards = int(rng.integers(0, 6))
    for _ in range((num_shards + 1) // 2):
        _paint_shard(rgb, rng)
    radius = size * np.exp(rng.uniform(np.log(0.17), np.log(0.42)))
    x, y = rng.uniform(0.75 * radius, size - 0.75 * radius, 2)
    cover = _outline(SHAPES[shape], (x, y, radius), size, rng)
    # Colours lean to those of the class, as bananas are mostly yellow.
    hue = label * GOLDEN + rng.normal(0, 0.12)
    _lay_texture(rgb, cover, TEXTURES[texture], radius / rng.uniform(2.2, 4.2), hue, rng)
    for _ in range(num_shards // 2):
        cover = cover * (1 - _paint_shard(rgb, rng))
    rgb += 0.01 * rng.standard_normal((size, size, 1), dtype=np.float32)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8), label, cover > 0.5


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, float(np.clip(saturation, 0, 1)), value), np.float32)


def _paint_wall(size: int, rng: np.random.Generator) -> np.ndarray:
    """Two or three flat surfaces at any angle, uneven and unevenly lit."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    rgb = np.broadcast_to(_colour(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 0.95)), (size, size, 3)).copy()
    for _ in range(int(rng.integers(0, 3))):
        angle = rng.uniform(0, 2 * np.pi)
        side = np.clip(size * (columns * np.cos(angle) + rows * np.sin(angle) - rng.uniform(-0.4, 0.4)), 0, 1)
        rgb += side[..., None] * (_colour(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 0.95)) - rgb)
    cells = int(rng.integers(3, 24))
    light = 1 + 0.15 * _noise((size, size), 3, 3, rng) + rng.uniform(0, 0.12) * _noise((size, size), cells, cells, rng)
    return np.clip(rgb * light[..., None], 0, 1)


def _outline(
    corners: list[tuple[float, float]], place: tuple[float, float, float], size: int, rng: np.random.Generator
) -> np.ndarray:
    """(S, S) cover of a polygon at (x, y, radius), turned, stretched and with corners a little off."""
    x, y, radius = place
    points = np.array(corners, np.float32) + rng.normal(0, 0.04, (len(corners), 2)).astype(np.float32)
    angle, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.2, 0.2))
    points *= radius * np.array([stretch, 1 / stretch], np.float32)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    points = FINE * (points @ turn + np.array([x, y], np.float32))
    drawn = Image.new("L", (FINE * size, FINE * size))
    ImageDraw.Draw(drawn).polygon([(float(a), float(b)) for a, b in points], fill=255)
    return np.asarray(drawn.reduce(FINE), np.float32) / 255


def _lay_texture(
    rgb: np.ndarray, cover: np.ndarray, texture: Texture, tile: float, hue: float, rng: np.random.Generator
) -> None:
    """Fill ``cover`` with a texture in two colours, lit from one side."""
    inside_rows, inside_columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    if not len(inside_rows):
        return
    box = slice(inside_rows[0], inside_rows[-1] + 1), slice(inside_columns[0], inside_columns[-1] + 1)
    rows, columns = np.mgrid[box].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    u = (columns * np.cos(angle) + rows * np.sin(angle)) / tile + rng.uniform(0, 40)
    v = (rows * np.cos(angle) - columns * np.sin(angle)) / tile + rng.uniform(0, 40)
    first = _colour(hue, rng.uniform(0.4, 0.9), rng.uniform(0.6, 1))
    second = _colour(hue + rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.8), rng.uniform(0.15, 0.6))
    mix = 0.5 + 0.5 * rng.uniform(0.6, 1) * texture(u, v, rng)
    height, width = u.shape
    light = 1 + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, width, dtype=np.float32)
    light = light + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    colour = np.clip((second + mix[..., None] * (first - second)) * light[..., None], 0, 1)
    rgb[box] += cover[box][..., None] * (colour - rgb[box])


def _paint_shard(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small plain splinter that belongs to no class; its cover (S, S)."""
    size = len(rgb)
    corners = _ring(*rng.uniform(0.3, 1, int(rng.integers(3, 6))))
    x, y = rng.uniform(0, size, 2)
    cover = _outline(corners, (x, y, size * rng.uniform(0.04, 0.11)), size, rng)
    rgb += cover[..., None] * (_colour(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.2, 1)) - rgb)
    return cover
