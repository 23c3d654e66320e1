# SPDX-License-Identifier: Apache-2.0
"""The saliency step, and what data and scores then say about where saliency came from."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image
from ray import cloudpickle
from typer.testing import CliRunner

from tests.data.salient_networks import write_network
from wsss_ray.cli.data import app
from wsss_ray.cluster import process
from wsss_ray.config import UserError
from wsss_ray.data.grey import PLAIN
from wsss_ray.data.manifest import DataSet, Manifest
from wsss_ray.data.saliency import NOTE, detect_saliency, open_detector
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.experiments.settle import settle_recipe
from wsss_ray.recipe import replace_settings
from wsss_ray.stages import prepare, saliency
from wsss_ray.stages.score import describe_protocols, describe_saliency
from wsss_ray.studies import cam, eps, smaf

pytest.importorskip("cv2", reason="pip install 'wsss-ray[saliency]'")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, two of them of one name in two folders."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    lines = [
        ("a.png", "cat", "train"),
        ("x/b.png", "dog", "train"),
        ("y/b.png", "cat", "train"),
        ("v.png", "dog", "val"),
    ]
    for number, (name, _, _) in enumerate(lines):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + number, 30, 3), np.uint8)).save(root / name)
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "labels", "split"), *lines])
    return root


def detect_without_ray(root: Path, out: Path) -> list[str]:
    """What the tasks of the step do, in this process."""
    items = [(item.image_id, item.image) for item in open_source("folder", root).items]
    return saliency.write_maps(items, str(out), open_detector("fine_grained"))


def prepared(root: Path, out: Path, maps: Path | None, tmp_path: Path) -> Manifest:
    source = open_source("folder", root, **({"saliency": str(maps)} if maps else {}))
    origin = prepare.read_origin(prepare.find_saliency_folder(source))
    source.options = {**source.options, **({"saliency": origin} if origin else {})}
    return write_dataset(source, str(out))


def test_every_image_gets_its_own_map(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    assert detect_without_ray(images, out) == []
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "v.png", "x__b.png", "y__b.png"]
    items = {item.image_id: item for item in open_source("folder", images, saliency=str(out)).items}
    assert Path(str(items["x__b"].saliency)).name == "x__b.png"
    for item in items.values():
        assert Image.open(str(item.saliency)).size == Image.open(str(item.image)).size
    assert prepared(images, tmp_path / "data", out, tmp_path).has_saliency


def test_an_unreadable_image_is_named_and_the_others_are_done(images: Path, tmp_path: Path) -> None:
    (images / "a.png").write_bytes(b"no image")
    bad = detect_without_ray(images, tmp_path / "maps")
    assert len(bad) == 1
    assert "a.png" in bad[0]
    assert len(list((tmp_path / "maps").iterdir())) == 3


def test_a_folder_keeps_to_one_detector(tmp_path: Path) -> None:
    out = tmp_path / "maps"
    saliency._claim(str(out), open_detector("fine_grained").made)
    saliency._claim(str(out), open_detector("fine_grained").made)
    with pytest.raises(UserError, match="fine_grained .*border_cut.*another --out"):
        saliency._claim(str(out), open_detector("border_cut").made)
    (out / NOTE).unlink()
    (out / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="did not make"):
        saliency._claim(str(out), open_detector("border_cut").made)


def test_images_without_files_are_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image files"):
        saliency.make_saliency(open_source("toy"), str(tmp_path / "maps"))
    assert not (tmp_path / "maps").exists()


def test_a_method_that_needs_saliency_refuses_the_split_that_lacks_it(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    detect_without_ray(images, out)
    (out / "v.png").unlink()
    manifest = prepared(images, tmp_path / "data", out, tmp_path)
    assert settle_recipe(eps.recipe(), manifest).data.train_split == "train"
    (out / "x__b.png").unlink()
    lacking = prepared(images, tmp_path / "less", out, tmp_path)
    with pytest.raises(UserError, match=r"x__b of split 'train' .*--saliency.*--set method.saliency=false"):
        settle_recipe(eps.recipe(), lacking)
    with pytest.raises(UserError, match=r"--set base.method.saliency=false"):
        settle_recipe(smaf.recipe(), lacking)
    assert settle_recipe(cam.recipe(), lacking)
    assert settle_recipe(replace_settings(eps.recipe(), {"method.saliency": False}), lacking)


def test_scores_name_where_saliency_came_from(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    detect_without_ray(images, out)
    given = prepared(images, tmp_path / "given", out, tmp_path)
    saliency._claim(str(tmp_path / "note"), open_detector("fine_grained").made)
    (out / NOTE).write_bytes((tmp_path / "note" / NOTE).read_bytes())
    made = prepared(images, tmp_path / "made", out, tmp_path)
    assert made.options["saliency"] == open_detector("fine_grained").made
    assert {name: split.digest for name, split in made.splits.items()} == {
        name: split.digest for name, split in given.splits.items()
    }
    for recipe in (eps.recipe(), smaf.recipe()):
        assert describe_saliency(recipe, DataSet("", given)) == "saliency as given with the data"
        sentences = describe_protocols(settle_recipe(recipe, made), DataSet("", made), "maps")
        assert all("classical fine_grained" in text for text in sentences.values())
    assert describe_saliency(cam.recipe(), DataSet("", made)) == ""
    plain = describe_protocols(settle_recipe(cam.recipe(), made), DataSet("", made), "maps")
    assert not any("saliency" in text for text in plain.values())
    assert "{threshold}" in plain["best"]


def test_a_saliency_folder_without_any_map_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a.png"):
        prepare.prepare_source(
            "folder", images, {"saliency": str(tmp_path / "empty")}, str(tmp_path / "out"), False, None
        )


def test_the_command_runs_a_network_on_a_cluster(
    images: Path, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """``wsss data saliency --detector onnx`` as typed: maps, note and manifest; the second call only looks."""
    network = write_network(tmp_path / "redness.onnx")
    out = tmp_path / "maps"
    command = ["saliency", "folder", str(images), "--out", str(out), "--detector", "onnx"]
    settings = ["--set", f"detector.file={network}", "--set", "detector.side=64", "--set", "val_fraction=0.1"]
    with caplog.at_level(logging.INFO, "wsss_ray"):
        CliRunner().invoke(app, [*command, *settings], catch_exceptions=False)
    assert "4 saliency maps by onnx" in caplog.text
    opened = open_detector("onnx", {"file": str(network), "side": 64})
    assert json.loads((out / NOTE).read_text()) == opened.made
    for item in open_source("folder", images).items:
        pixels = np.asarray(Image.open(str(item.image)).convert("RGB"))
        assert np.array_equal(np.asarray(Image.open(out / f"{item.image_id}.png")), detect_saliency(pixels, opened))
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "v.png").unlink()
    CliRunner().invoke(app, [*command, *settings], catch_exceptions=False)
    again = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in times if times[name] != again[name]} == {"v.png"}
    made = prepared(images, tmp_path / "data", out, tmp_path)
    sentences = describe_protocols(settle_recipe(eps.recipe(), made), DataSet("", made), "maps")
    assert all("saliency by onnx redness.onnx (onnxruntime " in text for text in sentences.values())
    with pytest.raises(UserError, match=r"holds maps of onnx 1 .* \[64, 64\], not of onnx 1 .* \[32, 32\]; choose"):
        CliRunner().invoke(app, [*command, *settings[:2], "--set", "detector.side=32"], catch_exceptions=False)


def test_one_process_sets_a_network_up_once(images: Path, tmp_path: Path, ray_cluster: None) -> None:
    detector = open_detector("onnx", {"file": str(write_network(tmp_path / "redness.onnx")), "side": 64})
    items = [(item.image_id, item.image) for item in open_source("folder", images).items]
    part = {"items": cloudpickle.dumps(items[:2])}
    sent = ray.put(detector)
    for _ in range(2):
        assert saliency._detect_part(part, str(tmp_path / "maps"), sent, PLAIN)["items"] == 2
    kept = process.keep(sent.hex(), pytest.fail)
    assert kept is not detector
    assert "_session" in vars(kept.find), "its session is open"
    other = ray.put(open_detector("fine_grained"))
    assert saliency._detect_part(part, str(tmp_path / "maps"), other, PLAIN)["bad"] == []
    assert process.keep(sent.hex(), lambda: None) is None, "another detector took the place of the last one"
