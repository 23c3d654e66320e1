# SPDX-License-Identifier: Apache-2.0
"""What every source and every saliency detector promises, over all entries of the two registries."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.drawing import draw, save, tagged
from tests.data.salient_networks import write_network
from tests.data.test_datumaro import make_datumaro
from wsss_ray.config import UserError
from wsss_ray.data.checks import plain_reading, validate_row
from wsss_ray.data.saliency import DETECTORS, detect_saliency, open_detector
from wsss_ray.data.source import SCHEMA
from wsss_ray.data.sources import SOURCES, open_source
from wsss_ray.data.survey import survey_source


def make_voc(root: Path) -> Path:
    for place, name in enumerate("abcd"):
        image, mask = draw([place % 2], place)
        save(root / "JPEGImages" / f"{name}.jpg", image)
        save(root / "SegmentationClass" / f"{name}.png", mask)
        (root / "Annotations").mkdir(exist_ok=True)
        label = ("aeroplane", "bicycle")[place % 2]
        text = f"<annotation><object><name>{label}</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("d\n")
    return root


def make_coco(root: Path) -> Path:
    pytest.importorskip("pycocotools")
    pytest.importorskip("ijson")
    images, annotations = [], []
    for place in range(8):
        save(root / "images" / f"{place}.jpg", draw([place % 2], place)[0])
        images.append({"id": place, "file_name": f"{place}.jpg", "height": 40, "width": 48})
        ring = [8, 8, 20, 8, 20, 20, 8, 20]
        annotations.append(
            {"id": place, "image_id": place, "category_id": place % 2, "segmentation": [ring], "area": 144}
        )
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    (root / "annotations").mkdir()
    value = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_default.json").write_text(json.dumps(value))
    return root


def make_yolo(root: Path) -> Path:
    root.mkdir()
    (root / "data.yaml").write_text("names: [cat, dog]")
    for place in range(4):
        save(root / "images" / f"{place}.png", draw([place % 2], place)[0])
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{place}.txt").write_text(f"{place % 2} .5 .5 .1 .1\n")
    return root


def make_tasks(root: Path) -> Path:
    pytest.importorskip("pycocotools")
    tasks = []
    for place in range(4):
        save(root / f"{place}.png", draw([place % 2], place)[0])
        points = [[10, 10], [50, 10], [50, 50]]
        value = {"points": points, "polygonlabels": [("cat", "dog")[place % 2]]}
        result = {"type": "polygonlabels", "original_width": 48, "original_height": 40, "value": value}
        tasks.append({"data": {"image": f"{place}.png"}, "annotations": [{"result": [result]}]})
    (root / "tasks.json").write_text(json.dumps(tasks))
    return root


MAKERS = {
    "voc": make_voc,
    "coco": make_coco,
    "folder": tagged,
    "yolo": make_yolo,
    "label_studio": make_tasks,
    "datumaro": make_datumaro,
    "toy": lambda root: None,
}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))

    def open_(name: str, **options):
        small = {"num_train": "3", "num_val": "2", "size": "40"} if name == "toy" else {}
        return open_source(name, MAKERS[name](tmp_path / "data"), **small, **options)

    return open_


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_sound_rows(name, opened):
    assert name in MAKERS, "draw a small data set for the new source"
    source, problems = survey_source(opened(name))
    assert [str(problem) for problem in problems if problem.level == "error"] == []
    items = list(source.items)
    assert items == list(source.items), "may be iterated again"
    assert len({item.image_id for item in items}) == len(items) > 0
    assert {split for item in items for split in item.splits} == set(source.splits)
    load = pickle.loads(pickle.dumps(source.load))
    for item in pickle.loads(pickle.dumps(items)):
        row = load(item)
        assert set(SCHEMA.names) <= row.keys()
        assert validate_row(row, plain_reading(len(source.classes), source.ignore)) == []
    json.dumps(source.options)


@pytest.mark.parametrize("name", SOURCES)
def test_an_unknown_option_is_one_line(name, opened):
    with pytest.raises(UserError, match=f"source '{name}' has no option 'nonsense'; known: ") as error:
        opened(name, nonsense="1")
    assert "\n" not in str(error.value)


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(
        UserError, match="unknown source 'nonesuch'; known: voc, coco, folder, yolo, label_studio, datumaro, toy"
    ):
        open_source("nonesuch")


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 50), (64, 9)])
def test_every_detector_gives_maps_of_any_size(name, size, tmp_path):
    pytest.importorskip("cv2", reason="pip install 'wsss-ray[saliency]'")
    options = {"file": str(write_network(tmp_path / "redness.onnx"))} if name == "onnx" else {}
    detector = pickle.loads(pickle.dumps(open_detector(name, options)))
    image = np.random.default_rng(size[1]).integers(0, 256, (*size, 3), np.uint8)
    found = detect_saliency(image, detector)
    assert found.shape == size
    assert found.dtype == np.uint8
    assert np.array_equal(found, detect_saliency(image, detector))
    assert not detect_saliency(np.full((*size, 3), 77, np.uint8), detector).any(), "nothing stands out of one colour"
    assert detector.made["detector"] == name
    assert json.loads(json.dumps(detector.made)) == detector.made, "the note is JSON, and compared after reading"
