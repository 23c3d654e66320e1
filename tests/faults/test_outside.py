# SPDX-License-Identifier: Apache-2.0
"""Nothing is written outside the folder that a command names: hostile ids in artifacts, links that lie in the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fake_run import fake_run, prepare
from wsss_ray.artifacts.tables import read_table, write_table
from wsss_ray.config import ExportForm, UserError
from wsss_ray.serve.export import ExportOptions, export_run
from wsss_ray.serve.predict import PredictOptions, predict_images

HOSTILE = ("../../x", "/tmp/wsss-hostile", "a/../../x", "link/x")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(fake_run(tmp_path / "out", "fake-aaaa", prepare(tmp_path / "data")))


def list_all(folder: Path, but: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(but)}


@pytest.mark.parametrize("image_id", HOSTILE)
@pytest.mark.parametrize("form", ["png", "coco", "polygons"])
def test_ids_of_a_foreign_artifact_stay_inside(run: Path, tmp_path: Path, image_id: str, form: ExportForm) -> None:
    """The artifact is somebody else's: its ids were checked by nobody."""
    pytest.importorskip("pycocotools")
    for folder in (tmp_path / "data", tmp_path / "out" / "refine" / "fake-aaaa"):
        shard = sorted(folder.glob("*.parquet"))[0]
        table = read_table(str(shard))
        rows = table.to_pylist()
        rows[0]["image_id"] = image_id
        write_table(type(table).from_pylist(rows, schema=table.schema), str(shard))
    to = tmp_path / "deep" / "to"
    to.mkdir(parents=True)
    (to / "link").symlink_to(tmp_path)
    (to / "images").mkdir()
    (to / "images" / "link").symlink_to(tmp_path)
    before = list_all(tmp_path, to)
    with pytest.raises(UserError) as refused:
        export_run(str(run), to, ExportOptions(form=form, images=form != "png"))
    assert len(str(refused.value).splitlines()) == 1
    assert list_all(tmp_path, to) == before
    assert not Path("/tmp/wsss-hostile.png").exists()


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("png", "000.png"),
        ("png", "results.tgz"),
        ("coco", "annotations"),
        ("coco", "annotations/instances_default.json"),
        ("polygons", "label_studio.json"),
        ("polygons", "label_studio.xml"),
        ("polygons", "images"),
    ],
)
def test_links_in_the_folder_are_not_followed_out_of_it(run: Path, tmp_path: Path, form: ExportForm, name: str) -> None:
    pytest.importorskip("pycocotools")
    to, mine = tmp_path / "to", tmp_path / "mine"
    (to / name).parent.mkdir(parents=True)
    if "." in name:
        mine.write_text("mine")
    else:
        mine.mkdir()
    (to / name).symlink_to(mine)
    before = list_all(tmp_path, to)
    with pytest.raises(UserError, match="leads out of"):
        export_run(str(run), to, ExportOptions(form=form, voc_server=form == "png", images=form != "png"))
    assert list_all(tmp_path, to) == before
    assert mine.is_dir() or mine.read_text() == "mine"


def test_a_prediction_does_not_follow_the_link_of_its_state(tmp_path: Path) -> None:
    from tests.fake_model import fake_model

    store, out, mine = fake_model(tmp_path / "store"), tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "kept").mkdir()
    out.mkdir()
    (out / ".predictions").symlink_to(mine)
    shutil.copytree(store / "data" / "d1", tmp_path / "images")
    with pytest.raises(UserError, match="a link leads out of"):
        predict_images(str(store / "runs" / "cam-1"), [str(tmp_path / "images")], str(out), PredictOptions())
    assert [path.name for path in mine.iterdir()] == ["kept"]
