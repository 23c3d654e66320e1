# SPDX-License-Identifier: Apache-2.0
"""What a GPU does to pixels is what PIL and NumPy do on a CPU, bit by bit."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.colour import NormalizeConfig, Preset
from wsss_ray.engine.fusion import scale_size
from wsss_ray.engine.passes import Device, decode_ahead, make_inputs
from wsss_ray.engine.pixels import normalize_pixels, resize_pixels, resizes_columns_first


def random_images(height: int, width: int, num: int = 2) -> np.ndarray:
    """Noise and hard edges: overshoot must be clipped as PIL clips it."""
    drawn = np.random.default_rng(height * 1000 + width)
    noise = drawn.integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    noise[0] = np.where(noise[0] > 128, 255, 0)
    return noise


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (37, 50), (94, 125), (281, 64)])
def test_resizing_is_pils_bicubic_bit_by_bit(size: tuple[int, int], scale: float) -> None:
    height, width = scale_size(size, scale)
    assert resizes_columns_first(size, (height, width)) == (size != (281, 64) or scale >= 1)
    if not resizes_columns_first(size, (height, width)):
        return
    images = random_images(*size)
    found = resize_pixels(torch.from_numpy(images), (height, width)).numpy()
    for image, one in zip(images, found, strict=True):
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        assert np.array_equal(one, expected)


@pytest.mark.parametrize("preset", get_args(Preset))
def test_normalising_is_that_of_one_image_bit_by_bit(preset: Preset) -> None:
    normalize, images = NormalizeConfig(preset=preset), random_images(8, 9)
    found = normalize_pixels(torch.from_numpy(images), normalize)
    assert torch.equal(found, torch.stack([normalize.apply(image) for image in images]))


@pytest.mark.parametrize("size", [(30, 41), (90, 20)])
def test_both_ways_to_make_inputs_agree(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, run on CPU tensors; also where PIL may begin with the other side."""
    images = list(random_images(*size))
    cpu = Device(NormalizeConfig(), torch.device("cpu"))
    by_pil = [make_inputs(images, scale, cpu) for scale in (0.5, 1.0, 1.5)]
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    other = Device(NormalizeConfig(), torch.device("meta"))
    for scale, expected in zip((0.5, 1.0, 1.5), by_pil, strict=True):
        assert torch.equal(make_inputs(images, scale, other), expected)


def test_photographs_of_ordinary_shape_are_resized_alike() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(40):
        size = tuple(int(side) for side in drawn.integers(30, 110, 2))
        new = scale_size((size[0], size[1]), float(drawn.uniform(0.3, 0.99)))
        if not resizes_columns_first((size[0], size[1]), new):
            continue
        image = random_images(*size, num=1)
        expected = np.asarray(Image.fromarray(image[0]).resize((new[1], new[0]), Image.Resampling.BICUBIC))
        assert np.array_equal(resize_pixels(torch.from_numpy(image), new)[0].numpy(), expected), (size, new)


def test_groups_are_decoded_in_order_and_errors_come_out() -> None:
    groups = [[2, 0], [1], [], [4, 3]]
    assert list(decode_ahead(lambda index: index * 10, groups)) == [[20, 0], [10], [], [40, 30]]
    assert list(decode_ahead(lambda index: index, [])) == []

    def fail(index: int) -> int:
        raise UserError(f"image {index}: damaged")

    with pytest.raises(UserError, match="image 7"):
        list(decode_ahead(fail, [[7], [8]]))
