# SPDX-License-Identifier: Apache-2.0
"""A trained network in Python: whatever an image is, the same answer; and as ONNX the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import wsss_ray as wsss
from tests.fake_model import fake_model
from wsss_ray.nets import SEGMENTERS, build_backbone
from wsss_ray.serve.export import ExportOptions, export_run
from wsss_ray.serve.model import Predictor, open_model
from wsss_ray.serve.onnx_model import FullSizeScores, export_onnx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_model(tmp_path_factory.mktemp("store")) / "runs" / "cam-1"


@pytest.fixture(scope="module")
def model(folder: Path) -> wsss.TrainedModel:
    return wsss.load(folder, crf=None)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)


def test_an_image_is_a_path_bytes_a_pil_image_or_an_array(
    model: wsss.TrainedModel, pixels: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = model.predict(pixels)
    assert expected.mask.shape == (40, 52)
    assert expected.mask.dtype == np.uint8
    for given in (path, str(path), path.read_bytes(), Image.open(path)):
        answer = model.predict(given)
        np.testing.assert_array_equal(answer.mask, expected.mask)
        np.testing.assert_array_equal(answer.image, pixels)
    grey = model.predict(pixels[..., 0])
    np.testing.assert_array_equal(grey.image, np.repeat(pixels[..., :1], 3, axis=2))


def test_several_images_are_answered_in_order_and_a_generator_as_it_is_asked(
    model: wsss.TrainedModel, pixels: np.ndarray
) -> None:
    images = [pixels, pixels[:30], pixels[:, :31]]
    answers = model.predict(images)
    assert [answer.mask.shape for answer in answers] == [(40, 52), (30, 52), (40, 31)]
    read: list[int] = []

    def give() -> object:
        for number in range(20):
            read.append(number)
            yield pixels[: 20 + number]

    found = model.predict(give())
    assert not read
    assert next(found).mask.shape == (20, 52)
    assert 0 < len(read) < 20
    assert len(list(found)) == 19


def test_an_answer_says_its_classes_and_draws_itself(model: wsss.TrainedModel, pixels: np.ndarray) -> None:
    answer = model.predict(pixels)
    assert sum(one.area_fraction for one in answer.classes) == pytest.approx(1)
    assert {one.index for one in answer.classes} == set(np.unique(answer.mask).tolist())
    for one in answer.classes:
        assert one.name == ("background", *model.classes)[one.index]
    assert answer.plot().width > answer.plot().height
    assert answer._repr_png_().startswith(b"\x89PNG")
    assert "52 x 40" in repr(answer)
    assert model.classes[0] in repr(model)


def test_settings_change_the_protocol_of_the_run(folder: Path) -> None:
    assert wsss.load(folder).protocol["scales"] == [1.0, 1.5]
    assert wsss.load(folder, scales=[1.0], flip=True).protocol["flip"] is True


def test_what_is_no_image_is_refused_in_one_line(model: wsss.TrainedModel, pixels: np.ndarray, tmp_path: Path) -> None:
    for given, words in (
        (pixels.astype(np.float32), ("float32", "uint8")),
        (pixels[None], ("list(array)",)),
        (np.zeros((3, 40, 52), np.uint8), ("3 x 40 x 52",)),
        (tmp_path / "none.jpg", ("none.jpg",)),
        (tmp_path, (str(tmp_path), "glob")),
        ([pixels, 7], ("image 1", "int")),
        (b"text", ("image",)),
    ):
        with pytest.raises(wsss.UserError) as refused:
            model.predict(given)
        assert len(str(refused.value).splitlines()) == 1
        for word in words:
            assert word in str(refused.value)
    with pytest.raises(wsss.UserError, match="nonesuch"):
        wsss.load(fake_model(tmp_path) / "runs" / "cam-1", nonesuch=1)


def test_onnx_gives_the_numbers_of_torch_at_any_size(folder: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    model = wsss.load(folder)
    told = export_run(str(folder), tmp_path, ExportOptions(form="onnx"))  # model.export stands in a notebook
    assert str(tmp_path / "model.onnx") in told
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    known = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert known["classes"] == ["background", *model.classes]
    assert known["protocol"] == model.protocol
    assert len(known["palette"]) == 3
    how = known["normalize"]
    predictor = Predictor(open_model(str(folder)))
    reference = FullSizeScores(predictor.trained.network.cpu()).eval()
    for image in (pixels, pixels[:33], pixels[:, :50]):
        channels = image[..., ["RGB".index(name) for name in how["channels"]]]
        values = (channels / how["divisor"] - np.array(how["mean"])) / np.array(how["std"])
        inputs = values.astype(np.float32).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(inputs[0], predictor.spec.net.normalize.apply(image).numpy(), atol=1e-6)
        (scores,) = session.run(["scores"], {"images": inputs})
        with torch.inference_mode():
            expected = reference(torch.from_numpy(inputs)).numpy()
        assert scores.shape == (1, 3, *image.shape[:2])
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet50", "resnet38", "vgg16"])
def test_onnx_of_published_backbones(backbone: str, folder: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    network: nn.Module = SEGMENTERS["deeplab_v1"]().build(build_backbone(backbone), 3).eval()
    predictor = Predictor(open_model(str(folder)))
    predictor.trained.network = network
    export_onnx(predictor, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((320, 320),) if backbone.startswith("efficientnet") else ((97, 128), (65, 83)):
        inputs = torch.randn(1, 3, height, width)
        with torch.inference_mode():
            expected = FullSizeScores(network)(inputs).numpy()
        np.testing.assert_allclose(session.run(None, {"images": inputs.numpy()})[0], expected, atol=1e-4)
