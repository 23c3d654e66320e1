# SPDX-License-Identifier: Apache-2.0
"""Every bad input ends as one line that names the file and the fix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.checks import file_loader, load_item, plain_reading, validate_row
from wsss_ray.data.image import decode_mask, encode_grey, encode_jpeg, encode_mask, rotate
from wsss_ray.data.source import Item, Source

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.fixture
def good(tmp_path: Path) -> Item:
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(IMAGE))
    (tmp_path / "a.png").write_bytes(encode_mask(np.eye(20, 30, dtype=np.uint8) * 2))
    (tmp_path / "s.png").write_bytes(encode_grey(IMAGE[..., 0]))
    paths = [str(tmp_path / name) for name in ("a.jpg", "a.png", "s.png")]
    return Item("a", paths[0], (1,), mask=paths[1], saliency=paths[2], splits=("train",))


def source_of(*items: Item, splits: tuple[str, ...] = ("train",)) -> Source:
    return Source("test", ["cat", "dog"], items, file_loader(2), splits=splits)


def lines(*items: Item, splits: tuple[str, ...] = ("train",), level: str = "error", fast: bool = False) -> list[str]:
    found = find_problems(source_of(*items, splits=splits), fast=fast)
    assert all("\n" not in str(problem) for problem in found)
    return [str(problem) for problem in found if problem.level == level]


def changed(item: Item, **fields) -> Item:
    return Item(**{**item.__dict__, **fields})


def test_good_image(good):
    assert lines(good) == []
    row = load_item(good, plain_reading(2))
    assert (row["height"], row["width"], row["labels"]) == (20, 30, [1])
    assert validate_row(row, plain_reading(2)) == []


def test_missing_image(good, tmp_path):
    item = changed(good, image=str(tmp_path / "gone.jpg"))
    for fast in (False, True):
        (line,) = lines(item, fast=fast)
        assert "gone.jpg" in line
        assert "No such file" in line
        assert "list" in line
    with pytest.raises(UserError, match=r"gone\.jpg"):
        load_item(item, plain_reading(2))
    assert "has no image" in lines(changed(good, image=None, labels=None))[0]


def test_truncated_jpeg(good):
    path = Path(good.image)
    path.write_bytes(path.read_bytes()[:-300])
    (line,) = lines(good)
    assert "a.jpg: damaged or cut short" in line
    assert lines(good, fast=True) == [], "the fast pass reads headers only"
    with pytest.raises(UserError, match=r"a\.jpg: damaged"):
        load_item(good, plain_reading(2))


def test_unreadable_image(good):
    Path(good.image).write_text("not an image")
    for fast in (False, True):
        assert "a.jpg: cannot decode image" in lines(good, fast=fast)[0]


@pytest.mark.parametrize("kind", ["mask", "saliency"])
def test_size_mismatch(good, kind):
    path = Path(getattr(good, kind))
    path.write_bytes(encode_mask(np.zeros((20, 31), np.uint8)) if kind == "mask" else encode_grey(IMAGE[:, :29, 0]))
    for fast in (False, True):
        (line,) = lines(good, fast=fast)
        assert path.name in line
        assert "but its image is 20x30" in line


@pytest.mark.parametrize("kind", ["mask", "saliency"])
def test_missing_mask_or_saliency(good, kind):
    Path(getattr(good, kind)).unlink()
    (line,) = lines(good)
    assert Path(getattr(good, kind)).name in line
    assert "cannot be read" in line


def test_mask_index_out_of_range(good):
    Path(good.mask).write_bytes(encode_mask(np.full((20, 30), 3, np.uint8)))
    (line,) = lines(good)
    assert "a.png: index 3 but there are 2 classes" in line
    assert "255" in line
    Path(good.mask).write_bytes(encode_mask(np.full((20, 30), 255, np.uint8)))
    assert lines(good) == []


def test_colour_mask(good):
    Image.fromarray(IMAGE).save(good.mask)
    assert "colour image" in lines(good)[0]


def test_unknown_class_name(good):
    item = changed(good, extra={"unknown_classes": {"zebra": ""}, "labels_file": "labels.csv:7"})
    (line,) = lines(item)
    assert "labels.csv:7" in line
    assert "'zebra'" in line
    assert "classes" in line
    with pytest.raises(UserError, match="zebra"):
        load_item(item, plain_reading(2))


def test_label_out_of_range(good):
    assert "outside 0..1" in lines(changed(good, labels=(2,)))[0]


def test_duplicate_id(good):
    (line,) = lines(good, good)
    assert line.startswith("a: id is used twice")


def test_empty_split(good):
    (line,) = lines(good, splits=("train", "val"))
    assert "split 'val'" in line
    assert "no images" in line


def test_no_images_at_all():
    assert any("check the folder" in line for line in lines(splits=()))


@pytest.mark.parametrize("labels", [None, ()])
def test_image_without_label(good, labels):
    item = changed(good, labels=labels)
    assert lines(item) == []
    assert any("has no label" in line for line in lines(item, level="warning"))
    test = changed(item, splits=("test",))
    assert not any("has no label" in line for line in lines(test, splits=("test",), level="warning"))
    assert load_item(item, plain_reading(2))["labels"] == (None if labels is None else [])


def test_image_in_no_split_and_unused_class(good):
    warnings = lines(changed(good, splits=()), splits=(), level="warning")
    assert any("in no split" in line for line in warnings)
    assert any("no image has class cat" in line for line in warnings)


def test_rotated_image_turns_a_mask_drawn_on_raw_pixels(good):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(good.image, exif=exif)
    raw = np.zeros((20, 30), np.uint8)
    raw[0, 0] = 1
    Path(good.mask).write_bytes(encode_mask(raw))
    row = load_item(good, plain_reading(2))
    assert (row["height"], row["width"]) == (30, 20)
    mask = decode_mask(row["mask"])
    assert mask.shape == (30, 20)
    assert mask[0, 19] == 1
    # One that already has the size as shown stays as it is.
    shown = rotate(raw, 6)
    Path(good.mask).write_bytes(encode_mask(shown))
    Path(good.saliency).write_bytes(encode_grey(shown))
    np.testing.assert_array_equal(decode_mask(load_item(good, plain_reading(2))["mask"]), shown)
    assert lines(good) == []


def test_masks_that_are_no_png_become_one(good):
    raw = np.zeros((20, 30), np.uint8)
    raw[3, 4] = 2
    path = Path(good.mask).with_suffix(".bmp")
    Image.fromarray(raw).save(path)
    row = load_item(changed(good, mask=str(path)), plain_reading(2))
    assert row["mask"].startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_mask(row["mask"]), raw)


def test_row_with_wrong_size(good):
    row = load_item(good, plain_reading(2))
    row["width"] = 31
    assert "row says 20x31, image is 20x30" in str(validate_row(row, plain_reading(2))[0])


def test_several_problems_of_one_image_are_all_found(good):
    Path(good.mask).unlink()
    Path(good.saliency).unlink()
    assert len(lines(changed(good, labels=(9,)))) == 3


@pytest.mark.parametrize("count", [0, 255])
def test_number_of_classes(count):
    with pytest.raises(UserError, match="1 to 254"):
        Source("test", [str(number) for number in range(count)], (), file_loader(count))


def test_class_listed_twice():
    with pytest.raises(UserError, match="'cat' is listed twice"):
        Source("test", ["cat", "dog", "cat"], (), file_loader(3))
