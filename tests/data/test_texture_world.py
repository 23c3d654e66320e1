# SPDX-License-Identifier: Apache-2.0
"""The world that the toy's weights come from: it repeats, and it shares nothing with the toy set."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from wsss_ray.data import texture_world, toy, toy_drawing
from wsss_ray.data.texture_world import NUM_CLASSES, SHAPES, TEXTURES, class_name, draw_object

SIDE = 48
TILE = np.mgrid[:SIDE, :SIDE].astype(np.float32)
LIKE = 0.65
"""Correlation from which on two patterns count as alike: the toy's reach 0.74 to 0.99 of each other, textures 0.59."""


def test_an_image_follows_from_seed_and_index():
    first, again = draw_object(3, 7, 64), draw_object(3, 7, 64)
    assert first[1] == again[1]
    assert all(np.array_equal(first[k], again[k]) for k in (0, 2))
    for other in (draw_object(3, 8, 64), draw_object(4, 7, 64)):
        assert not np.array_equal(first[0], other[0])


def test_every_class_has_its_name_and_occurs():
    assert len({class_name(label) for label in range(NUM_CLASSES)}) == NUM_CLASSES == len(SHAPES) * len(TEXTURES)
    drawn = [draw_object(0, index, 32) for index in range(900)]
    assert {label for _, label, _ in drawn} == set(range(NUM_CLASSES))
    cover = [inside.mean() for _, _, inside in drawn]
    assert 0.02 < np.quantile(cover, 0.1) < np.quantile(cover, 0.9) < 0.5


def test_no_brush_is_shared():
    """Neither imports the other, and no function, shape, texture or pattern has the same name."""
    trees = {module: ast.parse(Path(module.__file__).read_text()) for module in (texture_world, toy, toy_drawing)}
    imported = {
        name
        for node in ast.walk(trees[texture_world])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    assert not any("toy" in name or name.startswith("wsss_ray") for name in imported)
    for module in (toy, toy_drawing):
        assert "texture_world" not in Path(module.__file__).read_text()
    names = {
        module: {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for module, tree in trees.items()
    }
    assert not names[texture_world] & (names[toy] | names[toy_drawing])
    kinds = {kind for kind, *_ in toy_drawing._LANDSCAPES} | {"stone", "bush", "grass", "ball"}
    assert not (set(TEXTURES) | set(SHAPES)) & (set(toy_drawing._PATTERNS) | kinds)


def unit(values: np.ndarray) -> np.ndarray:
    values = values - values.mean()
    return values / np.linalg.norm(values)


def best_match(texture: np.ndarray, bank: list[np.ndarray]) -> float:
    """Highest absolute correlation of a tile with the patterns of the bank, at every shift."""
    spectrum = np.fft.rfft2(unit(texture))
    return max(float(np.abs(np.fft.irfft2(spectrum * np.conj(other), (SIDE, SIDE))).max()) for other in bank)


@pytest.fixture(scope="module")
def patterns() -> list[np.ndarray]:
    """Spectra of the toy's six patterns at many turns and sizes."""
    rows, columns = (TILE - SIDE / 2) / SIDE * 4
    bank = []
    for label in range(len(toy_drawing._PATTERNS)):
        for turn in np.arange(0, np.pi, np.pi / 12):
            u = columns * np.cos(turn) + rows * np.sin(turn)
            v = rows * np.cos(turn) - columns * np.sin(turn)
            for frequency in np.geomspace(0.35, 1.4, 14):
                bank.append(np.fft.rfft2(unit(toy_drawing._pattern(label, u, v, frequency))))
    return bank


def draw_tile(name: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn, tile = rng.uniform(0, np.pi), rng.uniform(6, 10)
    rows, columns = TILE
    u = (columns * np.cos(turn) + rows * np.sin(turn)) / tile + 20
    v = (rows * np.cos(turn) - columns * np.sin(turn)) / tile + 20
    return TEXTURES[name](u, v, rng)


@pytest.mark.parametrize("name", TEXTURES)
def test_no_texture_looks_like_a_pattern_of_the_toy(name, patterns):
    found = [best_match(draw_tile(name, seed), patterns) for seed in range(6)]
    assert max(found) < LIKE, found


def test_the_measure_would_see_a_pattern_of_the_toy(patterns):
    """The toy's own patterns at turns and sizes between those of the bank."""
    rows, columns = (TILE - SIDE / 2) / SIDE * 4
    for label in range(len(toy_drawing._PATTERNS)):
        u, v = columns * np.cos(0.4) + rows * np.sin(0.4), rows * np.cos(0.4) - columns * np.sin(0.4)
        assert best_match(toy_drawing._pattern(label, u, v, 0.62), patterns) > LIKE, label
