# SPDX-License-Identifier: Apache-2.0
"""Datumaro's layout: what its JSON says becomes labels and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.drawing import draw, prepared, save
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask
from wsss_ray.data.layouts import detect_layout

pytest.importorskip("pycocotools")
NAMES = ("background", "cat", "dog")


def box_ring(mask: np.ndarray) -> list[int]:
    """The corners of a drawn square."""
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return [left, top, right, top, right, bottom, left, bottom]


def make_datumaro(root: Path, subsets: tuple[str, ...] = ("default",), change: Any = None, number: int = 6) -> Path:
    """``number`` drawn images a subset, each with one square as a polygon."""
    for place, subset in enumerate(subsets):
        items = []
        for index in range(number):
            image, mask = draw([index % 2], 10 * place + index)
            save(root / "images" / subset / "cam 1" / f"{index}.v1.png", image)
            annotations = [
                {"id": 0, "type": "label", "label_id": 1 + index % 2, "group": 0, "attributes": {}},
                {"id": 1, "type": "polygon", "points": box_ring(mask), "label_id": 1 + index % 2, "z_order": 0},
            ]
            item = {"id": f"cam 1/{index}.v1", "annotations": annotations, "attr": {"frame": index}}
            items.append(item | {"image": {"path": f"cam 1/{index}.v1.png", "size": [40, 48]}})
        labels = [{"name": name, "parent": "", "attributes": []} for name in NAMES]
        value = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": items}
        if change is not None:
            change(value)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{subset}.json").write_text(json.dumps(value))
    return root


@pytest.mark.parametrize("subsets", [("default",), ("train", "validation")])
def test_polygons_become_masks(tmp_path, subsets):
    root = make_datumaro(tmp_path / "d", subsets)
    found = detect_layout(root)
    assert found.source == "datumaro"
    data, rows = prepared(tmp_path / "out", root, found.source)
    assert data.manifest.classes == ("cat", "dog")
    assert set(data.manifest.splits) == {"train", "val"}
    assert len(rows) == 6 * len(subsets)
    assert data.notes == []
    for name, row in rows.items():
        index, place = int(name.split("__")[-1].split(".")[0]), int(name.startswith("validation"))
        np.testing.assert_array_equal(decode_mask(row["mask"]), draw([index % 2], 10 * place + index)[1])
        assert row["labels"] == [index % 2]


def test_what_lies_on_top_stays_visible(tmp_path):
    ring = [0, 0, 48, 0, 48, 40, 0, 40]

    def change(value):
        for item in value["items"]:
            item["annotations"] = [
                {"type": "polygon", "points": [8, 8, 24, 8, 24, 24, 8, 24], "label_id": 2, "z_order": 1},
                {"type": "polygon", "points": ring, "label_id": 1, "z_order": 0},
            ]

    _, rows = prepared(tmp_path / "out", make_datumaro(tmp_path / "d", change=change), "datumaro")
    mask = decode_mask(rows["cam 1__0.v1"]["mask"])
    assert mask[16, 16] == 2
    assert mask[30, 30] == 1


@pytest.mark.parametrize("image", [{}, {"path": ""}, {"path": "cam 1/{}.v1.png"}])
def test_sizes_and_paths_may_be_missing(tmp_path, image):
    def change(value):
        for index, item in enumerate(value["items"]):
            item["image"] = {key: text.format(index) for key, text in image.items()}

    _, rows = prepared(tmp_path / "out", make_datumaro(tmp_path / "d", change=change), "datumaro")
    np.testing.assert_array_equal(decode_mask(rows["cam 1__1.v1"]["mask"]), draw([1], 1)[1])


def test_run_lengths_and_boxes(tmp_path):
    """Masks of run lengths are drawn; boxes give labels alone, and are counted."""

    def change(value):
        for index, item in enumerate(value["items"]):
            mask = draw([index % 2], index)[1] > 0
            flat = mask.T.reshape(-1)
            steps = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff(np.concatenate([[0], steps, [flat.size]])).tolist()
            shape = {"type": "mask", "rle": {"counts": counts, "size": [40, 48]}}
            item["annotations"] = [shape if index else {"type": "bbox", "bbox": [1, 1, 5, 5]}]
            item["annotations"][0] |= {"label_id": 1 + index % 2, "z_order": 0}

    data, rows = prepared(tmp_path / "out", make_datumaro(tmp_path / "d", change=change), "datumaro")
    assert rows["cam 1__0.v1"]["mask"] is None
    assert rows["cam 1__0.v1"]["labels"] == [0]
    np.testing.assert_array_equal(decode_mask(rows["cam 1__3.v1"]["mask"]), draw([1], 3)[1])
    assert any("1 of 6 images have boxes" in note for note in data.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["categories"].clear(), "names no labels"),
        (lambda v: v.update(items={}), "has no list of items"),
        (lambda v: v["items"].append(3), "item 3: not an item"),
        (lambda v: v["items"][0]["annotations"][0].update(label_id=9), "label 9 but there are 3"),
        (lambda v: v["items"][0]["annotations"][1].pop("points"), "not an item in Datumaro's format"),
    ],
)
def test_files_that_are_wrong_are_one_line(tmp_path, change, message):
    root = make_datumaro(tmp_path / "d", change=change)
    with pytest.raises(UserError, match=rf"default\.json.*{message}") as error:
        prepared(tmp_path / "out", root, "datumaro")
    assert "\n" not in str(error.value)


def test_subsets_with_other_labels_are_refused(tmp_path):
    root = make_datumaro(tmp_path / "d", ("train", "val"))
    path = root / "annotations/val.json"
    path.write_text(path.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(UserError, match=r"train\.json and .*val\.json list other labels"):
        prepared(tmp_path / "out", root, "datumaro")
