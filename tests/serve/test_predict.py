# SPDX-License-Identifier: Apache-2.0
"""``wsss predict``: which model predicts, what it writes, what it skips, and what it does not do twice."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from tests.fake_model import fake_model
from wsss_ray import storage
from wsss_ray.artifacts.tables import name_part, write_table
from wsss_ray.config import UserError
from wsss_ray.data.grey import Grey, dump_grey
from wsss_ray.data.image import decode_image, decode_mask, encode_grey, encode_jpeg
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.serve import predict as predicting
from wsss_ray.serve.listing import list_images
from wsss_ray.serve.model import Predictor, open_model
from wsss_ray.serve.predict import PredictOptions, predict_images

NAMES = ("Bibo", "Tami")
PLAIN = ("scales=[1.0]", "flip=false", "crf=null")


def predict(model, places, out, settings=PLAIN):
    """The counts of a call: predicted, reused, skipped."""
    counts = predict_images(model, places, out, PredictOptions(settings=tuple(settings)))
    return counts.predicted, counts.reused, counts.skipped


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store with one run whose segmenter has random weights, and the data it was made of."""
    return fake_model(tmp_path_factory.mktemp("store"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Colour, grey, odd-sized and two unreadable images, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "a.jpg").write_bytes(encode_jpeg(rng.integers(0, 255, (40, 52, 3), np.uint8)))
    (folder / "inner" / "grey.png").write_bytes(encode_grey(rng.integers(0, 255, (33, 31), np.uint8)))
    (folder / "inner" / "a.png").write_bytes(encode_grey(rng.integers(0, 255, (40, 52, 3), np.uint8)))
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-100])
    (folder / "text.png").write_text("not an image")
    (folder / "notes.txt").write_text("nothing")
    return folder


@pytest.fixture
def local(monkeypatch):
    """The stage without Ray: chunks in this process, counted."""
    done: list[str] = []

    def run_shards(job, machines):
        worker = job.make_worker()
        for name, _ in job.shards:
            table = worker.make_table(name)
            write_table(table, storage.join(job.out, name_part(name)))
            done.extend(table["image"].to_pylist())

    monkeypatch.setattr(predicting, "run_shards", run_shards)
    monkeypatch.setattr(predicting, "join_cluster", lambda address, places: contextlib.nullcontext())
    monkeypatch.setattr(predicting, "plan_machines", lambda resources: None)
    return done


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_models(store: Path, tmp_path: Path):
    run = open_model(str(store / "runs" / "cam-1"))
    assert run.folder == str(store / "train" / "seg")
    assert len(run.classes) == 2
    assert run.predict == PredictConfig(scales=(1.0, 1.5), flip=False)
    assert open_model(str(store / "train" / "seg")) == run
    assert open_model(str(store / "runs" / "cam-1"), ["crf=null", "scales=[2]"]).predict.scales == (2.0,)
    alone = tmp_path / "alone"
    shutil.copytree(store / "train" / "seg", alone)
    assert open_model(str(alone)).classes == ("class 1", "class 2")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    assert open_model(str(alone), classes=names).classes == ("cat", "dog")
    storage.write_json(str(alone / "model_card.json"), run.card)
    assert open_model(str(alone)).model_copy(update={"folder": run.folder}) == run


@pytest.mark.parametrize(
    ("where", "settings", "message"),
    [
        ("train/cam", [], "a localizer cannot predict masks; give a run that trained a segmenter"),
        ("data", [], "no model here; give a run's folder"),
        ("train/seg", ["crf"], "--set crf: write key=value"),
        ("train/seg", ["scale=[1.0]"], "--set: predict.scale: unknown key"),
        ("train/seg", ["gate.classes=labels"], "image labels at test time, .*--set gate.classes=all"),
    ],
)
def test_models_that_cannot_predict(store: Path, where, settings, message):
    with pytest.raises(UserError, match=message):
        open_model(str(store / where), settings)


def test_wrong_number_of_names(store: Path, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    with pytest.raises(UserError, match="1 class names, but the network knows 2; correct --classes"):
        open_model(str(store / "train" / "seg"), classes=names)


def test_predictions_do_not_depend_on_the_company(store: Path):
    model = open_model(str(store / "train" / "seg"), PLAIN)
    rng = np.random.default_rng(1)
    shown = [rng.integers(0, 255, (*size, 3), np.uint8) for size in ((40, 52), (33, 31), (40, 52))]
    predictor = Predictor(model, batch_size=2)
    for image, prediction in zip(shown, predictor.predict_images(shown), strict=True):
        assert prediction.mask.shape == image.shape[:2]
        assert not prediction.reduced
        alone = predictor.predict_images([image])[0]
        assert np.mean(alone.mask == prediction.mask) > 0.999
        assert sum(found.area_fraction for found in prediction.classes) == pytest.approx(1)
        for found in prediction.classes:
            assert found.area_fraction == np.mean(prediction.mask == found.index)
            assert found.name == ("background", *model.classes)[found.index]
            # The winner of three probabilities that sum to one.
            assert 1 / 3 <= found.confidence <= 1


def test_huge_images_are_predicted_smaller(store: Path):
    model = open_model(str(store / "train" / "seg"), PLAIN)
    image = np.random.default_rng(2).integers(0, 255, (60, 90, 3), np.uint8)
    prediction = Predictor(model, max_scores=3 * 30 * 45).predict_images([image])[0]
    assert prediction.reduced
    assert prediction.mask.shape == (60, 90)


def test_a_run_at_a_uri_keeps_its_own_protocol(store: Path):
    """The protocol is read wherever the run lies, not only from a local folder."""
    there = open_model((store / "runs" / "cam-1").as_uri())
    assert there.predict == PredictConfig(scales=(1.0, 1.5), flip=False)


def test_files_table_and_resuming(store: Path, images: Path, tmp_path: Path, local):
    out = tmp_path / "out"
    model = str(store / "runs" / "cam-1")
    done = predict(model, [str(images)], str(out), PLAIN)
    assert done == (3, 0, 2)
    assert sorted(local) == ["a", "cut", "inner/a", "inner/grey", "text"]
    palette = open_model(model).palette
    for name, suffix in (("a", "jpg"), ("inner/a", "png"), ("inner/grey", "png")):
        image = decode_image((images / f"{name}.{suffix}").read_bytes())
        mask = decode_mask((out / "masks" / f"{name}.png").read_bytes())
        assert mask.shape == image.shape[:2]
        assert decode_image((out / "overlays" / f"{name}.jpg").read_bytes()).shape == image.shape
        colours = decode_image((out / "masks" / f"{name}.png").read_bytes())
        np.testing.assert_array_equal(colours, np.asarray(palette, np.uint8)[mask])
        said = {
            row["class"]: float(row["area_fraction"]) for row in rows(out / "predictions.csv") if row["image"] == name
        }
        names = ("background", *open_model(model).classes)
        assert said == {names[k]: pytest.approx(np.mean(mask == k), abs=1e-6) for k in np.unique(mask)}
    skipped = {row["image"]: row["reason"] for row in rows(out / "skipped.csv")}
    assert set(skipped) == {"cut", "text"}
    assert "cut.jpg: damaged or cut short" in skipped["cut"]

    before = (out / "predictions.csv").read_bytes()
    local.clear()
    assert predict(model, [str(images)], str(out), PLAIN) == (0, 3, 2)
    assert local == []
    assert (out / "predictions.csv").read_bytes() == before

    (images / "new.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "cut.jpg").write_bytes((images / "a.jpg").read_bytes())
    assert predict(model, [str(images)], str(out), PLAIN) == (2, 3, 1)
    assert sorted(local) == ["cut", "new"]
    assert {row["image"] for row in rows(out / "skipped.csv")} == {"text"}
    same = {row["area_fraction"] for row in rows(out / "predictions.csv") if row["image"] in ("a", "new", "cut")}
    assert same == {row["area_fraction"] for row in rows(out / "predictions.csv") if row["image"] == "a"}

    local.clear()
    predict(model, [str(images / "a.jpg")], str(out), ["scales=[0.5]", "crf=null"])
    assert local == ["a"]


def answered(out: Path) -> tuple[set[str], set[str]]:
    """The names of masks and of overlays in a folder."""
    masks, overlays = out / "masks", out / "overlays"
    return (
        {path.relative_to(masks).with_suffix("").as_posix() for path in masks.rglob("*.png")},
        {path.relative_to(overlays).with_suffix("").as_posix() for path in overlays.rglob("*.jpg")},
    )


def test_answers_of_images_that_are_gone_or_broken_are_removed(
    store: Path, images: Path, tmp_path: Path, local, caplog
):
    caplog.set_level("INFO")
    out, model = tmp_path / "out", str(store / "train" / "seg")
    predict(model, [str(images)], str(out), PLAIN)
    (out / "masks" / "mine.png").write_bytes(b"somebody's own")
    (images / "inner" / "a.png").unlink()
    (images / "inner" / "grey.png").write_bytes(b"broken now")
    assert predict(model, [str(images)], str(out), PLAIN) == (0, 1, 3)
    assert answered(out) == ({"a", "mine"}, {"a"})
    assert {row["image"] for row in rows(out / "predictions.csv")} == {"a"}
    assert {row["image"] for row in rows(out / "skipped.csv")} == {"cut", "text", "inner/grey"}
    said = caplog.text
    assert "removed 1 predictions of images that are gone or changed" in said
    assert "removed 1 predictions of images that cannot be read any more" in said


def test_images_of_an_earlier_call_stay_while_they_are_there(store: Path, images: Path, tmp_path: Path, local):
    out, model = tmp_path / "out", str(store / "train" / "seg")
    predict(model, [str(images / "a.jpg")], str(out), PLAIN)
    predict(model, [str(images / "inner" / "grey.png")], str(out), PLAIN)
    assert answered(out)[0] == {"a", "grey"}
    assert {row["image"] for row in rows(out / "predictions.csv")} == {"a", "grey"}


def test_answers_of_another_model_or_setting_never_mix(store: Path, images: Path, tmp_path: Path, local, caplog):
    """Back at the first setting everything is predicted again, since its files are no longer there."""
    caplog.set_level("INFO")
    out, model = tmp_path / "out", str(store / "train" / "seg")
    predict(model, [str(images)], str(out), PLAIN)
    first = (out / "masks" / "a.png").read_bytes()
    local.clear()
    predict(model, [str(images / "a.jpg")], str(out), ["scales=[0.5]", "crf=null"])
    assert local == ["a"]
    assert answered(out) == ({"a"}, {"a"})
    assert {row["image"] for row in rows(out / "predictions.csv")} == {"a"}
    assert "removed 3 predictions of another model or setting" in caplog.text
    local.clear()
    predict(model, [str(images)], str(out), PLAIN)
    assert sorted(local) == ["a", "cut", "inner/a", "inner/grey", "text"]
    assert (out / "masks" / "a.png").read_bytes() == first


def test_deep_grey_is_read_as_in_training(store: Path, tmp_path: Path, local):
    """A range that was stated when the data was prepared holds for every image that is asked about later."""
    where = store / "data" / "d1" / "manifest.json"
    manifest = storage.read_json(str(where))
    manifest["options"]["grey"] = dump_grey(Grey((0.0, 4095.0), {}, (9999.0,)))
    storage.write_json(str(where), manifest)
    values = np.random.default_rng(0).integers(0, 4095, (30, 32)).astype(np.uint16)
    eight = np.clip(np.rint(values / 4095.0 * 255), 0, 255).astype(np.uint8)
    folder = tmp_path / "deep"
    folder.mkdir()
    Image.fromarray(values).save(folder / "deep.tif")
    (folder / "eight.png").write_bytes(encode_grey(eight))
    model = open_model(str(store / "runs" / "cam-1"), PLAIN)
    assert model.grey == dump_grey(Grey((0.0, 4095.0), {}, (9999.0,)))
    predict(str(store / "runs" / "cam-1"), [str(folder)], str(tmp_path / "out"), PLAIN)
    masks = [decode_mask((tmp_path / "out" / "masks" / f"{name}.png").read_bytes()) for name in ("deep", "eight")]
    np.testing.assert_array_equal(*masks)
    laid = [(tmp_path / "out" / "overlays" / f"{name}.jpg").read_bytes() for name in ("deep", "eight")]
    assert laid[0] == laid[1]


def test_only_regular_files_are_asked_about(store: Path, images: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: neither a regular file nor a folder"):
        list_images([str(tmp_path / "pipe.png")], str(tmp_path / "out"))
    os.mkfifo(images / "pipe.png")
    (images / "@eaDir").mkdir()
    (images / "@eaDir" / "a.jpg").write_bytes((images / "a.jpg").read_bytes())
    (images / "b.JFIF").write_bytes((images / "a.jpg").read_bytes())
    names = {one.image for one in list_images([str(images)], str(tmp_path / "out"))}
    assert names == {"a", "b", "inner/grey", "inner/a", "cut", "text"}


def test_killed_half_way(store: Path, images: Path, tmp_path: Path, local, monkeypatch):
    """Chunks of one image; the second call predicts only what the first did not finish."""
    monkeypatch.setattr(predicting, "write_plan", _single(predicting.write_plan))
    whole = predicting.run_shards

    def dies(job, machines):
        whole(dataclasses.replace(job, shards=job.shards[:2]), machines)
        raise KeyboardInterrupt

    arguments = str(store / "runs" / "cam-1"), [str(images)], str(tmp_path / "out"), PLAIN
    monkeypatch.setattr(predicting, "run_shards", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(*arguments)
    first = list(local)
    monkeypatch.setattr(predicting, "run_shards", whole)
    predict(*arguments)
    assert len(first) == 2
    assert len(local) == 5
    assert len(set(local)) == 5
    fresh = predict(*arguments[:2], str(tmp_path / "other"), PLAIN)
    assert fresh[0] == 3
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (tmp_path / "other" / "predictions.csv").read_bytes()


def _single(write_plan):
    def plan(todo, folder):
        return [chunk for one in todo for chunk in write_plan([one], folder)]

    return plan


def test_prepared_data_and_single_files(store: Path, images: Path, tmp_path: Path, local):
    out = tmp_path / "out"
    predict(str(store / "train" / "seg"), [str(store / "data" / "d1"), str(images / "a.jpg")], str(out), PLAIN)
    manifest_ids = [one.image for one in list_images([str(store / "data" / "d1")], str(out))]
    assert len(manifest_ids) == 5
    assert sorted(local) == sorted([*manifest_ids, "a"])
    assert all((out / "masks" / f"{name}.png").is_file() for name in manifest_ids)


def test_lists(images: Path, tmp_path: Path):
    out = images / "predictions"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "a.jpg").write_bytes(b"")
    (images / ".hidden").mkdir()
    (images / ".hidden" / "x.png").write_bytes(b"")
    (images / "a.png").write_bytes((images / "inner" / "a.png").read_bytes())
    names = [one.image for one in list_images([str(images), str(images / "text.png")], str(out))]
    assert sorted(names) == ["a_jpg", "a_png", "cut", "inner/a", "inner/grey", "text"]
    uri = (images / "inner").as_uri()
    assert [one.where for one in list_images([uri], str(out))] == [f"{uri}/a.png", f"{uri}/grey.png"]
    with pytest.raises(UserError, match="no such image or folder"):
        list_images([str(images / "b")], str(out))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images there"):
        list_images([str(tmp_path / "empty")], str(out))
    with pytest.raises(UserError, match="both would be named 'a_png'; pass their parent folder"):
        list_images([str(images / "inner" / "a.png"), str(images / "a.png")], str(out))


def test_names_with_any_letters(store: Path, images: Path, tmp_path: Path, local):
    folder = tmp_path / "p q"
    folder.mkdir()
    (folder / "ä #1%.jpg").write_bytes((images / "a.jpg").read_bytes())
    (found,) = list_images([str(images / ".." / "p q")], str(tmp_path / "x"))
    assert (found.image, found.where) == ("ä #1%", str(folder / "ä #1%.jpg"))
    model = str(store / "train" / "seg")
    out = (tmp_path / "o ut").as_uri()
    assert predict(model, [folder.as_uri()], out, PLAIN)[0] == 1
    assert (tmp_path / "o ut" / "masks" / "ä #1%.png").is_file()


def test_two_folders_do_not_overwrite_each_other(store: Path, images: Path, tmp_path: Path, local):
    model, out = str(store / "train" / "seg"), str(tmp_path / "out")
    predict(model, [str(images / "a.jpg")], out, PLAIN)
    with pytest.raises(
        UserError, match="'a' there is the prediction for .*a.jpg, not .*inner/a.png; choose another --out"
    ):
        predict(model, [str(images / "inner" / "a.png")], out, PLAIN)


def test_nothing_readable(store: Path, images: Path, tmp_path: Path, local):
    with pytest.raises(UserError, match="none of 1 images could be read"):
        predict(str(store / "train" / "seg"), [str(images / "text.png")], str(tmp_path / "out"), PLAIN)


@pytest.mark.slow
def test_on_ray(store: Path, images: Path, tmp_path: Path):
    try:
        done = predict(str(store / "runs" / "cam-1"), [str(images)], str(tmp_path / "out"), PLAIN)
    finally:
        ray.shutdown()
    assert done == (3, 0, 2)
