"""The saliency step without a cluster, and what data and scores then say about where saliency came from."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wsss_ray.studies import cam, eps, smaf

from wsss_ray.config import UserError
from wsss_ray.data.manifest import Manifest
from wsss_ray.data.saliency import NOTE, describe_detector
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.experiments.road import settle
from wsss_ray.experiments.run import protocols, saliency_words
from wsss_ray.recipe import replaced
from wsss_ray.stages import prepare, saliency

cloudpickle = pytest.importorskip("ray").cloudpickle
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
    batch = {"items": np.array([cloudpickle.dumps(items)], dtype=object)}
    return list(saliency._detect_part(batch, str(out), "fine_grained")["bad"][0])


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
    saliency._claim(str(out), describe_detector("fine_grained"))
    saliency._claim(str(out), describe_detector("fine_grained"))
    with pytest.raises(UserError, match="fine_grained .*border_cut.*another --out"):
        saliency._claim(str(out), describe_detector("border_cut"))
    (out / NOTE).unlink()
    (out / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="did not make"):
        saliency._claim(str(out), describe_detector("border_cut"))


def test_images_without_files_are_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image files"):
        saliency.make_saliency(open_source("toy"), str(tmp_path / "maps"))
    assert not (tmp_path / "maps").exists()


def test_a_method_that_needs_saliency_refuses_the_split_that_lacks_it(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    detect_without_ray(images, out)
    (out / "v.png").unlink()
    manifest = prepared(images, tmp_path / "data", out, tmp_path)
    assert settle(eps.recipe(), manifest).data.train_split == "train"
    (out / "x__b.png").unlink()
    lacking = prepared(images, tmp_path / "less", out, tmp_path)
    with pytest.raises(UserError, match=r"x__b of split 'train' .*--saliency.*--set method.saliency=false"):
        settle(eps.recipe(), lacking)
    with pytest.raises(UserError, match=r"--set base.method.saliency=false"):
        settle(smaf.recipe(), lacking)
    assert settle(cam.recipe(), lacking)
    assert settle(replaced(eps.recipe(), {"method.saliency": False}), lacking)


def test_scores_name_where_saliency_came_from(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    detect_without_ray(images, out)
    given = prepared(images, tmp_path / "given", out, tmp_path)
    saliency._claim(str(tmp_path / "note"), describe_detector("fine_grained"))
    (out / NOTE).write_bytes((tmp_path / "note" / NOTE).read_bytes())
    made = prepared(images, tmp_path / "made", out, tmp_path)
    assert made.options["saliency"] == describe_detector("fine_grained")
    assert {name: split.digest for name, split in made.splits.items()} == {
        name: split.digest for name, split in given.splits.items()
    }
    for recipe in (eps.recipe(), smaf.recipe()):
        assert saliency_words(recipe, given) == "saliency as given with the data"
        said = protocols(recipe, "train", saliency_words(recipe, made))
        assert all("classical fine_grained" in text for text in said.values())
    assert saliency_words(cam.recipe(), made) == ""
    assert protocols(cam.recipe(), "train", "") == protocols(cam.recipe(), "train")
    assert "{threshold:g}" in protocols(cam.recipe(), "train")["best"]


def test_a_saliency_folder_without_any_map_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a.png"):
        prepare.prepare_source(
            "folder", images, {"saliency": str(tmp_path / "empty")}, str(tmp_path / "out"), False, None
        )
