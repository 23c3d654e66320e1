# SPDX-License-Identifier: Apache-2.0
"""Every kind of image and mask file ends as RGB or indices, or as one line that names the file."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.image import (
    decode_image,
    decode_mask,
    decode_saliency,
    encode_grey,
    encode_jpeg,
    encode_mask,
    list_values,
    open_image,
    rotate,
    shown_size,
    voc_palette,
)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_palette_by_hand():
    palette = voc_palette()
    by_hand = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        15: (192, 128, 128),
        255: (224, 224, 192),
    }
    for index, colour in by_hand.items():
        assert tuple(palette[index].tolist()) == colour
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


def test_palette_of_the_released_code(golden):
    np.testing.assert_array_equal(voc_palette(), golden("b15_utils.npz")["palette_256x3"])


def test_mask_round_trip():
    """WS-FCN spec F.34: mode P, the same indices, index 15 in its colour."""
    mask = np.random.default_rng(0).integers(0, 256, (17, 23)).astype(np.uint8)
    data = encode_mask(mask)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    np.testing.assert_array_equal(decode_mask(data), mask)
    coloured = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(coloured, voc_palette()[mask])


def test_mask_with_own_short_palette():
    data = encode_mask(np.array([[0, 1]], np.uint8), np.array([[1, 2, 3], [4, 5, 6]]))
    assert np.array(Image.open(io.BytesIO(data)).convert("RGB")).tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_indices(bits):
    """PIL stretches grey PNGs of few bits to 0..255; indices are what the file stores."""
    mask = (np.arange(16, dtype=np.uint8) % min(2**bits, 16)).reshape(4, 4)
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    np.testing.assert_array_equal(decode_mask(saved(image, bits=bits)), mask)
    if bits == 1:
        np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(mask.astype(bool)))), mask)
    else:
        np.testing.assert_array_equal(decode_mask(_grey_png(mask, bits)), mask)


def _grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of ``bits`` per pixel, written by hand since PIL writes none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row.tolist())
        digits += "0" * (-len(digits) % 8)
        lines += b"\0" + bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bit_mask():
    assert decode_mask(saved(Image.fromarray(np.array([[0, 7, 255]], np.uint16)))).tolist() == [[0, 7, 255]]
    with pytest.raises(UserError, match=r"big\.png.*300"):
        decode_mask(saved(Image.fromarray(np.array([[300]], np.uint16))), "big.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_is_no_mask(mode):
    with pytest.raises(UserError, match=r"m\.png: a colour image.*palette"):
        decode_mask(saved(Image.new(mode, (3, 3))), "m.png")


def test_jpeg_is_no_mask():
    with pytest.raises(UserError, match="JPEG compression changes class indices"):
        decode_mask(saved(Image.new("L", (3, 3)), "JPEG"), "m.jpg")


GREY = np.array([[0, 60], [120, 255]], np.uint8)


def test_grey_image():
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(GREY))), np.stack([GREY] * 3, axis=2))


def test_bilevel_image():
    assert decode_image(saved(Image.fromarray(GREY > 100)))[:, :, 0].tolist() == [[0, 0], [255, 255]]


def test_sixteen_bit_image_is_scaled_not_clipped():
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(deep)))[:, :, 0], GREY)
    floats = Image.fromarray((GREY / 255).astype(np.float32))
    np.testing.assert_array_equal(decode_image(saved(floats, "TIFF"))[:, :, 1], GREY)


def test_cmyk_jpeg():
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    assert np.abs(decode_image(saved(image, "JPEG", quality=100)).astype(int) - (200, 40, 90)).max() <= 4


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode_image(saved(image)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode_image(saved(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode_image(saved(palette, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(turn):
    """``rotate`` turns an array as PIL turns the image; the header gives the same size."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(Image.fromarray(image), exif=exif)
    shown = decode_image(data)
    np.testing.assert_array_equal(shown, rotate(image, turn))
    assert shown_size(open_image(data)) == shown.shape[:2] == ((7, 5) if turn >= 5 else (5, 7))
    if turn == 6:  # stored on its left side: the lower left corner comes to the upper left
        np.testing.assert_array_equal(shown[0, 0], image[4, 0])


def test_broken_files_are_named():
    data = encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    with pytest.raises(UserError, match=r"cut\.jpg: damaged or cut short"):
        decode_image(data[: len(data) // 2], "cut.jpg")
    for junk in (b"", b"hello", data[:10]):
        with pytest.raises(UserError, match=r"junk\.jpg: cannot decode image"):
            decode_image(junk, "junk.jpg")
    png = encode_mask(np.random.default_rng(0).integers(0, 256, (128, 128)).astype(np.uint8))
    with pytest.raises(UserError, match=r"cut\.png: damaged"):
        decode_mask(png[: len(png) // 2], "cut.png")


def test_memoryview_is_enough():
    assert decode_image(memoryview(saved(Image.fromarray(GREY)))).shape == (2, 2, 3)


def test_saliency_kinds():
    np.testing.assert_array_equal(decode_saliency(encode_grey(GREY)), GREY)
    colour = np.stack([GREY, GREY // 2, GREY], axis=2)
    np.testing.assert_array_equal(decode_saliency(encode_grey(colour)), colour)
    np.testing.assert_array_equal(decode_saliency(saved(Image.fromarray(GREY.astype(np.uint16) * 257))), GREY)


@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32]),
        array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9),
    )
)
def test_values_are_those_of_numpy(mask: np.ndarray) -> None:
    assert list_values(mask) == np.unique(mask).tolist()
