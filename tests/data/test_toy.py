# SPDX-License-Identifier: Apache-2.0
"""The generated set: repeatable by index, true to its labels, and as hard as it says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.checks import plain_reading, validate_row
from wsss_ray.data.image import decode_image, decode_mask, decode_saliency
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig, class_names, draw_image, plan_image
from wsss_ray.data.toy_drawing import imperfect_saliency

SMALL = ToyConfig(num_train=24, num_val=8, size=64)


def test_rows_are_whole():
    source = open_source("toy", config=SMALL)
    items = list(source.items)
    assert (len(items), source.splits, len(source.classes)) == (32, ("train", "val"), 5)
    assert [problem for problem in find_problems(source) if problem.level == "error"] == []
    for item in items[::5]:
        row = source.load(item)
        assert validate_row(row, plain_reading(5)) == []
        mask, parts = decode_mask(row["mask"]), decode_mask(row["parts"])
        assert decode_image(row["image"]).shape == (64, 64, 3)
        assert decode_saliency(row["saliency"]).shape == (64, 64)
        assert tuple(sorted(set(np.unique(mask).tolist()) - {0})) == tuple(label + 1 for label in item.labels)
        np.testing.assert_array_equal(mask > 0, parts > 0)


def test_an_image_depends_on_its_index_alone():
    alone = draw_image(SMALL, "train", 7)
    more = SMALL.model_copy(update={"num_train": 9999})
    draw_image(more, "train", 3)
    for first, second in zip(alone, draw_image(more, "train", 7), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(alone[0], draw_image(SMALL, "train", 12)[0])
    assert not np.array_equal(alone[0], draw_image(SMALL, "val", 7)[0])
    assert not np.array_equal(alone[0], draw_image(SMALL.model_copy(update={"seed": 1}), "train", 7)[0])


@pytest.mark.parametrize("num_classes", [1, 2, 5, 254])
def test_labels_are_what_the_mask_shows(num_classes):
    config = ToyConfig(num_classes=num_classes, size=48, clutter=1.0, occlusion=1.0)
    for index in range(40):
        _, mask, parts, _ = draw_image(config, "train", index)
        planned = {creature.label + 1 for creature in plan_image(config, "train", index).creatures}
        counts = {int(value): int((mask == value).sum()) for value in np.unique(mask) if value}
        assert set(counts) == planned
        assert min(counts.values()) >= 5
        assert set(np.unique(parts).tolist()) <= {0, 1, 2}


def test_every_class_comes_once_in_a_round():
    config = ToyConfig(num_classes=9)
    labels = [{creature.label for creature in plan_image(config, "train", index).creatures} for index in range(9)]
    assert set().union(*labels) == set(range(9))


def test_heads_are_small_and_sizes_vary():
    ratios, areas = [], []
    for index in range(60):
        _, mask, parts, _ = draw_image(ToyConfig(size=64, clutter=0), "train", index)
        ratios.append((parts == 1).sum() / (parts > 0).sum())
        areas += [(mask == value).mean() for value in np.unique(mask) if value]
    assert 0.15 < np.mean(ratios) < 0.4, "the body is much larger than the head"
    assert np.quantile(areas, 0.9) > 3 * np.quantile(areas, 0.1)


def _colour_spread(noise: float) -> tuple[float, float]:
    """How far apart mean head colours, and mean body colours, of one class lie in different images."""
    config = ToyConfig(num_classes=1, size=64, clutter=0, body_hue_noise=noise)
    heads, bodies = [], []
    for index in range(40):
        rgb, _, parts, _ = draw_image(config, "train", index)
        heads.append(rgb[parts == 1].mean(axis=0))
        bodies.append(rgb[parts == 2].mean(axis=0))
    return float(np.std(heads, axis=0).mean()), float(np.std(bodies, axis=0).mean())


def test_head_names_the_class_and_body_does_not():
    head, body = _colour_spread(1.0)
    _, steady = _colour_spread(0.0)
    assert body > 2 * head
    assert body > 1.4 * steady


def test_landscape_goes_with_the_class():
    always = ToyConfig(cooccurrence=1.0)
    never = ToyConfig(cooccurrence=0.0)
    expected = [index % 5 for index in range(50)]
    assert [plan_image(always, "train", index).landscape for index in range(50)] == expected
    assert [plan_image(never, "train", index).landscape for index in range(50)] != expected


def test_saliency_quality():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:50, 10:40] = 3
    nothing = np.zeros((64, 64), np.float32)
    np.testing.assert_array_equal(imperfect_saliency(mask, nothing, 1.0, rng), (mask > 0) * 255)
    errors = []
    for quality in (0.9, 0.5, 0.0):
        maps = [imperfect_saliency(mask, nothing, quality, np.random.default_rng(seed)) for seed in range(20)]
        errors.append(np.mean([np.abs(found / 255 - (mask > 0)).mean() for found in maps]))
    assert errors[0] < errors[1] < errors[2]


def test_names():
    names = class_names(254)
    assert len(set(names)) == 254
    assert class_names(5) == names[:5]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"num_classes": 255}, "num_classes"),
        ({"min_radius": 0.3, "max_radius": 0.2}, "swap them"),
        ({"colour": 1}, "colour"),
        ({"config": SMALL, "size": 3}, "not both"),
    ],
)
def test_wrong_options(options, word):
    with pytest.raises(UserError, match=word):
        open_source("toy", **options)


def test_no_validation_images():
    assert open_source("toy", num_train=2, num_val=0).splits == ("train",)
