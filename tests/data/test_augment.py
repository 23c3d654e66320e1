# SPDX-License-Identifier: Apache-2.0
"""Joint augmentation: what every sample keeps, whatever is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wsss_ray.data.augment import AugmentConfig, augment, draw_geometry, render
from wsss_ray.data.colour import JitterConfig, NormalizeConfig, change_colours, draw_jitter
from wsss_ray.data.geometry import Geometry, draw_area, draw_offset, draw_swapped_offset, place, scale_by, side_to

CONFIGS = {
    "long": AugmentConfig(resize="long_side", range=(20, 60), crop=40),
    "short": AugmentConfig(
        resize="short_side", range=(48, 48), crop=40, flip=0, swap_axes=True, crop_before_normalize=True
    ),
    "scale": AugmentConfig(resize="scale", range=(0.5, 1.5), crop=40, interpolation="bilinear"),
    "choice": AugmentConfig(
        resize="choice", choices=(0.5, 1.0, 1.5), crop=40, pad="right_bottom", flip_last=True, interpolation="linear"
    ),
    "area": AugmentConfig(resize="area", crop=40, jitter=JitterConfig()),
    "squash": AugmentConfig(resize="squash", crop=40, jitter=JitterConfig(after_crop=True)),
    "none": AugmentConfig(resize="none", crop=40),
}


def _decoded(height: int = 50, width: int = 71) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(height * width)
    return {
        "image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        "saliency": rng.integers(0, 256, (height, width)).astype(np.uint8),
        "mask": rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width)),
        "maps": rng.random((2, height, width)).astype(np.float32),
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(50, 71), (13, 9), (1, 1), (90, 31)])
def test_shapes_ranges_and_canvas(name, size):
    config = CONFIGS[name]
    decoded = _decoded(*size)
    for seed in range(4):
        sample = augment(decoded, config, np.random.default_rng(seed), NormalizeConfig())
        assert {key: tuple(value.shape) for key, value in sample.items()} == {
            "image": (3, 40, 40),
            "rgb": (3, 40, 40),
            "inside": (1, 40, 40),
            "saliency": (1, 40, 40),
            "mask": (40, 40),
            "maps": (2, 40, 40),
        }
        outside = sample["inside"][0] == 0
        assert set(sample["inside"].unique().tolist()) <= {0.0, 1.0}
        assert (sample["mask"][outside] == 255).all()
        assert sample["mask"].dtype == torch.int64
        assert set(sample["mask"].unique().tolist()) <= {0, 1, 2, 255}
        for key in ("rgb", "saliency", "maps"):
            assert (sample[key][:, outside] == 0).all()
            assert float(sample[key].min()) >= 0
            assert float(sample[key].max()) <= 1
        canvas = sample["image"][:, outside]
        black = NormalizeConfig().apply(np.zeros((1, 1, 3), np.uint8)).view(3, 1)
        assert torch.equal(
            canvas, black.expand_as(canvas) if config.crop_before_normalize else torch.zeros_like(canvas)
        )
        assert all(value.is_contiguous() for value in sample.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_same_generator_same_sample(name):
    first, second = (augment(_decoded(), CONFIGS[name], np.random.default_rng(5), NormalizeConfig()) for _ in range(2))
    other = augment(_decoded(), CONFIGS[name], np.random.default_rng(6), NormalizeConfig())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (5, 3), (-4, 6), (-7, -9)])
def test_markers_stay_together(flip, offset):
    """One lit corner pixel lands on the same place in image, saliency, mask and maps (L2G spec, test 35)."""
    decoded = {
        "image": np.zeros((24, 30, 3), np.uint8),
        "saliency": np.zeros((24, 30), np.uint8),
        "mask": np.zeros((24, 30), np.uint8),
        "maps": np.zeros((1, 24, 30), np.float32),
    }
    row, column = 8, 10
    decoded["image"][row, column] = 255
    decoded["saliency"][row, column] = 255
    decoded["mask"][row, column] = 1
    decoded["maps"][0, row, column] = 1
    sample = render(decoded, Geometry((24, 30), 32, offset, flip), [], AugmentConfig(), NormalizeConfig())
    seen = (row - offset[0], (29 - column if flip else column) - offset[1])
    assert torch.nonzero(sample["mask"] == 1).tolist() == [list(seen)]
    for key in ("rgb", "saliency", "maps"):
        assert torch.nonzero(sample[key][0]).tolist() == [list(seen)]


def test_window_of_a_resized_map_is_the_resized_map_cut():
    """Resizing, mirroring and cutting a map commutes with cutting the mirrored, resized map (SMAF)."""
    maps = np.random.default_rng(0).random((1, 20, 30)).astype(np.float32)
    decoded = {"image": np.zeros((20, 30, 3), np.uint8), "maps": maps}
    whole = render(decoded, Geometry((30, 45), 45, (0, 0), True), [], AugmentConfig(), NormalizeConfig())["maps"]
    cut = render(decoded, Geometry((30, 45), 20, (4, 7), True), [], AugmentConfig(), NormalizeConfig())["maps"]
    assert torch.equal(cut, whole[:, 4:24, 7:27])
    # By hand: corners aligned, so that corners keep their values; mirrored.
    assert float(whole[0, 0, 0]) == pytest.approx(float(maps[0, 0, -1]))
    assert float(whole[0, 29, 44]) == pytest.approx(float(maps[0, 19, 0]))


def test_mirror_last_moves_the_padding():
    decoded = {"image": np.full((10, 10, 3), 200, np.uint8)}
    first = render(decoded, Geometry((10, 10), 16, (0, 0), True), [], AugmentConfig(), NormalizeConfig())["inside"][0]
    last = render(decoded, Geometry((10, 10), 16, (0, 0), True, None, True), [], AugmentConfig(), NormalizeConfig())[
        "inside"
    ][0]
    assert first[0].tolist() == [1] * 10 + [0] * 6
    assert last[0].tolist() == [0] * 6 + [1] * 10


def test_offsets_stay_inside_unless_axes_are_swapped():
    """An image of 512 x 683 under a window of 448 (L2G spec, test 27 and bug 4.6.1)."""
    rng = np.random.default_rng(0)
    good = np.array([draw_offset((512, 683), 448, rng) for _ in range(3000)])
    assert good.min() >= 0
    assert tuple(good.max(0)) == (64, 235)
    swapped = np.array([draw_swapped_offset((512, 683), 448, rng) for _ in range(3000)])
    assert tuple(swapped.min(0)) == (0, 0)
    assert tuple(swapped.max(0)) == (235, 64)
    padded_rows = np.maximum(0, swapped[:, 0] + 448 - 512)
    assert np.mean(padded_rows > 0) == pytest.approx(0.73, abs=0.03)
    assert padded_rows.mean() / 448 == pytest.approx(0.14, abs=0.01)
    square = np.array([draw_swapped_offset((500, 500), 448, rng) for _ in range(500)])
    assert tuple(square.max(0)) == (52, 52)


def test_small_images_lie_anywhere_or_upper_left():
    rng = np.random.default_rng(0)
    anywhere = np.array([draw_offset((30, 60), 48, rng) for _ in range(2000)])
    assert (tuple(anywhere.min(0)), tuple(anywhere.max(0))) == ((-18, 0), (0, 12))
    corner = np.array([draw_offset((30, 60), 48, rng, "right_bottom") for _ in range(2000)])
    assert (tuple(corner.min(0)), tuple(corner.max(0))) == ((0, 0), (0, 12))


def test_sizes_by_hand():
    assert side_to(375, 500, 333, "long") == (250, 333)
    assert side_to(500, 375, 512, "short") == (683, 512)
    assert side_to(7, 1000, 50, "long") == (1, 50)
    assert scale_by(61, 75, 1.5) == (92, 112), "halves go to the even number"
    assert scale_by(61, 75, 1.5, "floor") == (91, 112)
    assert side_to(50, 50, 20, "long") == side_to(50, 50, 20, "short") == (20, 20)


def test_long_side_range_is_inclusive():
    config = AugmentConfig(resize="long_side", range=(256, 258), crop=8)
    sizes = {max(draw_geometry(config, 40, 30, np.random.default_rng(seed)).size) for seed in range(60)}
    assert sizes == {256, 257, 258}


def test_area_boxes_keep_their_promise():
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, height, width = draw_area(100, 140, (0.9, 1.0), (3 / 4, 4 / 3), rng)
        assert top >= 0
        assert left >= 0
        assert top + height <= 100
        assert left + width <= 140
        assert height * width >= 0.9 * 100 * 140 * 0.9
        assert width / height < 4 / 3 + 0.1
    # Nothing fits: the middle, with the nearest aspect.
    assert draw_area(10, 100, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (0, 43, 10, 13)


def test_area_box_is_cut_out_of_everything():
    decoded = _decoded(20, 30)
    geometry = Geometry((8, 8), 8, box=(3, 11, 8, 8))
    sample = render(decoded, geometry, [], AugmentConfig(), NormalizeConfig())
    rows, columns = slice(3, 11), slice(11, 19)
    assert (sample["rgb"].permute(1, 2, 0) * 255).round().numpy().tolist() == decoded["image"][rows, columns].tolist()
    assert (sample["saliency"][0] * 255).round().numpy().tolist() == decoded["saliency"][rows, columns].tolist()
    np.testing.assert_array_equal(sample["mask"].numpy(), decoded["mask"][rows, columns])
    np.testing.assert_array_equal(sample["maps"].numpy(), decoded["maps"][:, rows, columns])


def test_place_off_the_canvas_is_all_fill():
    assert (place(np.ones((4, 4), np.uint8), (9, 0), 5, fill=255) == 255).all()


def test_saliency_of_the_window_reaches_one():
    decoded = {"image": np.zeros((8, 8, 3), np.uint8), "saliency": np.full((8, 8), 51, np.uint8)}
    geometry = Geometry((8, 8), 8)
    plain = render(decoded, geometry, [], AugmentConfig(), NormalizeConfig())["saliency"]
    maximal = render(decoded, geometry, [], AugmentConfig(saliency_max=True), NormalizeConfig())["saliency"]
    assert plain.unique().tolist() == pytest.approx([0.2])
    assert maximal.unique().tolist() == pytest.approx([1.0])
    decoded["saliency"][:] = 0
    assert render(decoded, geometry, [], AugmentConfig(saliency_max=True), NormalizeConfig())[
        "saliency"
    ].unique().tolist() == [0]


def test_jitter_by_hand():
    image = np.array([[[200, 100, 50], [100, 100, 100]]], np.uint8)
    assert change_colours(image, [("brightness", 0.5)]).tolist() == [[[100, 50, 25], [50, 50, 50]]]
    grey = change_colours(image, [("saturation", 0.0)])
    assert grey[0, 0].tolist() == [124, 124, 124], "0.299 R + 0.587 G + 0.114 B"
    # Contrast 0: every pixel is the rounded mean of the greys, (124 + 100) / 2.
    assert change_colours(image, [("contrast", 0.0)]).tolist() == [[[112] * 3] * 2]
    turned = change_colours(np.array([[[255, 0, 0]]], np.uint8), [("hue", 1 / 3)])[0, 0]
    assert int(turned[1]) > 250
    assert int(turned[0]) < 10
    assert change_colours(image, []).tolist() == image.tolist()


def test_jitter_draws():
    rng = np.random.default_rng(0)
    draws = [draw_jitter(JitterConfig(brightness=0.3, hue=0.1, probability=0.5), rng) for _ in range(400)]
    assert 0.4 < np.mean([bool(changes) for changes in draws]) < 0.6
    values = {name: [dict(changes)[name] for changes in draws if changes] for name in ("brightness", "hue")}
    assert 0.7 <= min(values["brightness"]) < 0.75
    assert 1.25 < max(values["brightness"]) <= 1.3
    assert -0.1 <= min(values["hue"]) < -0.08
    assert 0.08 < max(values["hue"]) <= 0.1
    assert len({changes[0][0] for changes in draws if changes}) == 4, "the order is drawn too"
    assert draw_jitter(JitterConfig(probability=0), rng) == []


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"resize": "choice"}, "choices"),
        ({"resize": "scale"}, "factors"),
        ({"resize": "long_side", "range": (100.5, 200)}, "whole pixels"),
        ({"range": (9, 3)}, "low to high"),
        ({"resize": "area", "area": (0.5, 1.5)}, "up to 1"),
        ({"swap_axes": True, "pad": "right_bottom"}, "choose one"),
        ({"crop": 0}, "greater than 0"),
    ],
)
def test_impossible_settings_say_the_fix(settings, word):
    with pytest.raises(ValidationError, match=word):
        AugmentConfig(**settings)
