# SPDX-License-Identifier: Apache-2.0
"""The devkit as downloaded: lists, labels from three places, masks from two."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask, encode_jpeg, encode_mask
from wsss_ray.data.sources import open_source
from wsss_ray.data.voc import CLASSES, xml_names

XML = """<annotation><object><name>person</name><difficult>0</difficult><part><name>head</name></part></object>
<object><name>dog</name><difficult>1</difficult></object><object><name>dog</name></object></annotation>"""


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Images a (train), b (train_aug only), c (val), t (test)."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in "abct":
        (root / f"JPEGImages/{name}.jpg").write_bytes(encode_jpeg(np.full((8, 9, 3), 99, np.uint8)))
    for name in "abc":
        (root / f"Annotations/{name}.xml").write_text(XML)
        (root / f"SegmentationClassAug/{name}.png").write_bytes(encode_mask(np.full((8, 9), 15, np.uint8)))
    for name in "ac":
        official = np.full((8, 9), 15, np.uint8)
        official[0] = (0, 255, 12) * 3
        (root / f"SegmentationClass/{name}.png").write_bytes(encode_mask(official))
    for split, ids in {"train": "a", "val": "c", "train_aug": "ab", "test": "t"}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    return root


@pytest.mark.parametrize("up", [0, 1, 2])
def test_lists_labels_and_masks(devkit, up):
    source = open_source("voc", devkit.parents[up - 1] if up else devkit)
    assert source.classes[:2] == ["aeroplane", "bicycle"]
    assert len(source.classes) == 20
    items = {item.image_id: item for item in source.items}
    assert list(items) == ["a", "b", "c", "t"]
    assert items["a"].splits == ("train", "train_aug")
    assert items["b"].splits == ("train_aug",)
    assert [items[name].labels for name in "abct"] == [(11, 14)] * 3 + [None]
    folders = [Path(items[name].mask).parent.name for name in "abc"]
    assert folders == ["SegmentationClass", "SegmentationClassAug", "SegmentationClass"]
    assert items["t"].mask is None
    assert source.options["labels_from"] == "xml"
    assert source.options["masks_from"] == "official"
    assert source.options["list_sizes"] == {"train": 1, "val": 1, "train_aug": 2, "test": 1}
    assert [problem for problem in find_problems(source) if problem.level == "error"] == []
    assert list(source.items) == list(source.items)
    pickle.loads(pickle.dumps((source.items, source.load)))


def test_masks_of_the_augmented_set_first(devkit):
    items = open_source("voc", devkit, masks_from="aug").items
    assert {Path(item.mask).parent.name for item in items if item.mask} == {"SegmentationClassAug"}


def test_labels_from_masks_and_vectors(devkit, tmp_path):
    from_masks = {item.image_id: item.labels for item in open_source("voc", devkit, labels_from="masks").items}
    assert from_masks == {"a": (11, 14), "b": (14,), "c": (11, 14), "t": None}
    vectors = {name: np.eye(20, dtype=np.float32)[place] for place, name in enumerate("abc")}
    np.save(tmp_path / "cls_labels.npy", vectors, allow_pickle=True)
    source = open_source("voc", devkit, labels_from="npy", npy=tmp_path / "cls_labels.npy")
    assert [item.labels for item in source.items] == [(0,), (1,), (2,), None]
    assert source.options["labels_from"] == "npy"


def test_a_label_file_cannot_run_code(devkit, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    np.save(tmp_path / "evil.npy", {"a": Evil()}, allow_pickle=True)
    with pytest.raises(UserError, match=r"evil\.npy: not a label file"):
        open_source("voc", devkit, labels_from="npy", npy=tmp_path / "evil.npy")
    assert not (tmp_path / "pwned").exists()


def test_bad_label_files(devkit, tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, {"a": np.zeros(21)}, allow_pickle=True)
    with pytest.raises(UserError, match=r"labels\.npy: vector of a has shape \(21,\)"):
        open_source("voc", devkit, labels_from="npy", npy=path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"labels\.npy: not a label file"):
        open_source("voc", devkit, labels_from="npy", npy=path)
    with pytest.raises(UserError, match="go together"):
        open_source("voc", devkit, labels_from="npy")


def test_annotations_by_hand():
    assert xml_names(XML) == ["person", "dog", "dog"]
    with pytest.raises(UserError, match=r"x\.xml: not valid XML"):
        xml_names("<annotation>", "x.xml")


def test_annotation_of_the_released_loader(golden):
    arrays = golden("b15_utils.npz")
    present = {CLASSES.index(name) for name in xml_names(str(arrays["xml"]))}
    assert present == set(np.flatnonzero(arrays["xml_label20"]).tolist())


def test_unknown_object_is_reported(devkit):
    (devkit / "Annotations/b.xml").write_text("<annotation><object><name>zebra</name></object></annotation>")
    errors = [str(problem) for problem in find_problems(open_source("voc", devkit)) if problem.level == "error"]
    assert len(errors) == 1
    assert "b.xml" in errors[0]
    assert "'zebra'" in errors[0]


def test_saliency_folder(devkit, tmp_path):
    (tmp_path / "sal").mkdir()
    (tmp_path / "sal" / "a.png").write_bytes(encode_mask(np.zeros((8, 9), np.uint8)))
    items = {item.image_id: item for item in open_source("voc", devkit, saliency=tmp_path / "sal").items}
    assert items["a"].saliency == str(tmp_path / "sal" / "a.png")
    assert items["b"].saliency is None
    with pytest.raises(UserError, match="no such folder"):
        open_source("voc", devkit, saliency=tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"splits": ("nope",)}, r"nope\.txt: no such list"),
        ({"labels_from": "magic"}, "known: xml"),
        ({"bad": 1}, "known:"),
    ],
)
def test_wrong_options(devkit, options, word):
    with pytest.raises(UserError, match=word):
        open_source("voc", devkit, **options)


def test_wrong_folders(tmp_path, devkit):
    with pytest.raises(UserError, match="JPEGImages"):
        open_source("voc", tmp_path / "nothing")
    with pytest.raises(UserError, match="give the folder"):
        open_source("voc")
    path = devkit / "ImageSets/Segmentation/train.txt"
    path.write_text("a\na\n")
    with pytest.raises(UserError, match=r"train\.txt: 1 ids come twice"):
        open_source("voc", devkit)
    with pytest.raises(UserError, match="unknown source .vic.; did you mean voc. known: .*voc.*toy"):
        open_source("vic")


def test_real_devkit(shared):
    """The lists of what is there (WS-FCN spec F.32 as far as they go), and official masks with a 255 border."""
    root = shared / "data" / "VOCdevkit"
    if not root.is_dir():
        pytest.skip(f"no devkit at {root}")
    source = open_source("voc", root)
    items = list(source.items)
    sizes = {split: sum(split in item.splits for item in items) for split in source.splits}
    assert sizes == source.options["list_sizes"]
    assert not any("val" in item.splits and "train_aug" in item.splits for item in items)
    assert all("train_aug" in item.splits for item in items if "train" in item.splits)
    official = next(item for item in items if "train" in item.splits)
    other = next(item for item in items if item.splits == ("train_aug",))
    assert 255 in decode_mask(source.load(official)["mask"])
    assert "SegmentationClass/" in str(official.mask)
    assert "SegmentationClassAug" in str(other.mask)
    for item in items[::40]:
        row = source.load(item)
        shown = set(np.unique(decode_mask(row["mask"])).tolist()) - {0, 255}
        assert shown
        assert row["labels"]
