# SPDX-License-Identifier: Apache-2.0
"""Saliency by an ONNX network: it runs for real, gets what its preset says, and what does not fit is one line."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.salient_networks import REDNESS, write_network
from wsss_ray.config import UserError
from wsss_ray.data.saliency import detect_saliency, name_origin, open_detector
from wsss_ray.data.saliency_onnx import PRESETS
from wsss_ray.nets.weight_registry import WEIGHTS


def scene(height: int = 60, width: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """A red box on a green and blue ground of noise, and where it is."""
    inside = np.zeros((height, width), bool)
    inside[15:40, 30:70] = True
    image = np.where(inside[..., None], (200, 40, 30), (60, 120, 110))
    noisy = image + np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return np.clip(noisy, 0, 200).astype(np.uint8), inside


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "redness.onnx")


def test_a_network_finds_its_object(network: Path) -> None:
    image, inside = scene()
    detector = open_detector("onnx", {"file": str(network), "side": "96"})
    found = detect_saliency(image, detector)
    assert (found.min(), found.max()) == (0, 255), "from the smallest to the largest value of each image"
    assert (((found >= 128) & inside).sum() / ((found >= 128) | inside).sum()) > 0.9
    assert np.array_equal(found, detect_saliency(image, pickle.loads(pickle.dumps(detector))))
    inverse = open_detector("onnx", {"file": str(network), "side": "96", "output": "inverse"})
    assert np.abs(255 - detect_saliency(image, inverse).astype(int) - found).max() <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_gets_what_its_preset_says(preset: str, tmp_path: Path) -> None:
    path = write_network(tmp_path / "redness.onnx")
    image, _ = scene()
    detector = open_detector("onnx", {"network": preset, "file": str(path)})
    seen = {}
    session = detector.find._session

    class Spy:
        def run(self, outputs, feeds):
            seen.update(feeds)
            return session.run(outputs, feeds)

        def __getattr__(self, name):
            return getattr(session, name)

    detector.find.__dict__["_session"] = Spy()
    detector.find(image)
    side, mean, std, white = {
        "isnet": (1024, (0.5, 0.5, 0.5), (1, 1, 1), 255),
        "u2net": (320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None),
        "u2netp": (320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None),
    }[preset]
    scaled = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), float)
    wanted = (scaled / (white or scaled.max()) - mean) / std
    assert scaled.max() < 255, "both whites differ on this image"
    assert seen["image"].dtype == np.float32
    np.testing.assert_allclose(seen["image"], wanted.transpose(2, 0, 1)[None], atol=1e-6)


def test_settings_of_the_user_replace_those_of_the_preset(network: Path) -> None:
    given = {"file": str(network), "side": "64", "mean": "0.1,0.2,0.3", "std": "[1, 2, 4]", "white": "brightest"}
    made = open_detector("onnx", given).made
    assert made["size"] == [64, 64]
    assert (made["mean"], made["std"], made["white"]) == ([0.1, 0.2, 0.3], [1, 2, 4], "brightest")
    image, _ = scene()
    plain = open_detector("onnx", {"file": str(network), "side": "64"})
    assert not np.array_equal(detect_saliency(image, plain), detect_saliency(image, open_detector("onnx", given))), (
        "they reach the network"
    )
    for key, value, text in (
        ("std", "1,0,1", "std"),
        ("mean", "0.5", "mean"),
        ("side", "-3", "side '-3'"),
        ("network", "pfan", "known: isnet, u2net, u2netp"),
        ("sides", "3", "saliency detector 'onnx' has no option 'sides'; known: file, mean, network"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            open_detector("onnx", {"file": str(network), key: value})
        assert "\n" not in str(caught.value)


def test_half_precision_a_stated_size_and_the_shape_of_the_image(tmp_path: Path) -> None:
    image, inside = scene()
    whole = detect_saliency(
        image, open_detector("onnx", {"file": str(write_network(tmp_path / "a.onnx")), "side": "80"})
    )
    half = write_network(tmp_path / "half.onnx", kind="float16")
    found = detect_saliency(image, open_detector("onnx", {"file": str(half), "side": "80"}))
    assert np.abs(found.astype(int) - whole).max() <= 2
    fixed = open_detector("onnx", {"file": str(write_network(tmp_path / "fixed.onnx", (1, 3, 48, 72)))})
    assert fixed.made["size"] == [48, 72], "the network's own size, not the preset's"
    assert ((detect_saliency(image, fixed) >= 128) == inside).mean() > 0.9


BAD = {
    "rank": (
        {"shape": (1, 3, 64), "output": "index"},
        "takes tensor(float) of 1 x 3 x 64; give a",
    ),
    "channels": ({"shape": (1, 1, 64, 64), "weight": REDNESS[:, :1]}, "of 1 x 1 x 64 x 64; give"),
    "channels last": ({"shape": (1, 64, 64, 3), "weight": np.ones((1, 64, 1, 1))}, "of 1 x 64 x 64 x 3; give"),
    "batch": ({"shape": (4, 3, 64, 64)}, "of 4 x 3 x 64 x 64; give"),
    "integers in": ({"kind": "uint8"}, "takes tensor(uint8) of"),
    "inputs": ({"inputs": 2}, "has 2 inputs (image, more_1); give a network of one image"),
    "integers out": ({"output": "index"}, "no output of floats (index tensor(int64)); give a network"),
    "many maps": ({"weight": np.repeat(REDNESS, 2, axis=0)}, "is 1 x 2 x 1024 x 1024, not one map; choose another by"),
    "no map": ({"tail": ("GlobalAveragePool",)}, "is 1 x 1 x 1 x 1, not one map"),
    "no numbers": ({"tail": ("Neg", "Log")}, "holds values that are no numbers"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_salient_object_network_is_one_line(fault: str, tmp_path: Path) -> None:
    parts, text = BAD[fault]
    path = write_network(tmp_path / "bad.onnx", **parts)
    with pytest.raises(UserError) as caught:
        open_detector("onnx", {"file": str(path)})
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_and_settings_that_do_not_fit_are_one_line(network: Path, tmp_path: Path) -> None:
    whole = network.read_bytes()
    for data in (b"", b"no network", whole[: len(whole) // 2]):
        network.write_bytes(data)
        with pytest.raises(UserError, match=r"redness.onnx: not an ONNX network that onnxruntime \d") as caught:
            open_detector("onnx", {"file": str(network)})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="neither an existing file nor known weights"):
        open_detector("onnx", {"file": str(tmp_path / "absent.onnx")})
    fixed = write_network(tmp_path / "fixed.onnx", (1, 3, 48, 72))
    with pytest.raises(UserError, match=r"fixed.onnx: takes images of 48 x 72 only; leave out detector.side=48"):
        open_detector("onnx", {"file": str(fixed), "side": "48"})
    with pytest.raises(UserError, match=r"fixed.onnx: no output 'mask' of floats; known: map_0, inverse"):
        open_detector("onnx", {"file": str(fixed), "output": "mask"})


def test_published_weights_are_asked_for_and_checked(network: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path / "weights"))
    for name, preset in PRESETS.items():
        with pytest.raises(UserError, match=f"run 'wsss weights fetch {preset.weights}'"):
            open_detector("onnx", {"network": name})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / WEIGHTS["u2netp"].filename).write_bytes(network.read_bytes())
    with pytest.raises(UserError, match="checksum mismatch: md5 is .* not 8e83ca70e441ab06c318d82300c84806; delete it"):
        open_detector("onnx", {"network": "u2netp"})


def test_a_missing_onnxruntime_names_the_extra(network: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'wsss-ray\[saliency\]'") as caught:
        open_detector("onnx", {"file": str(network)})
    assert "\n" not in str(caught.value)


def test_scores_name_the_network(network: Path) -> None:
    made = open_detector("onnx", {"file": str(network)}).made
    assert name_origin(made).startswith("saliency by onnx redness.onnx (onnxruntime ")
    network.write_bytes(network.read_bytes() + b"\x12\x00")
    assert open_detector("onnx", {"file": str(network)}).made["sha256"] != made["sha256"]
