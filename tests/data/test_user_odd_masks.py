# SPDX-License-Identifier: Apache-2.0
"""Masks that contradict something: one split alone, stated colours against known ones, classes that no mask shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.drawing import draw, prepared, save, tagged, write_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask, voc_palette

SWAP = np.array([0, 2, 1], np.uint8)


def right(rows, number: int = 2) -> bool:
    """Every mask is the one that was drawn for its image."""
    return all(
        np.array_equal(decode_mask(row["mask"]), draw([int(name[1:]) % number], int(name[1:]))[1])
        for name, row in rows.items()
    )


def save_palette(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    image = Image.fromarray(mask, "L")
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_a_split_whose_masks_are_wrong_is_refused_though_most_are_right(tmp_path):
    root = tagged(tmp_path / "m", 20)
    splits = ["val" if n >= 15 else "train" for n in range(20)]
    write_table(
        root / "labels.csv",
        [(f"p{n}.jpg", ("cat", "dog")[n % 2], splits[n]) for n in range(20)],
        ("image", "labels", "split"),
    )
    prepared(tmp_path / "right", root)
    for n in range(15, 20):
        save(root / "masks" / f"p{n}.png", SWAP[draw([n % 2], n)[1]])
    with pytest.raises(UserError, match=r"split 'val': masks of 5 of 5 images contradict .*--classes dog,cat"):
        prepared(tmp_path / "wrong", root)


def test_a_class_that_no_mask_shows_is_named(tmp_path):
    root = tagged(tmp_path / "m", 12, ("cat", "dog", "cow"))
    for n in range(2, 12, 3):
        save(root / "masks" / f"p{n}.png", np.zeros((40, 48), np.uint8))
    data, _ = prepared(tmp_path / "out", root)
    assert any("no mask shows 'cow' (4 images)" in note for note in data.notes)


def test_masks_that_are_ignored_everywhere(tmp_path):
    root = tagged(tmp_path / "m", values=lambda mask: np.full_like(mask, 255))
    with pytest.raises(UserError, match=r"8 of 8 images are 255 everywhere, which is ignored"):
        prepared(tmp_path / "out", root)


def test_stated_colours_come_before_the_known_palette(tmp_path):
    root = tagged(tmp_path / "m")
    for n in range(8):
        save_palette(root / "masks" / f"p{n}.png", SWAP[draw([n % 2], n)[1]], voc_palette())
    (root / "labelmap.txt").write_text("background:0,0,0::\ndog:128,0,0::\ncat:0,128,0::\n")
    assert right(prepared(tmp_path / "out", root)[1])


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_greys_of_a_list_of_colours(tmp_path, mode):
    root = tagged(tmp_path / "m")
    for n in range(8):
        stored = np.array([0, 2, 1], np.uint8)[draw([n % 2], n)[1]]
        path = root / "masks" / f"p{n}.png"
        if mode == "P":
            save_palette(path, stored, np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1))
        else:
            save(path, np.stack([stored] * 3, -1) if mode == "RGB" else stored)
    (root / "labelmap.txt").write_text("background:0,0,0::\ncat:2,2,2::\ndog:1,1,1::\n")
    assert right(prepared(tmp_path / "out", root)[1])


def test_stated_values_come_before_the_known_colours(tmp_path):
    """Grey 128 is a colour of VOC; as a stated value of a mask saved in colours it means what was stated."""
    names = tuple("abcdefg")
    values = np.array([0, 20, 40, 60, 80, 128, 120, 140], np.uint8)
    root = tagged(tmp_path / "m", 14, names, lambda mask: np.stack([values[mask]] * 3, -1))
    stated = ",".join(f"{value}:{name}" for value, name in zip(values[1:], names, strict=True))
    assert right(prepared(tmp_path / "out", root, mask_values=stated)[1], 7)


def test_black_is_background_where_stated_colours_do_not_say(tmp_path):
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    root = tagged(tmp_path / "m", values=lambda mask: colours[mask])
    assert right(prepared(tmp_path / "out", root, mask_values="#ff0000:cat,#0000ff:dog")[1])
    with pytest.raises(UserError, match="holds no indices; leave masks_by=index out"):
        prepared(tmp_path / "other", root, masks_by="index")


def test_masks_named_by_a_table_are_those_of_the_folder(tmp_path):
    root = tagged(tmp_path / "m")
    for n in range(8):
        (root / "masks" / f"p{n}.png").rename(root / "masks" / f"other {n}.png")
    rows = [(f"p{n}.jpg", ("cat", "dog")[n % 2], f"masks/other {n}.png") for n in range(8)]
    write_table(root / "labels.csv", rows, ("image", "labels", "mask"))
    data, found = prepared(tmp_path / "out", root)
    assert right(found)
    assert data.notes == []
    assert all(row["mask"] is None for row in prepared(tmp_path / "none", root, masks="none")[1].values())


def test_a_folder_that_looks_like_masks_is_pointed_out(tmp_path):
    root = tagged(tmp_path / "m")
    (root / "masks").rename(root / "gt")
    data, rows = prepared(tmp_path / "out", root)
    assert any(f"--set masks={root / 'gt'}" in note for note in data.notes)
    assert all(row["mask"] is None for row in rows.values())
    assert right(prepared(tmp_path / "given", root, masks=str(root / "gt"))[1])


def test_a_class_may_be_called_mask(tmp_path):
    for n in range(6):
        save(tmp_path / "m" / ("mask", "no mask")[n % 2] / f"{n // 2}.jpg", draw([n % 2], n)[0])
    with pytest.raises(UserError, match=r"mask/0\.jpg: JPEG"):
        prepared(tmp_path / "out", tmp_path / "m")
    data, rows = prepared(tmp_path / "none", tmp_path / "m", masks="none")
    assert data.manifest.classes == ("mask", "no mask")
    assert len(rows) == 6
