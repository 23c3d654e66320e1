# SPDX-License-Identifier: Apache-2.0
"""What ``wsss export`` writes goes back in through ``wsss data prepare`` with the same masks, whatever the names."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.data.drawing import draw, prepared, save, write_table
from wsss_ray import storage
from wsss_ray.artifacts.tables import MASKS_SCHEMA, name_part
from wsss_ray.artifacts.tables import write_table as write_rows
from wsss_ray.data.image import decode_mask, encode_mask
from wsss_ray.data.layouts import detect_layout
from wsss_ray.data.shards import read_shard
from wsss_ray.serve.export import NAMES, ExportOptions, export_run
from wsss_ray.storage import FORMULA

pytest.importorskip("pycocotools")
ODD = (
    "IMG 001.JPG",
    "scan.left.png",
    "scan.right.png",
    "x/1.jpg",
    "y/1.jpg",
    "y/1.png",
    "a#1 100%.jpeg",
    "q?x=1&y=2.jpg",
    'it\'s "quoted".png',
    "\u00dcbung/\u00df+\u732b.webp",
    "UPPER.TIF",
    "upper.bmp",
    "comma, semicolon; colon:.jpg",
    "-rf ~.jpg",
    "z" * 120 + "/" + "z" * 120 + ".png",
)
CLASSES = ("cat & co", 'dog "d"', "\u732b <b>")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run over images with odd names; its pseudo masks have holes and touch at corners."""
    root, rng, rows = tmp_path / "mine", np.random.default_rng(5), []
    for place, name in enumerate(ODD):
        save(root / "images" / name, draw([place % 3], place)[0])
        rows.append((name, CLASSES[place % 3]))
    write_table(root / "labels.csv", rows)
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    data, _ = prepared(tmp_path / "data", root)
    for shard in data.manifest.shards_of("train"):
        made = []
        for row in read_shard(data.uri, shard):
            mask = np.kron(rng.integers(0, 2, (10, 12)), np.ones((4, 4), int)) * (row["labels"][0] + 1)
            mask = mask.astype(np.uint8)
            made.append({"image_id": row["image_id"], "mask": encode_mask(mask)})
        where = tmp_path / "refine" / "r1" / name_part(shard.path)
        write_rows(pa.Table.from_pylist(made, schema=MASKS_SCHEMA), str(where))
    folder = tmp_path / "runs" / "r"
    record = {"artifacts": {"masks": {"stage": "refine", "digest": "r1"}}, "data": data.uri, "scores": {}}
    storage.write_json(str(folder / "run.json"), record)
    return folder


def wanted_masks(run: Path) -> dict[str, np.ndarray]:
    """The user's own file name -> the mask the run made of it."""
    from wsss_ray.data.manifest import open_data
    from wsss_ray.serve.export import read_parts

    names = open_data(str(run.parents[1] / "data")).file_names()
    return {names[key]: decode_mask(png) for _, part in read_parts(str(run), "masks") for key, png in part.items()}


def masks_by_file(data, rows) -> dict[str, np.ndarray]:
    names = data.file_names()
    return {names[key].removeprefix("images/"): decode_mask(row["mask"]) for key, row in rows.items() if row["mask"]}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    assert len(wanted) >= 10
    for name, mask in wanted.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


def as_named(cell: str) -> str:
    """A cell without the apostrophe before what a spreadsheet would run as a formula."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def test_png(run: Path, tmp_path: Path):
    export_run(str(run), tmp_path / "png", ExportOptions())
    wanted = wanted_masks(run)
    with (tmp_path / "png" / NAMES).open(encoding="utf-8", newline="") as stream:
        listed = {as_named(line["image_id"]): as_named(line["file"]) for line in csv.DictReader(stream)}
    assert set(listed.values()) == set(ODD)
    assert {listed[path.stem] for path in (tmp_path / "png").glob("*.png")} == wanted.keys()
    data, rows = prepared(tmp_path / "back", tmp_path / "mine", masks=str(tmp_path / "png"))
    assert_same(masks_by_file(data, rows), wanted)


@pytest.mark.parametrize("form", ["coco", "polygons"])
def test_coco(run: Path, tmp_path: Path, form):
    out = tmp_path / "out"
    export_run(str(run), out, ExportOptions(form=form, tolerance=0.0, images=True))
    found = detect_layout(out)
    assert found.source == "coco"
    data, rows = prepared(tmp_path / "back", out, found.source)
    assert data.manifest.classes == CLASSES
    assert_same(masks_by_file(data, rows), wanted_masks(run))


def test_label_studio(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    export_run(str(run), out, ExportOptions(form="polygons", tolerance=0.0, images=True))
    data, rows = prepared(tmp_path / "back", out, "label_studio")
    assert data.manifest.classes == CLASSES
    assert_same(masks_by_file(data, rows), wanted_masks(run))
