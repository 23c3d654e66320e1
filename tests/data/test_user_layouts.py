# SPDX-License-Identifier: Apache-2.0
"""Layouts that tools export: found without renaming, read right, and what this project writes goes back in."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.drawing import draw, prepared, save, shown, tagged, write_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask, encode_mask
from wsss_ray.data.layouts import detect_layout
from wsss_ray.data.options import parse_settings
from wsss_ray.data.sources import open_source

pytest.importorskip("pycocotools")
pytest.importorskip("ijson")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))


def right(rows) -> bool:
    return all(set(shown(row)) - {0, 255} == {label + 1 for label in row["labels"]} for row in rows.values())


def voc(root: Path, ids: list[str], lists: dict[str, str], ending: str = ".jpg") -> Path:
    folder = root / "VOC2012"
    for place, name in enumerate(ids):
        image, mask = draw([place % 2], place)
        format_ = "PNG" if ending.lower() == ".png" else "JPEG"
        save(folder / "JPEGImages" / f"{name}{ending}", image, format=format_)
        save(folder / "SegmentationClass" / f"{name}.png", mask)
        label = ("aeroplane", "bicycle")[place % 2]
        (folder / "Annotations").mkdir(exist_ok=True)
        text = f"<annotation><object><name>{label}</name></object></annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split, text in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_bytes(text.encode())
    return root


@pytest.mark.parametrize(
    ("ids", "lines"),
    [
        (["a.rgb.1", "a.rgb.2", "a"], ["a.rgb.1", "a.rgb.2", "a"]),
        (["img 0", "img", "img 1"], ["img 0", "img", '"img 1"']),
        (["x", "y", "z"], ["x 1", "y -1", "z  1"]),
        (["x", "y", "z"], [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in "xyz"]),
        (
            ["\u00dcb 1", "\u00e9", "q"],
            [unicodedata.normalize("NFD", "\u00dcb 1"), unicodedata.normalize("NFD", "\u00e9"), "q"],
        ),
    ],
)
@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_voc_lists_of_any_names(tmp_path, ids, lines, start, end):
    root = voc(tmp_path / "v", ids, {"train": start + end.join(lines) + end})
    _, rows = prepared(tmp_path / "out", root, "voc")
    assert sorted(rows) == sorted(ids)
    assert [rows[name]["labels"] for name in ids] == [[0], [1], [0]]
    assert right(rows)


@pytest.mark.parametrize("ending", [".JPG", ".png", ".jpeg"])
def test_voc_endings(tmp_path, ending):
    root = voc(tmp_path / "v", ["a", "b"], {"train": "a\n", "val": f"b{ending}\n"}, ending)
    _, rows = prepared(tmp_path / "out", root, "voc")
    assert sorted(rows) == ["a", "b"]


def test_voc_clashes_are_refused_and_the_rest_counted(tmp_path):
    root = voc(tmp_path / "v", ["a", "b", "c"], {"train": "a\n", "val": "b\n"})
    assert open_source("voc", root).notes == ["used 2 of 3 images: 1 on no list"]
    save(root / "VOC2012/JPEGImages/a.png", draw([0], 0)[0])
    with pytest.raises(UserError, match=r"a\.jpg and a\.png both fit a; remove or rename one"):
        prepared(tmp_path / "out", root, "voc")


def test_voc_export_of_cvat(tmp_path):
    root = voc(tmp_path / "v", list("abcdefgh"), {"default": "\n".join("abcdefgh")})
    folder = root / "VOC2012"
    colours = np.array([(0, 0, 0), (9, 99, 3), (7, 8, 200)], np.uint8)
    for place, name in enumerate("abcdefgh"):
        save(folder / "SegmentationClass" / f"{name}.png", colours[draw([place % 2], place)[1]])
        path = folder / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("aeroplane", "rust").replace("bicycle", "dent"))
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndent:7,8,200::\nrust:9,99,3::\n"
    )
    data, rows = prepared(tmp_path / "out", root, "voc")
    assert data.manifest.classes == ("dent", "rust")
    assert list(data.manifest.splits) == ["train", "val"]
    assert right(rows)
    assert rows["a"]["labels"] == [1]


def coco_json(place: int, number: int, names: bool = False) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Annotations of ``number`` drawn images, and their masks."""
    images, annotations, masks = [], [], []
    for index in range(number):
        image, mask = draw([index % 2], place + index)
        ys, xs = np.nonzero(mask)
        x, y, right_, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        key: Any = f"key-{index}" if names else index
        images.append({"id": key, "file_name": f"{place + index}.jpg", "height": 40, "width": 48})
        annotations.append(
            {
                "id": index,
                "image_id": key,
                "category_id": 1 + index % 2,
                "segmentation": [[x, y, right_, y, right_, bottom, x, bottom]],
                "area": int(mask.astype(bool).sum()),
                "bbox": [x, y, right_ - x, bottom - y],
                "iscrowd": 0,
            }
        )
        masks.append((image, mask))
    categories = [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}]
    return {"images": images, "annotations": annotations, "categories": categories}, masks


ANNOTATIONS = "annotations/instances"
LAYOUTS = {
    "coco": [(f"{ANNOTATIONS}_train2014.json", "train2014"), (f"{ANNOTATIONS}_val2014.json", "val2014")],
    "no years": [(f"{ANNOTATIONS}_train.json", "train"), (f"{ANNOTATIONS}_Val.json", "images/Val")],
    "roboflow": [("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")],
    "cvat": [(f"{ANNOTATIONS}_default.json", "images/default")],
    "own export": [(f"{ANNOTATIONS}_default.json", "images")],
    "label studio": [("result.json", "images")],
    "one folder": [("_annotations.coco.json", ".")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", [False, True])
def test_layouts_of_coco_are_found(tmp_path, layout, names):
    root, expected = tmp_path / "c", {}
    for place, (file, folder) in enumerate(LAYOUTS[layout]):
        value, drawn = coco_json(10 * place, 8, names)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(value))
        for entry, (image, mask) in zip(value["images"], drawn, strict=True):
            save(root / folder / entry["file_name"], image)
            expected[Path(entry["file_name"]).stem] = mask
    found = detect_layout(root)
    assert found.source == "coco"
    assert str(root) in found.found
    data, rows = prepared(tmp_path / "out", root, "coco", **found.options)
    assert data.manifest.classes == ("cat", "dog")
    assert set(data.manifest.splits) == {"train", "val"}
    for name, mask in expected.items():
        np.testing.assert_array_equal(decode_mask(rows[name]["mask"]), mask)
    assert data.notes == []


def single(root: Path, change, number: int = 6) -> Path:
    value, drawn = coco_json(0, number)
    change(value)
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/instances_default.json").write_text(json.dumps(value))
    for entry, (image, _) in zip(value["images"], drawn, strict=True):
        save(root / "images" / entry["file_name"], image)
    return root


def test_boxes_alone_are_no_background(tmp_path):
    def change(value):
        for one in value["annotations"][::2]:
            one["segmentation"] = []

    data, rows = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert [rows[str(place)]["mask"] is None for place in range(6)] == [True, False] * 3
    assert any("3 of 6 images have annotations without a shape" in note for note in data.notes)


def test_areas_of_0_are_measured(tmp_path):
    def change(value):
        for one in list(value["annotations"]):
            one["area"] = 0
            x, y, width, height = one["bbox"]
            ring = [x + 2, y + 2, x + 6, y + 2, x + 6, y + 6, x + 2, y + 6]
            small = {**one, "id": 100 + one["id"], "segmentation": [ring], "category_id": 3 - one["category_id"]}
            value["annotations"].insert(0, small)

    _, rows = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert all(shown(row) == [0, 1, 2] for row in rows.values())


def test_a_root_category_is_no_class(tmp_path):
    def change(value):
        value["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
            {**one, "supercategory": "pets"} for one in value["categories"]
        ]

    data, rows = prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert data.manifest.classes == ("cat", "dog")
    assert right(rows)
    assert any("'pets' has no annotation and was left out" in note for note in data.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["annotations"][0]["segmentation"][0].__setitem__(0, math.nan),
            r"line 1 holds NaN, which is no number",
        ),
        (
            lambda v: [one.update(segmentation=[[-900, -900, 900, -900, 900, 900]]) for one in v["annotations"]],
            "outside=cut",
        ),
        (lambda v: v["categories"].append({"id": 9, "name": "Cat"}), r"classes 'cat' and 'Cat' look alike"),
    ],
)
def test_coco_files_that_are_wrong_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        prepared(tmp_path / "out", single(tmp_path / "c", change), "coco")
    assert "\n" not in str(error.value)


def test_coco_names_that_repeat_and_unlisted_images(tmp_path):
    root = tmp_path / "c"
    for split in ("train", "valid"):
        value, drawn = coco_json(0, 4)
        for entry, (image, _) in zip(value["images"], drawn, strict=True):
            entry["file_name"] = f"cam{entry['id'] % 2}\\{entry['id'] // 2}.jpg"
            save(root / split / entry["file_name"].replace("\\", "/"), image)
        (root / split / "_annotations.coco.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    save(root / "train" / "extra.jpg", draw([0], 0)[0])
    data, rows = prepared(tmp_path / "out", root, "coco")
    assert set(rows) == {f"{split}__cam{a}__{b}" for split in ("train", "val") for a in (0, 1) for b in (0, 1)}
    assert right(rows)
    assert "used 8 of 9 images: 1 not listed in the annotations" in data.notes


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_coco_files_in_other_encodings(tmp_path, encoding):
    root = single(tmp_path / "c", lambda value: value["categories"][0].update(name="K\u00e4fer"))
    file = root / "annotations/instances_default.json"
    file.write_bytes(json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode(encoding))
    assert open_source("coco", root).classes == ["K\u00e4fer", "dog"]


ODD = [
    "IMG 1.JPG",
    "a#b.jpeg",
    "100%.jpg",
    "q?x=1.png",
    "plus+sign.jpg",
    "\u00dcb/\u00df.jpg",
    "x/1.jpg",
    "y/1.jpg",
    "\u732b.png",
]


def odd_masks(root: Path) -> dict[str, np.ndarray]:
    """Images with odd names below root/images; their masks, with holes and pixels that touch at corners."""
    rng, masks = np.random.default_rng(3), {}
    for place, name in enumerate(ODD):
        save(root / "images" / name, draw([0], place)[0], **({} if name.endswith("png") else {"format": "JPEG"}))
        masks[name] = np.kron(rng.integers(0, 3, (10, 12)), np.ones((4, 4), int)).astype(np.uint8)
    return masks


def by_file(data, rows) -> dict[str, np.ndarray]:
    names = data.file_names()
    return {names[key].removeprefix("images/"): decode_mask(row["mask"]) for key, row in rows.items()}


@pytest.mark.parametrize("polygons", [False, True])
def test_own_coco_export_comes_back(tmp_path, polygons):
    from wsss_ray.serve.annotations import CocoWriter

    root = tmp_path / "e"
    masks, writer = odd_masks(root), CocoWriter(["cat", "dog"], polygons)
    images, annotations = [], []
    for name, mask in masks.items():
        entry, found = writer.add_image(name, mask)
        images.append(entry)
        annotations += found
    (root / "annotations").mkdir()
    value = {"annotations": annotations, "images": images, "categories": writer.categories()}
    (root / "annotations/instances_default.json").write_text(json.dumps(value))
    data, rows = prepared(tmp_path / "out", root, **{"source": detect_layout(root).source})
    back = by_file(data, rows)
    for name, mask in masks.items():
        np.testing.assert_array_equal(back[name], mask, err_msg=name)


def test_own_label_studio_export_comes_back(tmp_path):
    from wsss_ray.data.image import voc_palette
    from wsss_ray.serve.annotations import build_label_studio_config, build_label_studio_task

    root = tmp_path / "e"
    masks, classes = odd_masks(root), ["dog & co", "cat"]
    tasks = [build_label_studio_task(f"images/{name}", mask, classes, 0.0) for name, mask in masks.items()]
    (root / "label_studio.json").write_text(json.dumps(tasks))
    (root / "label_studio.xml").write_text(build_label_studio_config(classes, voc_palette().tolist()))
    assert detect_layout(root).source == "label_studio"
    data, rows = prepared(tmp_path / "out", root, "label_studio")
    assert data.manifest.classes == tuple(classes)
    back = by_file(data, rows)
    for name, mask in masks.items():
        np.testing.assert_array_equal(back[name], mask, err_msg=name)


def test_own_png_export_comes_back(tmp_path):
    root = tagged(tmp_path / "a", 6)
    data, rows = prepared(tmp_path / "out", root)
    masks = {name: np.roll(decode_mask(row["mask"]), 1, axis=0) for name, row in rows.items()}
    for name, mask in masks.items():
        (tmp_path / "png").mkdir(exist_ok=True)
        (tmp_path / "png" / f"{name}.png").write_bytes(encode_mask(mask))
    _, again = prepared(tmp_path / "back", root, masks=tmp_path / "png")
    for name, mask in masks.items():
        np.testing.assert_array_equal(decode_mask(again[name]["mask"]), mask)


def test_label_studio_choices_uploads_and_what_is_not_annotated(tmp_path):
    tasks = []
    for place in range(5):
        save(tmp_path / "images" / f"0a1b2c3d-p {place}.jpg", draw([place % 2], place)[0])
        result = [{"type": "choices", "value": {"choices": [("cat", "dog")[place % 2]]}}]
        task = {
            "id": place,
            "data": {"image": f"/data/upload/1/0a1b2c3d-p%20{place}.jpg"},
            "annotations": [{"result": result}],
        }
        tasks.append(task if place < 4 else {**task, "annotations": []})
    (tmp_path / "project-1.json").write_text(json.dumps(tasks))
    data, rows = prepared(tmp_path / "out", tmp_path, "label_studio")
    assert len(rows) == 4
    assert not any(info.has_masks for info in data.manifest.splits.values())
    assert any("1 not annotated" in note for note in data.notes)


@pytest.mark.parametrize("names", ["names: [cat, dog]", "names:\n  0: cat\n  1: dog"])
def test_yolo_boxes_give_labels(tmp_path, names):
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\n{names}\n")
    for place in range(4):
        split = ("train", "valid")[place // 2]
        save(tmp_path / split / "images" / f"{place}.jpg", draw([place % 2], place)[0])
        boxes = tmp_path / split / "labels" / f"{place}.txt"
        boxes.parent.mkdir(exist_ok=True)
        boxes.write_text(f"{place % 2} 0.5 0.5 0.2 0.2\n{place % 2} 0.1 0.1 0.1 0.1\n")
    save(tmp_path / "train" / "images" / "lonely.jpg", draw([0], 9)[0])
    assert detect_layout(tmp_path).source == "yolo"
    data, rows = prepared(tmp_path / "out", tmp_path, "yolo")
    assert [rows[name]["labels"] for name in ("train__0", "train__1", "valid__2", "valid__3")] == [[0], [1], [0], [1]]
    assert {name: info.num_images for name, info in data.manifest.splits.items()} == {"train": 2, "val": 2}
    assert any("1 without a file of boxes" in note for note in data.notes)
    boxes.write_text("7 0.5 0.5 0.2 0.2\n")
    with pytest.raises(UserError, match=r"3\.txt:1: class 7 but there are 2 from 0"):
        open_source("yolo", tmp_path)


def test_hugging_face_metadata_csv(tmp_path):
    for split in ("train", "test"):
        for place in range(2):
            save(tmp_path / split / f"{place}.png", draw([place], place)[0])
        label = ("cat", "dog") if split == "train" else ("", "")
        write_table(
            tmp_path / split / "metadata.csv", [("0.png", label[0]), ("1.png", label[1])], ("file_name", "label")
        )
    assert detect_layout(tmp_path).found.endswith("metadata.csv in test, train")
    items = {item.image_id: item for item in open_source("folder", tmp_path).items}
    assert {name: item.labels for name, item in items.items()} == {
        "train__0": (0,),
        "train__1": (1,),
        "test__0": None,
        "test__1": None,
    }


def test_detecting_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        detect_layout(tmp_path / "none")
    with pytest.raises(UserError, match="no layout that is known; add labels.csv"):
        detect_layout(tmp_path)
    save(tmp_path / "tags" / "cat" / "a.jpg", draw([0], 0)[0])
    assert detect_layout(tmp_path / "tags")[:2] == ("folder", {})
    assert detect_layout(tagged(tmp_path / "table")).source == "folder"
    assert detect_layout(voc(tmp_path / "voc", ["a"], {"train": "a\n"})).source == "voc"


def test_options_are_what_was_typed(tmp_path):
    typed = parse_settings(["masks=a #1=b", "seed=7", "val_fraction=0.25", "labels=2024_01", "classes=no,1e3, yes "])
    assert typed["masks"] == "a #1=b"
    for name in ("a #1=b", "2024_01"):
        (tmp_path / name).mkdir()
    root = tagged(tmp_path / "x", names=("no", "1e3"))
    (root / "masks").rename(root / "2024_01")
    source = open_source("folder", root, masks=str(root / "2024_01"), seed="3", val_fraction="0.5")
    assert source.options["splits"] == {"drawn": True, "val_fraction": 0.5, "seed": 3}
    assert source.classes == ["no", "1e3"]
    for setting, message in (
        ({"val_fraction": "0,3"}, r"folder: val_fraction '0,3': .* write 0\.3"),
        ({"seed": "1e3"}, r"folder: seed '1e3': .*integer"),
        ({"masks_by": "magic"}, r"masks_by 'magic': known: colour, index"),
        ({"nonsense": "1"}, r"source 'folder' has no option 'nonsense'; known: classes, "),
        ({"grey_range": "5"}, r"grey_range"),
        ({"grey_range": "9:1"}, r"LOW below HIGH"),
        ({"nodata": "x"}, r"nodata"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_source("folder", root, **setting)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--set masks: write KEY=VALUE"):
        parse_settings(["masks"])
