# SPDX-License-Identifier: Apache-2.0
"""Annotations and layouts as tools and people really write them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.data.drawing import draw, prepared, save, tagged
from tests.data.test_user_layouts import single, voc
from wsss_ray.config import UserError
from wsss_ray.data.layouts import detect_layout
from wsss_ray.data.names import gather_classes


def each(change):
    """A change of every annotation."""
    return lambda value: [change(one) for one in value["annotations"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (each(lambda one: one["segmentation"][0].__setitem__(0, 1e308)), r"a polygon reaches 1e\+308"),
        (each(lambda one: one.update(segmentation={"size": [40, 48], "counts": []})), "RLE covers 0 pixels"),
        (each(lambda one: one.update(segmentation=[[1, 1, 5, 5]])), "a polygon of 2 points"),
        (each(lambda one: one.update(segmentation=[[1, 1, 5, 5, 6]])), "half a point"),
        (each(lambda one: one.update(segmentation=[{"x": 1}])), "a polygon is a list of numbers"),
        (lambda v: [one.update(height=20, width=24) for one in v["images"]], "is 20x24 .height x width. there"),
    ],
)
def test_the_same_mistake_everywhere_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert "\n" not in str(error.value)
    assert "6 of 6 images" in str(error.value)
    assert "instances_default.json" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        each(lambda one: one.update(segmentation=[])),
        each(lambda one: one.update(segmentation=[[]])),
        each(lambda one: one.update(segmentation=None)),
        each(lambda one: one.pop("segmentation")),
    ],
)
def test_boxes_of_any_spelling_have_no_mask(tmp_path, change):
    data, rows = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert all(row["mask"] is None and row["labels"] for row in rows.values())
    assert any("6 of 6 images have annotations without a shape" in note for note in data.notes)


@pytest.mark.parametrize("crowd", ["0", 0, None, False])
def test_crowds_are_read_by_value(tmp_path, crowd):
    root = single(tmp_path / "c", each(lambda one: one.update(iscrowd=crowd)))
    _, rows = prepared(tmp_path / "out", root, "coco", crowd="excluded")
    assert all(row["mask"] is not None for row in rows.values())
    assert len(rows) == 6


def test_a_root_category_may_have_the_name_of_a_class(tmp_path):
    def change(value):
        value["categories"] = [
            {"id": 0, "name": "cat", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "cat"},
            {"id": 2, "name": "dog", "supercategory": "cat"},
        ]

    data, _ = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert data.manifest.classes == ("cat", "dog")
    assert any("root of another one" in note for note in data.notes)


@pytest.mark.parametrize("name", ["C:\\set\\{}", "/set/{}", "../../{}", "images/{}", "./{}"])
def test_file_names_never_lead_out(tmp_path, name):
    change = lambda v: [one.update(file_name=name.format(one["file_name"])) for one in v["images"]]  # noqa: E731
    data, rows = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert len(rows) == 6
    assert all(".." not in file and not file.startswith("/") and ":" not in file for file in data.file_names().values())


@pytest.mark.parametrize(
    "name",
    [
        "coco.json",
        "labels.json",
        "instances_default.json",
        "annotations/coco.json",
        "annotations/annotations.json",
        "annotations/_annotations.coco.json",
    ],
)
def test_annotations_are_found_by_content(tmp_path, name):
    root = single(tmp_path / "c", lambda value: None)
    (root / "annotations/instances_default.json").rename(root / "moved")
    (root / "moved").rename(root / name)
    found = detect_layout(root)
    assert found.source == "coco"
    data, rows = prepared(tmp_path / "out", root, "coco")
    assert len(rows) == 6
    assert set(data.manifest.splits) == {"train", "val"}


def test_a_table_comes_before_json_of_any_name(tmp_path):
    root = tagged(tmp_path / "m")
    (root / "other.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert detect_layout(root).source == "folder"


def test_images_without_labels_are_told_apart_from_no_images(tmp_path):
    root = tagged(tmp_path / "m")
    (root / "labels.csv").unlink()
    with pytest.raises(UserError, match="holds 8 images, but nothing says their labels; add labels.csv"):
        prepared(tmp_path / "out", root, "folder")
    assert np.size(list((root / "images").iterdir())) == 8


@pytest.mark.parametrize("year", ["VOC2007", "VOC2012"])
def test_devkits_of_any_year_are_devkits(tmp_path, year):
    root = voc(tmp_path / "v", list("abcd"), {"train": "a\nb\n", "val": "c\nd\n"})
    (root / "VOC2012").rename(root / "moved")
    (root / "moved").rename(root / year)
    assert detect_layout(root).source == "voc"
    _, rows = prepared(tmp_path / "out", root, "voc")
    assert set(rows) == set("abcd")
    if year != "VOC2012":
        shutil.copytree(root / year, root / "VOC2008")
        with pytest.raises(UserError, match="VOC2007 and VOC2008 both hold JPEGImages; give one of them"):
            prepared(tmp_path / "two", root, "voc")


def test_a_folder_around_the_classes_is_no_class(tmp_path):
    for n in range(6):
        save(tmp_path / "m" / "dataset" / ("cat", "dog")[n % 2] / f"{n}.jpg", draw([n % 2], n)[0])
    with pytest.raises(UserError, match=r"all images lie below dataset, .* \(dataset/cat, dataset/dog\)"):
        prepared(tmp_path / "out", tmp_path / "m")
    data, _ = prepared(tmp_path / "inner", tmp_path / "m" / "dataset")
    assert data.manifest.classes == ("cat", "dog")


def test_dashes_and_apostrophes_look_alike_and_mixed_scripts_are_noted():
    found = gather_classes(["t-shirt", "t\u2010shirt", "t\u2013shirt", "it's", "it\u2019s"])
    assert len(found.names) == 2
    assert len(found.notes) == 2
    mixed = gather_classes(["cat", "\u0441at", "\u043a\u043e\u0448\u043a\u0430", "na\u00efve"])
    assert len(mixed.names) == 4
    assert [note for note in mixed.notes if "mixes letters" in note] == [
        "class '\\u0441at' (\u0441at) mixes letters of two scripts that look alike: is it meant?"
    ]
