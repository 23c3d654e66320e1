# SPDX-License-Identifier: Apache-2.0
"""One call from a folder to prepared data: detected, checked, prepared once, and again where something changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.drawing import draw, save, tagged
from wsss_ray.config import UserError
from wsss_ray.data.manifest import open_data
from wsss_ray.data.shards import read_shard
from wsss_ray.reports.data_page import write_data_page
from wsss_ray.stages.prepare import prepare_images, prepare_source

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_folder_is_prepared_once_and_again_when_it_changes(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    root, out = tagged(tmp_path / "my images", 8), str(tmp_path / "results")
    first = prepare_images(root, out)
    assert "is a folder of images with labels.csv" in caplog.text
    assert "prepared already" not in caplog.text
    assert first.startswith(f"{out}/data/my-images-")
    assert open_data(first).manifest.num_images == 8
    assert not [name for name in os.listdir(first) if name.endswith(".parquet.json")]
    assert prepare_images(root, out) == first
    assert "prepared already" in caplog.text
    assert prepare_images(first, out) == first, "prepared data is taken as it is"
    save(root / "images" / "p0.jpg", draw([0], 77)[0])
    second = prepare_images(root, out)
    assert second != first
    assert prepare_images(root, out, {"seed": "5"}) not in (first, second), "other options, other data"


@pytest.mark.parametrize("inside", ["results", "images/results", "../mine"])
def test_results_inside_the_images_are_refused(inside: str, tmp_path: Path):
    root = tagged(tmp_path / "mine", 4)
    with pytest.raises(UserError, match="give --out a folder outside"):
        prepare_images(root, str(root / inside))
    assert not (root / "results").exists()


def test_what_is_refused_leaves_nothing(tmp_path: Path):
    root, out = tagged(tmp_path / "a", 6, values=lambda mask: mask * 100), tmp_path / "out"
    with pytest.raises(UserError, match=r"mask_values=100:cat,200:dog") as error:
        prepare_source("folder", root, {}, str(out), False, None)
    assert "\n" not in str(error.value)
    assert not out.exists()
    manifest = prepare_source("folder", root, {"mask_values": "100:cat,200:dog"}, str(out), False, None)
    assert manifest.has_masks
    assert manifest.options["reading"] == {"mask_values": {"100": "cat", "200": "dog"}}
    with pytest.raises(UserError, match="holds a prepared data set already"):
        prepare_source("folder", root, {}, str(out), False, None)


def test_skipped_images_are_counted(tmp_path: Path):
    root, out = tagged(tmp_path / "a", 8), str(tmp_path / "out")
    (root / "images" / "p3.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"p3\.jpg: cannot decode image"):
        prepare_source("folder", root, {}, out, False, None)
    assert prepare_source("folder", root, {}, out, True, None).num_images == 7
    assert any("left out 1 of 8 images that cannot be used" in note for note in open_data(out).notes)


def test_a_shard_of_files_that_changed_is_made_again(tmp_path: Path, monkeypatch):
    """A call that was killed before its manifest, then a mended mask of the same name."""
    root, out = tagged(tmp_path / "a", 4), str(tmp_path / "out")
    monkeypatch.setattr("wsss_ray.stages.prepare.write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_source("folder", root, {}, out, False, None)
    monkeypatch.undo()
    mask = np.array(Image.open(root / "masks" / "p0.png"))
    save(root / "masks" / "p0.png", np.roll(mask, 3, axis=0))
    prepare_source("folder", root, {}, out, False, None)
    rows = [row for shard in open_data(out).manifest.shards for row in read_shard(out, shard)]
    stored = next(row["mask"] for row in rows if row["image_id"] == "p0")
    assert stored == (root / "masks" / "p0.png").read_bytes()


def test_the_page_shows_data_and_escapes_it(tmp_path: Path):
    names = ("<script>alert(1)</script>", "R&B")
    root, out = tagged(tmp_path / "a", 8, names), str(tmp_path / "out")
    save(root / "images" / "x.jpg", draw([0], 50)[0])
    prepare_source("folder", root, {}, out, False, None)
    page = tmp_path / "page.html"
    assert str(page) in write_data_page(out, page, 5)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "R&amp;B" in text
    assert text.count('<img src="data:image/webp;base64,') == 5
    assert "used 8 of 9 images: 1 not listed in labels.csv" in text
    assert "http://" not in text
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        write_data_page(str(tmp_path / "none"), page)
