# SPDX-License-Identifier: Apache-2.0
"""COCO's layout: labels from annotations, masks under every rule, bad files, memory that stays flat."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("ijson")

from pycocotools import mask as tools
from pycocotools.coco import COCO

from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.coco_categories import CATEGORY_IDS, CLASSES
from wsss_ray.data.coco_index import read_shapes
from wsss_ray.data.coco_masks import DrawRules, render_shapes, shape_mask, string_counts
from wsss_ray.data.image import decode_image, decode_mask, encode_grey, encode_jpeg
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source

HEIGHT, WIDTH = 12, 16
PERSON, DOG, TABLE = 1, 18, 67


def box(x: int, y: int, width: int, height: int) -> list[float]:
    """A rectangle as a polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def shape(number: int, image: int, category: int, segmentation: Any, area: float, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
    }


CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, 2 * HEIGHT, HEIGHT * (WIDTH - 2)]}
"""The two columns on the left."""


def instances() -> dict[str, Any]:
    """Images 1 (a large table over a small dog, and a crowd), 2 (nothing), 3 (a grey one, a crowd alone)."""
    return {
        "images": [{"id": k, "file_name": f"pic_{k}.jpg", "height": HEIGHT, "width": WIDTH} for k in (3, 1, 2)],
        "annotations": [
            shape(11, 1, DOG, [box(4, 2, 4, 4)], 16.0),
            shape(12, 1, TABLE, [box(2, 1, 10, 8), box(13, 10, 2, 1)], 82.0),
            shape(13, 1, PERSON, CROWD, 24.0, crowd=1),
            shape(14, 3, PERSON, CROWD, 24.0, crowd=1),
        ],
        "categories": [{"id": k, "name": name} for k, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
    }


@pytest.fixture
def make(tmp_path: Path):
    """A writer of the layout; returns the root."""

    def write(train: dict[str, Any] | str | None = None, year: str = "2014", val: bool = True) -> Path:
        root = tmp_path / "coco"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val")[: 1 + val]:
            folder = root / f"{split}{year}"
            folder.mkdir(exist_ok=True)
            value = instances()
            if split == "train":
                value = value if train is None else train
            else:
                for image in value["images"]:
                    image["file_name"] = "val_" + image["file_name"]
            for number in (1, 2, 3):
                colour = np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)
                data = encode_jpeg(colour) if number != 3 else encode_grey(colour[..., 0])
                (folder / f"{'val_' * (split == 'val')}pic_{number}.jpg").write_bytes(data)
            text = value if isinstance(value, str) else json.dumps(value)
            (root / "annotations" / f"instances_{split}{year}.json").write_text(text)
        return root

    return write


@pytest.fixture
def source(tmp_path: Path):
    def open_(root: Path, **options: Any):
        return open_source("coco", root, index=tmp_path / "index", **options)

    return open_


def test_category_table():
    assert len(CLASSES) == len(set(CLASSES)) == len(CATEGORY_IDS) == 80
    rank = {number: place for place, number in enumerate(CATEGORY_IDS, start=1)}
    assert [rank[k] for k in (1, 11, 13, 16, 18, 25, 27, 31, 44, 46, 65, 67, 70, 72, 82, 84, 90)] == [
        *(1, 11, 12, 15, 17, 24, 25, 27, 40, 41, 60, 61, 62, 63, 73, 74, 80)
    ]
    checks = {16: "bird", 18: "dog", 67: "dining table", 90: "toothbrush"}
    assert {k: CLASSES[rank[k] - 1] for k in checks} == checks


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_labels_splits_and_empty_images(make, source, year):
    made = source(make(year=year))
    items = list(made.items)
    assert [item.image_id for item in items] == ["pic_1", "pic_3", "val_pic_1", "val_pic_3"]
    assert [item.splits for item in items] == [("train",)] * 2 + [("val",)] * 2
    names = [[made.classes[label] for label in item.labels] for item in items[:2]]
    assert names == [["person", "dog", "dining table"], ["person"]]
    kept = source(make(year=year), empty="kept")
    assert [(item.image_id, item.labels) for item in kept.items][1] == ("pic_2", ())
    assert list(made.items) == items
    strict = list(source(make(year=year), crowd_labels=False).items)
    assert [(item.image_id, len(item.labels)) for item in strict] == [("pic_1", 2), ("val_pic_1", 2)]
    assert made.options["crowd"] == "included"
    assert made.options["overlap"] == "smallest"
    assert made.options["empty"] == "dropped"
    assert set(made.options["default_because"]) == {"crowd", "overlap", "empty"}


def test_labels_do_not_come_from_masks(make, source):
    value = instances()
    value["annotations"][1]["segmentation"] = [box(0, 0, WIDTH, HEIGHT)]
    made = source(make(value), overlap="last", crowd="excluded")
    item = next(iter(made.items))
    row = made.load(item)
    assert np.unique(decode_mask(row["mask"])).tolist() == [61]
    assert row["labels"] == [0, 16, 60]


def test_rules_by_hand(make, source):
    dog, table, person = 17, 61, 1
    pixels = {}
    for crowd in ("included", "excluded", "ignore"):
        for overlap in ("smallest", "last", "first"):
            made = source(make(), crowd=crowd, overlap=overlap)
            mask = decode_mask(made.load(next(iter(made.items)))["mask"])
            assert mask.shape == (HEIGHT, WIDTH)
            pixels[crowd, overlap] = [int(mask[y, x]) for y, x in ((3, 5), (1, 3), (10, 13), (0, 0), (11, 8))]
    assert pixels["included", "smallest"] == [dog, table, table, person, 0]
    assert pixels["included", "last"] == [table, table, table, person, 0]
    assert pixels["excluded", "first"] == [dog, table, table, 0, 0]
    assert pixels["ignore", "last"] == [table, table, table, 255, 0]
    assert made.load(list(made.items)[1])["labels"] == [0]


@pytest.mark.parametrize("crowd", ["included", "excluded"])
@pytest.mark.parametrize("overlap", ["smallest", "last"])
def test_real_masks_agree_with_pycocotools(shared: Path, tmp_path: Path, overlap, crowd):
    root = shared / "data" / "coco2014"
    if not root.is_dir():
        pytest.skip(f"no images at {root}")
    made = open_source("coco", root, index=tmp_path / "index", crowd=crowd, overlap=overlap)
    table, num_images, num_crowds = dict(zip(CATEGORY_IDS, range(1, 81), strict=True)), 0, 0
    for split in ("train", "val"):
        theirs = COCO(str(root / "annotations" / f"instances_{split}2014.json"))
        names = {Path(value["file_name"]).stem: key for key, value in theirs.imgs.items()}
        for item in (item for item in made.items if item.splits == (split,)):
            found = theirs.loadAnns(theirs.getAnnIds(names[item.image_id]))
            assert item.labels == tuple(sorted({table[one["category_id"]] - 1 for one in found}))
            drawn = [one for one in found if crowd == "included" or not one["iscrowd"]]
            # The last one painted wins, so the smallest is painted last; of equal ones the first in the file.
            order = drawn if overlap == "last" else drawn[::-1]
            order = order if overlap == "last" else sorted(order, key=lambda one: -one["area"])
            expected = np.zeros((theirs.imgs[names[item.image_id]]["height"], item.extra["size"][1]), np.uint8)
            for one in order:
                expected[theirs.annToMask(one) > 0] = table[one["category_id"]]
            shapes = read_shapes(item.extra["index"], item.extra["image"])
            mask = render_shapes(shapes, table, item.extra["size"], DrawRules(crowd, overlap))
            np.testing.assert_array_equal(mask, expected, err_msg=item.image_id)
            num_images += 1
            num_crowds += sum(one["iscrowd"] for one in found)
    assert num_images == 97
    assert num_crowds == 10


def test_grey_images_and_whole_data_set(make, source, tmp_path):
    made = source(make())
    rows = {item.image_id: made.load(item) for item in made.items}
    assert decode_image(rows["pic_3"]["image"]).shape == (HEIGHT, WIDTH, 3)
    manifest = write_dataset(made, str(tmp_path / "shards"))
    assert {name: split.num_images for name, split in manifest.splits.items()} == {"train": 2, "val": 2}
    assert manifest.has_masks
    assert manifest.options["overlap"] == "smallest"
    assert not any(problem.level == "error" for problem in find_problems(made))
    light = len(pickle.dumps(next(iter(made.items))))
    assert light < 1000
    pickle.loads(pickle.dumps(made.load))
    without = source(make(), masks=False)
    assert without.load(next(iter(without.items)))["mask"] is None


def test_own_categories(make, source):
    value = instances()
    value["categories"] = [{"id": PERSON, "name": "rust"}, {"id": DOG, "name": "crack"}, {"id": TABLE, "name": "dent"}]
    made = source(make(value, val=False), categories_from="file")
    assert made.classes == ["rust", "crack", "dent"]
    item = next(iter(made.items))
    assert item.labels == (0, 1, 2)
    assert set(np.unique(decode_mask(made.load(item)["mask"]))) == {0, 1, 2, 3}
    with pytest.raises(UserError, match=r"category 1 is 'rust', expected 'person'.*categories_from=file"):
        source(make(value, val=False), categories_from="coco")
    assert source(make(value, val=False)).classes == ["rust", "crack", "dent"]


def bad(change) -> dict[str, Any]:
    value = copy.deepcopy(instances())
    change(value)
    return value


def _polygon(points):
    return lambda value: value["annotations"][0].update(segmentation=[points])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (json.dumps(instances())[:-40], r"instances_train2014.json: broken or cut short .*download it again"),
        (json.dumps(instances())[:900], r"instances_train2014.json: broken or cut short .*download it again"),
        ("", r"instances_train2014.json: broken or cut short .*download it again"),
        ("[1, 2]", r"instances_train2014.json: has no 'images'; give an instances_"),
        (bad(lambda v: v.pop("annotations")), r"json: has no 'annotations'; give an instances_"),
        (bad(lambda v: v["annotations"][0].update(image_id=99)), r"annotation 11 is of image 99, .*remove the ann"),
        (bad(lambda v: v["annotations"][0].update(category_id=12)), r"json: annotation 11 has category 12.*correct it"),
        (bad(lambda v: v["annotations"][0].pop("segmentation")), r"json: an annotation without .*not captions"),
        (bad(lambda v: v["images"][0].pop("height")), r"json: an image without id, .*correct it"),
        (bad(lambda v: v["images"].append(v["images"][0])), r"json: an id comes twice .*remove the second"),
        (bad(lambda v: v["categories"][4].update(name="plane")), r"category 5 is 'plane', expected 'airplane'"),
    ],
)
def test_bad_annotation_files(make, source, train, message):
    with pytest.raises(UserError, match=message) as error:
        source(make(train))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_polygon([1, 1, 5, 5]), "annotation 11: a polygon of 2 points has no area; give it at least 3 or remove"),
        (_polygon([1, 1, 5, 5, 3]), "annotation 11: a polygon of 5 numbers has half a point; correct"),
        (_polygon("x"), "annotation 11: a polygon is a list of numbers"),
        (
            lambda v: v["annotations"][0].update(segmentation={"size": [WIDTH, HEIGHT], "counts": [192]}),
            r"annotation 11: RLE of size \[16, 12\] but the image is 12x16 .*correct size",
        ),
        (
            lambda v: v["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": [3, 500]}),
            "annotation 11: RLE covers 503 pixels but the image has 192; export it again",
        ),
        (
            lambda v: v["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": "o"}),
            "annotation 11: RLE string ends in the middle",
        ),
        (
            lambda v: v["images"][1].update(height=HEIGHT + 1) or v["annotations"].pop(2),
            r"train2014.json: image pic_1 is 13x16 .*correct one of the two",
        ),
    ],
)
def test_bad_shapes_are_one_line_each(make, source, change, message):
    made = source(make(bad(change)))
    with pytest.raises(UserError, match=message) as error:
        made.load(next(iter(made.items)))
    assert "instances_train2014.json: image pic_1" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files(make, source, tmp_path):
    root = make()
    (root / "train2014" / "pic_1.jpg").unlink()
    found = [str(problem) for problem in find_problems(source(root), fast=True) if problem.level == "error"]
    assert len(found) == 1
    assert "train2014/pic_1.jpg: image cannot be read" in found[0]
    assert "put it there" in found[0]
    with pytest.raises(UserError, match="no annotations/instances_train2014.json"):
        source(tmp_path)
    with pytest.raises(UserError, match="instances_test2014.json: no such file; remove split 'test'"):
        source(root, splits=["test"])
    with pytest.raises(UserError, match="overlap 'biggest': known: smallest, last, first"):
        source(root, overlap="biggest")
    with pytest.raises(UserError, match="no such folder; give the one that holds train2014"):
        source(tmp_path / "nowhere")


def test_packages_that_are_missing_are_named(make, source, monkeypatch):
    root = make()
    for name in ("pycocotools", "ijson"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=r"pip install 'wsss-ray\[coco\]'"):
                source(root)


def test_index_is_made_once_and_follows_the_file(make, source, tmp_path):
    root = make()
    source(root)
    files = sorted((tmp_path / "index").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    source(root)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    assert len(files) == 2
    items = list(source(make(bad(lambda v: v["annotations"].pop(0)))).items)
    assert items[0].labels == (0, 60)
    assert len(list((tmp_path / "index").iterdir())) == 3
    gone = source(root)
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no index of annotations here"):
        gone.load(items[0])


def test_compressed_strings_and_lists_are_the_same():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.97):
        bitmap = np.asfortranarray(rng.random((37, 53)) < density, dtype=np.uint8)
        encoded = tools.encode(bitmap)["counts"].decode()
        runs = string_counts(encoded, "here")
        for counts in (encoded, runs):
            found = shape_mask({"size": [37, 53], "counts": counts}, 37, 53, "here")
            np.testing.assert_array_equal(found, bitmap.astype(bool))


def test_the_benchmark_explains_itself():
    command, root = [sys.executable, "-m", "benchmarks.coco_memory"], Path(__file__).resolve().parents[2]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=root)
    assert (done.returncode, "numbers of annotations" in done.stdout) == (0, True), done.stderr
    done = subprocess.run([*command, "many"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_memory_stays_flat():
    """Ten times the annotations cost less than 40 MB more (a file of 300 MB)."""
    from benchmarks.coco_memory import measure_size

    small, large = measure_size(100_000), measure_size(1_000_000)
    assert large["file_mb"] > 9 * small["file_mb"]
    assert large["peak_mb"] < small["peak_mb"] + 40
