# SPDX-License-Identifier: Apache-2.0
"""A user's own images in three layouts, with splits given or drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.image import encode_jpeg, encode_mask
from wsss_ray.data.source import Item
from wsss_ray.data.sources import open_source
from wsss_ray.data.splits import draw_splits


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_jpeg(np.full((6, 7, 3), 80, np.uint8)))


def table(root: Path, text: str, names: str = "ab", inner: str = "images") -> Path:
    for name in names:
        image(root / inner / f"{name}.jpg")
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root


def errors(root: Path) -> list[str]:
    return [str(problem) for problem in find_problems(open_source("folder", root)) if problem.level == "error"]


def test_table_with_splits(tmp_path):
    root = table(tmp_path, "image,labels,split\na.jpg,dog;cat,train\nb.jpg,dog,val\n")
    (root / "masks").mkdir()
    (root / "masks/a.png").write_bytes(encode_mask(np.ones((6, 7), np.uint8)))
    (root / "classes.txt").write_text("cat\ndog\n")
    source = open_source("folder", root)
    assert source.classes == ["cat", "dog"]
    assert source.splits == ("train", "val")
    first, second = source.items
    assert (first.image_id, first.labels, first.splits) == ("a", (0, 1), ("train",))
    assert first.mask == str(root / "masks/a.png")
    assert second.mask is None
    assert errors(root) == []
    assert source.load(second)["labels"] == [1]


@pytest.mark.parametrize("inner", ["images", "."])
def test_table_with_byte_order_mark_and_spaces(tmp_path, inner):
    root = table(tmp_path, "\ufeffimage,labels\na.jpg, dog ; cat \nb.jpg,cat\n", inner=inner)
    assert [item.labels for item in open_source("folder", root, val_fraction=0).items] == [(0, 1), (0,)]
    assert errors(root) == []


def test_listed_classes_keep_their_order_and_find_mistakes(tmp_path):
    root = table(tmp_path, "image,labels,split\na.jpg,dog,train\nb.jpg,dgo;0,train\n")
    (root / "classes.txt").write_text("dog\ncat\n")
    source = open_source("folder", root)
    assert source.classes == ["dog", "cat"]
    (line,) = errors(root)
    assert "labels.csv:3" in line
    assert "'dgo'" in line
    assert "did you mean dog?" in line
    assert list(source.items)[1].labels == (0,), "a number is an index into classes.txt"


def test_test_images_need_no_labels(tmp_path):
    root = table(tmp_path, "image,labels,split\na.jpg,dog,train\nb.jpg,,test\n")
    items = list(open_source("folder", root).items)
    assert items[1].labels is None
    assert not any(problem.where == "b" for problem in find_problems(open_source("folder", root)))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("photo,labels\na.jpg,dog\n", "first line must name image and labels"),
        ("image,labels\n,dog\n", "line 2 names no image"),
        ("image,labels\na.jpg,\n", "no image has a label"),
        ("image,labels\na.jpg,1\n", "labels are numbers"),
        ("image,labels\n", "labels.csv: no images found below its first line"),
        ("image;labels\na.jpg;dog\n", "columns image;labels; .*separate columns by commas and labels by ;"),
        ("image,labels\na.jpg,dog,cat\n", "labels.csv: line 2 has more fields .*; join several labels by ;"),
        ("image,labels\nb.jpg,dog\na.jpg,dog|cat\n", r"labels.csv: line 3: label 'dog\|cat'; join several labels by ;"),
    ],
)
def test_bad_tables(tmp_path, text, word):
    with pytest.raises(UserError, match=word):
        open_source("folder", table(tmp_path, text))


def test_commas_at_the_end_of_a_line_are_no_labels(tmp_path):
    root = table(tmp_path, "image,labels\na.jpg,dog,,\nb.jpg,cat,,\n")
    assert open_source("folder", root).classes == ["cat", "dog"]


def test_table_in_another_encoding(tmp_path):
    root = table(tmp_path, "")
    (root / "labels.csv").write_bytes("image,labels\na.jpg,K\u00fche\n".encode("latin-1"))
    source = open_source("folder", root)
    assert source.classes == ["K\u00fche"]
    assert any("labels.csv: not UTF-8, read as cp1252 (K\u00fche)" in note for note in source.notes)
    assert any("used 1 of 2 images: 1 not listed in labels.csv" in note for note in source.notes)


def test_missing_and_repeated_images(tmp_path):
    found = errors(table(tmp_path, "image,labels,split\na.jpg,dog,train\nzz.jpg,dog,train\na.jpg,dog,train\n"))
    assert len(found) == 2
    assert any("zz.jpg" in line for line in found)
    assert any("a: id is used twice" in line for line in found)


@pytest.mark.parametrize("text", ["background\ndog\n", "\n"])
def test_bad_class_lists(tmp_path, text):
    root = table(tmp_path, "image,labels\na.jpg,dog\n")
    (root / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=r"classes\.txt"):
        open_source("folder", root)


def test_folder_per_class(tmp_path):
    for name in ("cat/1.jpg", "cat/2.JPG", "dog/1.png", "dog/notes.txt"):
        image(tmp_path / name)
    (tmp_path / "masks").mkdir()
    source = open_source("folder", tmp_path, val_fraction=0)
    assert source.classes == ["cat", "dog"]
    assert [(item.image_id, item.labels) for item in source.items] == [
        ("cat__1", (0,)),
        ("cat__2", (0,)),
        ("dog__1", (1,)),
    ]


def test_folder_per_split_and_class(tmp_path):
    for name in ("train/cat/1.jpg", "validation/cat/1.jpg", "train/dog/5.jpg"):
        image(tmp_path / name)
    source = open_source("folder", tmp_path)
    assert source.splits == ("train", "val")
    assert {item.image_id: item.splits[0] for item in source.items} == {
        "train__cat__1": "train",
        "train__dog__5": "train",
        "val__cat__1": "val",
    }


def test_hugging_face_metadata(tmp_path):
    for name in ("train/a.jpg", "train/b.jpg", "test/c.jpg", "train/m.png"):
        image(tmp_path / name)
    lines = [
        {"file_name": "a.jpg", "labels": ["dog", "cat"]},
        {"file_name": "b.jpg", "objects": {"categories": ["dog"]}, "mask": "m.png"},
    ]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "test/metadata.jsonl").write_text(json.dumps({"file_name": "c.jpg"}))
    source = open_source("folder", tmp_path)
    items = {item.image_id: item for item in source.items}
    assert {name: item.labels for name, item in items.items()} == {
        "train__a": (0, 1),
        "train__b": (1,),
        "test__c": None,
    }
    assert items["train__b"].mask == str(tmp_path / "train/m.png")
    assert items["test__c"].splits == ("test",)


@pytest.mark.parametrize("line", ["{", "[]", '{"labels": []}', '{"file_name": "a.jpg", "labels": [1.5]}'])
def test_bad_metadata(tmp_path, line):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=r"metadata\.jsonl:1"):
        open_source("folder", tmp_path)


def test_wrong_folders_and_options(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source("folder", tmp_path / "none")
    with pytest.raises(UserError, match="no images found"):
        open_source("folder", tmp_path)
    with pytest.raises(UserError, match="val_fraction"):
        open_source("folder", tmp_path, val_fraction=1.0)
    for source in ("folder", "yolo", "label_studio", "datumaro", "coco", "voc"):
        with pytest.raises(UserError, match="seed"):
            open_source(source, tmp_path, seed=-1)
    root = table(tmp_path, "image,labels\na.jpg,dog\n")
    with pytest.raises(UserError, match="saliency is a folder"):
        open_source("folder", root, saliency=tmp_path / "nope")


def items_of(labels: list[tuple[int, ...]]) -> list[Item]:
    return [Item(f"{place:04d}", None, found) for place, found in enumerate(labels)]


def test_drawn_splits_are_stratified():
    rng = np.random.default_rng(0)
    frequency = np.array([0.5, 0.2, 0.1, 0.03])
    labels = [tuple(np.flatnonzero(rng.random(4) < frequency).tolist()) for _ in range(1000)]
    drawn = draw_splits(items_of(labels), 0.2, seed=0)
    for label in range(4):
        has = [item.splits == ("val",) for item in drawn if label in item.labels]
        assert abs(np.mean(has) - 0.2) < 0.06, (label, len(has))
    assert abs(np.mean([item.splits == ("val",) for item in drawn if not item.labels]) - 0.2) < 0.01


def test_drawn_splits_depend_on_seed_alone():
    items = items_of([(place % 3,) for place in range(60)])
    first = {item.image_id: item.splits for item in draw_splits(items, 0.3, seed=1)}
    again = {item.image_id: item.splits for item in draw_splits(items[::-1], 0.3, seed=1)}
    other = {item.image_id: item.splits for item in draw_splits(items, 0.3, seed=2)}
    assert first == again != other
    assert sum(splits == ("val",) for splits in first.values()) == 18


def test_a_single_image_of_a_class_is_trained_on():
    drawn = draw_splits(items_of([(0,), (1,), (1,)]), 0.5, seed=0)
    assert drawn[0].splits == ("train",)
    assert sorted(item.splits[0] for item in drawn[1:]) == ["train", "val"]


def test_real_folder(shared):
    root = shared / "data" / "voc8"
    if not root.is_dir():
        pytest.skip(f"no folder at {root}")
    source = open_source("folder", root)
    items = list(source.items)
    assert source.classes == (root / "classes.txt").read_text().split()
    assert len(items) == len((root / "labels.csv").read_text().splitlines()) - 1
    assert all(item.mask and item.splits and item.labels for item in items)
    rows = [source.load(item) for item in items[::100]]
    assert max(row["height"] for row in rows) <= 320
