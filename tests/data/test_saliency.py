# SPDX-License-Identifier: Apache-2.0
"""Classical saliency: what stands out is found, nothing is found in nothing, and the note tells what made it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.data.detector import stretch
from wsss_ray.data.saliency import NOTE, detect_saliency, name_origin, open_detector, read_origin
from wsss_ray.data.saliency_opencv import load_opencv, make_centre_prior, measure_border_distance

CLASSICAL = ("border_cut", "fine_grained", "spectral_residual")


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2", reason="pip install 'wsss-ray[saliency]'")


def scene(height: int = 90, width: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A red ellipse off the middle of a noisy green ground, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = ((y - 0.45 * height) / (0.25 * height)) ** 2 + ((x - 0.6 * width) / (0.2 * width)) ** 2 < 1
    image = np.where(inside[..., None], (200, 40, 30), (60, 150, 60)) + rng.normal(0, 6, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), inside


def test_border_cut_finds_the_object(cv2) -> None:
    image, inside = scene()
    found = detect_saliency(image, open_detector("border_cut")) >= 128
    assert found.shape == inside.shape
    assert (found & inside).sum() / (found | inside).sum() > 0.9


def test_maps_are_the_same_again_and_mirror_with_the_image(cv2) -> None:
    image, _ = scene(seed=1)
    detector = open_detector("border_cut")
    first = detect_saliency(image, detector)
    cv2.setRNGSeed(7)
    assert np.array_equal(first, detect_saliency(image, detector))
    turned = detect_saliency(np.ascontiguousarray(image[:, ::-1]), detector)[:, ::-1]
    assert np.mean(np.abs(first.astype(int) - turned)) < 8


@pytest.mark.parametrize("detector", CLASSICAL)
def test_any_size_and_a_plain_image(cv2, detector: str) -> None:
    for height, width in ((1, 1), (7, 300), (8, 8), (33, 500), (301, 17)):
        grey = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
        found = detect_saliency(grey, open_detector(detector))
        assert found.shape == (height, width)
        assert found.dtype == np.uint8
    assert not detect_saliency(np.full((40, 50, 3), 90, np.uint8), open_detector(detector)).any()


def test_own_detectors_of_opencv_are_spread(cv2) -> None:
    image, _ = scene()
    for detector in ("fine_grained", "spectral_residual"):
        found = detect_saliency(image, open_detector(detector))
        assert found.min() == 0
        assert found.max() == 255


def test_one_border_may_hold_the_object(cv2) -> None:
    image = np.full((60, 60, 3), (60, 150, 60), np.uint8)
    image[36:, 15:45] = (200, 40, 30)
    distance = measure_border_distance(cv2, image)
    assert distance[45, 30] > 0.9
    assert distance[5, 5] < 0.1


def test_prior_and_spread() -> None:
    prior = make_centre_prior(5, 9)
    assert prior.max() == prior[2, 4] == 1
    assert prior[0, 0] == prior.min() > 0
    assert stretch(np.array([2.0, 4.0])).tolist() == [0, 1]
    assert stretch(np.full(3, 5.0)).tolist() == [0, 0, 0]


def test_unknown_detector_and_missing_library(cv2, monkeypatch) -> None:
    with pytest.raises(UserError, match="known: border_cut"):
        open_detector("pfan")
    with pytest.raises(UserError, match="saliency detector 'border_cut' has no option 'side'; known: none"):
        open_detector("border_cut", {"side": "3"})
    monkeypatch.setitem(__import__("sys").modules, "cv2", SimpleNamespace(__version__="1"))
    with pytest.raises(UserError, match="wsss-ray\\[saliency\\]"):
        load_opencv()


def test_the_note_reaches_the_words_of_a_score(cv2, tmp_path) -> None:
    assert read_origin(None) is None
    assert name_origin(read_origin(tmp_path)) == name_origin(None) == "saliency as given with the data"
    (tmp_path / NOTE).write_text(json.dumps(open_detector("border_cut").made))
    made = read_origin(tmp_path)
    assert made == open_detector("border_cut").made
    assert "classical border_cut (opencv" in name_origin(made)
    (tmp_path / NOTE).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_origin(tmp_path)
