# SPDX-License-Identifier: Apache-2.0
"""Annotations to correct: polygons and RLE read back with pycocotools, exports of a run, the model to serve."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("pycocotools")

from pycocotools import mask as tools
from pycocotools.coco import COCO

from wsss_ray import storage
from wsss_ray.artifacts.network import SegmenterSpec, encode_state
from wsss_ray.artifacts.tables import MASKS_SCHEMA, name_part, write_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask
from wsss_ray.data.shards import load_manifest, read_shard, write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.deeplab import DeepLabV2Config
from wsss_ray.recipe import NetConfig, SegmentConfig, dump, validate
from wsss_ray.serve.annotations import (
    build_label_studio_config,
    build_label_studio_task,
    signed_area,
    simplify_ring,
    trace_polygons,
    trace_rings,
)
from wsss_ray.serve.export import ExportOptions, export_run, write_inside
from wsss_ray.serve.listing import place_below


def export(run_folder: str, to: Path, **options) -> str:
    """An export with options by name."""
    return export_run(run_folder, to, ExportOptions(**options))


def read_back(lines, height: int, width: int) -> np.ndarray:
    """What pycocotools makes of polygons."""
    flat = [[value for corner in ring for value in corner] for ring in lines]
    return tools.decode(tools.merge(tools.frPyObjects(flat, height, width))).astype(bool)


def bitmap(*lines: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in lines])


def test_a_square_and_a_ring_by_hand():
    square = bitmap("....", ".##.", ".##.")
    assert trace_rings(square) == [[(1, 1), (3, 1), (3, 3), (1, 3)]]
    assert signed_area(trace_rings(square)[0]) == 4
    ring = bitmap("###", "#.#", "###")
    assert sorted(signed_area(one) for one in trace_rings(ring)) == [-1, 9]
    (joined,) = trace_polygons(ring)
    assert signed_area(joined) == 8
    np.testing.assert_array_equal(read_back([joined], 3, 3), ring)


def test_pixels_that_touch_at_a_corner_are_two():
    lines = trace_rings(bitmap("#.", ".#"))
    assert [signed_area(one) for one in lines] == [1, 1]
    island = bitmap("#####", "#...#", "#.#.#", "#...#", "#####")
    assert sorted(signed_area(one) for one in trace_polygons(island)) == [1, 16]


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.8, 0.97])
def test_exact_polygons_read_back_exactly(density):
    rng = np.random.default_rng(int(100 * density))
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(1, 24, 2))
        wanted = rng.random((height, width)) < density
        if not wanted.any():
            continue
        lines = trace_polygons(wanted)
        assert sum(signed_area(one) for one in lines) == wanted.sum()
        np.testing.assert_array_equal(read_back(lines, height, width), wanted)


def blob() -> np.ndarray:
    """A disc with a hole and an island in it, 120 pixels wide."""
    canvas = Image.new("L", (160, 140))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((10, 8, 130, 128), fill=1)
    draw.ellipse((40, 40, 95, 100), fill=0)
    draw.ellipse((60, 60, 75, 80), fill=1)
    return np.asarray(canvas, dtype=bool)


def test_a_tolerance_makes_lighter_polygons():
    wanted = blob()
    exact, light = trace_polygons(wanted), trace_polygons(wanted, 1.0)
    assert sum(map(len, light)) < 0.3 * sum(map(len, exact))
    found = read_back(light, *wanted.shape)
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    assert not found[70, 45], "the hole is still one"
    assert found[70, 67], "and its island too"


def test_simplified_lines_stay_within_the_tolerance():
    ring = [(0.0, 0.0), (5.0, 0.4), (10.0, 0.0), (10.0, 6.0), (5.0, 9.0), (0.0, 6.0)]
    assert simplify_ring(ring, 0.5) == [ring[0], *ring[2:]]
    assert simplify_ring(ring, 0.3) == ring
    assert simplify_ring(ring, 0) == ring
    assert simplify_ring(ring, 100) == ring, "never less than an area"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run over toy images: its pseudo masks are the truth, its segmenter has random weights."""
    root = tmp_path_factory.mktemp("run")
    data = str(root / "data" / "d1")
    write_dataset(open_source("toy", config=ToyConfig(num_classes=3, num_train=5, num_val=2, size=64)), data, 2)
    for shard in load_manifest(data).shards_of("train"):
        rows = [{"image_id": row["image_id"], "mask": row["mask"]} for row in read_shard(data, shard)]
        where = str(root / "refine" / "r1" / name_part(shard.path))
        write_table(pa.Table.from_pylist(rows, schema=MASKS_SCHEMA), where)
    segment = SegmentConfig(
        network=DeepLabV2Config(rates=(1,), multi_scale_input=False), net=NetConfig(), train=TrainConfig()
    )
    spec = SegmenterSpec(num_classes=3, segment=segment)
    torch.manual_seed(0)
    storage.write_json(str(root / "train" / "s1" / "network.json"), spec.model_dump(mode="json"))
    (root / "train" / "s1" / "model.safetensors").write_bytes(encode_state(spec.build()))
    made = {"masks": {"stage": "refine", "digest": "r1"}, "segmenter": {"stage": "train", "digest": "s1"}}
    folder = root / "runs" / "cam-1"
    storage.write_json(str(folder / "run.json"), {"artifacts": made, "data": data})
    recipe = validate({"method": {"name": "cam"}, "refine": None, "predict": {"scales": [1.0], "flip": False}}, "test")
    storage.write_bytes(str(folder / "recipe.yaml"), dump(recipe).encode())
    return folder


def truth(run: Path) -> dict[str, np.ndarray]:
    data = storage.read_json(str(run / "run.json"))["data"]
    shards = load_manifest(data).shards_of("train")
    return {row["image_id"]: decode_mask(row["mask"]) for shard in shards for row in read_shard(data, shard)}


@pytest.mark.parametrize("kind", ["coco", "polygons"])
def test_coco_files_read_back(run: Path, tmp_path: Path, kind):
    said = export(str(run), tmp_path, form=kind, tolerance=0, images=True)
    path = tmp_path / "annotations" / "instances_default.json"
    assert "of 5 images" in said
    assert str(path) in said
    read = COCO(str(path))
    expected = truth(run)
    assert len(read.imgs) == len(expected) == 5
    manifest = load_manifest(storage.read_json(str(run / "run.json"))["data"])
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == list(manifest.classes)
    for entry in read.imgs.values():
        mask = expected[Path(entry["file_name"]).stem]
        with Image.open(tmp_path / "images" / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == mask.shape[::-1]
        found = read.loadAnns(read.getAnnIds(entry["id"]))
        assert [one["category_id"] for one in found] == [k for k in np.unique(mask).tolist() if k not in (0, 255)]
        for one in found:
            wanted = mask == one["category_id"]
            np.testing.assert_array_equal(read.annToMask(one), wanted)
            assert one["area"] == wanted.sum()
            assert one["iscrowd"] == 0
            assert one["bbox"] == tools.toBbox(tools.encode(np.asfortranarray(wanted, np.uint8))).tolist()
            assert isinstance(one["segmentation"], list) == (kind == "polygons")


def test_label_studio(run: Path, tmp_path: Path):
    export(str(run), tmp_path, form="polygons", tolerance=0)
    assert not (tmp_path / "images").exists()
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    expected = truth(run)
    config = ElementTree.fromstring((tmp_path / "label_studio.xml").read_text())
    labels = [one.attrib["value"] for one in config.iter("Label")]
    assert len(tasks) == 5
    assert config.find("Image").attrib["name"] == "image"
    for task in tasks:
        mask = expected[Path(task["data"]["image"]).stem]
        painted = np.zeros_like(mask)
        for one in task["predictions"][0]["result"]:
            assert one["type"] == "polygonlabels"
            assert (one["from_name"], one["to_name"]) == ("label", "image")
            assert (one["original_height"], one["original_width"]) == mask.shape
            (name,) = one["value"]["polygonlabels"]
            ring = [(x * mask.shape[1] / 100, y * mask.shape[0] / 100) for x, y in one["value"]["points"]]
            painted[read_back([ring], *mask.shape)] = labels.index(name) + 1
        np.testing.assert_array_equal(painted, mask)


def test_unknown_pixels_are_nobodys():
    mask = np.array([[0, 1, 255], [2, 2, 255]], np.uint8)
    task = build_label_studio_task("a.jpg", mask, ["cat", "dog"], 0)
    names = [one["value"]["polygonlabels"] for one in task["predictions"][0]["result"]]
    assert names == [["cat"], ["dog"]]
    assert task["data"]["image"].endswith("?d=a.jpg")
    assert 'value="a &amp; b"' in build_label_studio_config(["a & b"], [[0, 0, 0], [255, 0, 16]])
    assert 'background="#ff0010"' in build_label_studio_config(["a"], [[0, 0, 0], [255, 0, 16]])


def test_bad_exports_are_one_line(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--as gif: choose png, coco, polygons, mlflow or onnx"):
        export(str(run), tmp_path, form="gif")
    with pytest.raises(UserError, match="--voc-server goes with --as png"):
        export(str(run), tmp_path, form="coco", voc_server=True)
    with pytest.raises(UserError, match="run has no predictions; available: masks, segmenter"):
        export(str(run), tmp_path, what="predictions", form="coco")
    assert not (tmp_path / "annotations" / "instances_default.json").exists(), "nothing half written"
    with pytest.raises(UserError, match="no finished run here"):
        export(str(tmp_path), tmp_path, form="polygons")
    (tmp_path / "full").write_text("")
    with pytest.raises(UserError, match="is not empty; choose another --to"):
        export(str(run), tmp_path, form="mlflow")


def test_png_export_is_as_before(run: Path, tmp_path: Path):
    assert export(str(run), tmp_path).startswith("5 masks in ")
    for image_id, mask in truth(run).items():
        np.testing.assert_array_equal(decode_mask((tmp_path / f"{image_id}.png").read_bytes()), mask)


def test_the_served_model(run: Path, tmp_path: Path, monkeypatch):
    """Saved with MLflow, loaded by it, asked with base64 and with paths."""
    pytest.importorskip("mlflow")
    import mlflow.pyfunc
    import pandas as pd

    to = tmp_path / "model"
    said = export(str(run), to, form="mlflow")
    assert f"mlflow models serve -m {to}" in said
    model = mlflow.pyfunc.load_model(str(to))
    image = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(stream.getvalue())
    monkeypatch.setenv("WSSS_SERVE_ROOT", str(tmp_path / "images"))
    encoded = base64.b64encode(stream.getvalue()).decode()
    by_bytes, by_path = model.predict(pd.DataFrame([{"image": encoded}, {"path": "a.png"}]))
    assert by_bytes == by_path
    mask = decode_mask(base64.b64decode(by_bytes["mask"]))
    assert mask.shape == (40, 56) == (by_bytes["height"], by_bytes["width"])
    areas = {one["index"]: one["area_fraction"] for one in by_bytes["classes"]}
    assert areas == {k: pytest.approx(np.mean(mask == k)) for k in np.unique(mask).tolist()}
    names = ("background", *load_manifest(storage.read_json(str(run / "run.json"))["data"]).classes)
    assert all(one["class"] == names[one["index"]] for one in by_bytes["classes"])
    json.dumps(by_bytes)
    for row, message in (
        ({"image": "###"}, "not base64"),
        ({"image": base64.b64encode(b"text").decode()}, "row 0: cannot decode image"),
        ({"path": "../model/MLmodel"}, "no such image below WSSS_SERVE_ROOT"),
        ({"path": "b.png"}, "no such image below WSSS_SERVE_ROOT"),
        ({"path": ""}, "neither image"),
    ):
        with pytest.raises(Exception, match=message):
            model.predict(pd.DataFrame([row]))
    monkeypatch.delenv("WSSS_SERVE_ROOT")
    with pytest.raises(Exception, match="this server reads no paths"):
        model.predict(pd.DataFrame([{"path": "a.png"}]))


def test_the_model_is_logged_with_its_run(run: Path, tmp_path: Path, monkeypatch):
    """``save_model`` is given the run MLflow knows, and the store beside it."""
    seen = SimpleNamespace(calls=[])

    def save_model(folder, code, path, run_id, out):
        assert code.is_file()
        seen.calls.append((sorted(one.name for one in folder.iterdir()), path, run_id, out))
        return f"runs:/{run_id}/model"

    monkeypatch.setattr("wsss_ray.serve.export.save_model", save_model)
    record = run / "run.json"
    before = record.read_text()
    try:
        record.write_text(json.dumps({**json.loads(before), "mlflow_run": "abc"}))
        assert "logged as runs:/abc/model" in export(str(run), tmp_path / "m", form="mlflow")
    finally:
        record.write_text(before)
    names = ["model.safetensors", "model_card.json", "network.json"]
    assert seen.calls == [(names, tmp_path / "m", "abc", str(run.parents[1]))]


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "link/out"])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, name: str):
    folder = tmp_path / "to"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        write_inside(folder, f"{name}.png", b"mask")
    with pytest.raises(UserError, match="leads out of"):
        place_below(str(folder), f"{name}.png")
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
