# SPDX-License-Identifier: Apache-2.0
"""TIFF and PNG files of more than 8 bits a channel, written by tifffile: depth, ranges, planes, orders, compression."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.drawing import draw, prepared, write_table
from wsss_ray.config import UserError
from wsss_ray.data.deep import read_tags, read_values
from wsss_ray.data.grey import Grey, dump_grey, load_grey
from wsss_ray.data.image import decode_image, open_image

COLOUR = draw([0], 1)[0]
GREY = COLOUR.mean(axis=2)


def write(values: np.ndarray, byteorder: Any = None, **how: Any) -> bytes:
    """The bytes of a TIFF."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, byteorder=byteorder) as file:
        file.write(values, **how)
    return stream.getvalue()


def limits(low: int, high: int, samples: int, tags: tuple[int, int] = (340, 341)) -> list[tuple[Any, ...]]:
    """SMinSampleValue and SMaxSampleValue, or the other pair."""
    return [(tag, "H", samples, (value,) * samples, True) for tag, value in zip(tags, (low, high), strict=True)]


def deepen(colour: np.ndarray, top: int) -> np.ndarray:
    return np.rint(colour / 255 * top).astype(np.uint16)


def write_png(values: np.ndarray, bits: int | None = None) -> bytes:
    """A PNG of 16 bits a channel, from the format's description, with the chunk sBIT where ``bits`` are given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    stated = chunk(b"sBIT", bytes([bits] * channels)) if bits else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + stated + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "how", [{}, {"byteorder": ">"}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}]
)
@pytest.mark.parametrize("planes", [False, True])
def test_colours_of_12_bits_are_as_bright_as_those_of_8(how, planes):
    """By the limits that the file states, whatever lies how in it."""
    values = deepen(COLOUR, 4095)
    stored = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if planes else values
    more = {"planarconfig": "separate"} if planes else {}
    data = write(stored, photometric="rgb", extratags=limits(0, 4095, 3), **how, **more)
    np.testing.assert_array_equal(decode_image(data), COLOUR)
    whole = write(deepen(COLOUR, 65535)[..., :3], photometric="rgb", **how)
    np.testing.assert_array_equal(decode_image(whole), COLOUR)


@pytest.mark.parametrize("pair", [(340, 341), (280, 281)])
def test_limits_of_either_pair_are_read(pair):
    data = write(deepen(GREY, 4095), extratags=limits(0, 4095, 1, pair))
    np.testing.assert_array_equal(decode_image(data)[..., 0], np.rint(GREY))
    tags = read_tags(data)
    assert tags is not None
    assert (tags.bits, tags.samples, tags.limits) == (16, 1, (0.0, 4095.0))


def test_a_compression_that_tifffile_leaves_to_others_is_read_by_pillow():
    values = deepen(COLOUR, 4095)
    data = write_lzw(values)
    with tifffile.TiffFile(io.BytesIO(data)) as file, pytest.raises(ValueError, match="imagecodecs"):
        file.pages[0].asarray()
    image = open_image(data)
    image.load()
    np.testing.assert_array_equal(read_values(image, data), values)
    np.testing.assert_array_equal(decode_image(data, grey=Grey((0.0, 4095.0))), COLOUR)


def write_lzw(values: np.ndarray) -> bytes:
    """A TIFF of one strip in LZW: codes of 9 bits, with a clear code before the table outgrows them."""
    codes, raw = [], values.astype("<u2").tobytes()
    for start in range(0, len(raw), 200):
        codes += [256, *raw[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    plain = write(values, photometric="rgb", byteorder="<", rowsperstrip=values.shape[0])
    with tifffile.TiffFile(io.BytesIO(plain)) as file:
        tags = file.pages[0].tags
        places = {name: tags[name].valueoffset for name in ("Compression", "StripOffsets", "StripByteCounts")}
        wide = {name: tags[name].dtype for name in places}
    made = bytearray(plain)
    for name, value in (("Compression", 5), ("StripOffsets", len(plain)), ("StripByteCounts", len(packed))):
        struct.pack_into("<H" if wide[name] == 3 else "<I", made, places[name], value)
    return bytes(made) + packed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 4]), st.sampled_from(["tiff", "png"]))
def test_values_are_those_that_were_written(seed, channels, kind):
    values = np.random.default_rng(seed).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    if kind == "png":
        data = write_png(values)
    else:
        extra = {} if channels == 3 else {"extrasamples": ["unassalpha"]}
        data = write(values, photometric="rgb" if channels > 2 else "minisblack", planarconfig="contig", **extra)
    try:
        image = open_image(data)
    except UserError:
        assert (kind, channels) == ("tiff", 2), "grey with alpha of 16 bits, which Pillow does not open"
        return
    image.load()
    np.testing.assert_array_equal(read_values(image, data), values)


def test_white_may_be_zero_and_depth_may_be_signed():
    grey = np.rint(GREY)
    white = write(65535 - deepen(GREY, 65535), photometric="miniswhite")
    np.testing.assert_array_equal(decode_image(white)[..., 0], grey)
    signed = write(deepen(GREY, 32767).astype(np.int16))
    np.testing.assert_array_equal(decode_image(signed)[..., 0], grey)


def test_alpha_is_laid_on_white():
    alpha = np.full(GREY.shape, 65535, np.uint16)
    alpha[:10] = 0
    values = np.dstack([deepen(COLOUR, 65535), alpha])
    for data in (write(values, photometric="rgb", extrasamples=["unassalpha"]), write_png(values)):
        found = decode_image(data)
        assert (found[:10] == 255).all()
        np.testing.assert_array_equal(found[10:], COLOUR[10:])


def test_colours_multiplied_with_their_alpha_are_not_multiplied_again():
    alpha = np.full(GREY.shape, 0.5)
    values = np.dstack([COLOUR / 255 * alpha[..., None], alpha]) * 65535
    found = decode_image(write(values.astype(np.uint16), photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(found.astype(int) - (COLOUR / 2 + 127.5)).max() <= 3


def test_significant_bits_of_a_png_are_its_range():
    np.testing.assert_array_equal(decode_image(write_png(deepen(COLOUR, 4095), bits=12)), COLOUR)
    np.testing.assert_array_equal(decode_image(write_png(deepen(COLOUR, 65535))), COLOUR)


def test_what_trains_a_network_is_how_it_is_asked():
    """The range of a data set travels with a network as JSON, and colours of files that state none follow it."""
    learnt = Grey(found={"I;16": (0.0, 1000.0), "RGB;16": (0.0, 4095.0)})
    served = load_grey(json.loads(json.dumps(dump_grey(learnt))))
    values = deepen(COLOUR, 4095)
    for data in (write(values, photometric="rgb"), write_png(values)):
        np.testing.assert_array_equal(decode_image(data, grey=served), COLOUR)


def test_values_beyond_the_stated_range_are_one_line():
    data = write(deepen(COLOUR, 65535), photometric="rgb", extratags=limits(0, 4095, 3))
    with pytest.raises(UserError, match=r"^a\.tif: values .* leave the range 0\.\.4095; give --set grey_range="):
        decode_image(data, "a.tif")


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_a_folder_of_dark_colours_is_refused_until_its_range_is_stated(tmp_path: Path, ending: str) -> None:
    colours = [draw([place % 2], place)[0] for place in range(4)]
    for place, colour in enumerate(colours):
        values = deepen(colour, 4095)
        (tmp_path / f"p{place}{ending}").write_bytes(
            write(values, photometric="rgb") if ending == ".tif" else write_png(values)
        )
    write_table(tmp_path / "labels.csv", [(f"p{place}{ending}", ("cat", "dog")[place % 2]) for place in range(4)])
    with pytest.raises(UserError, match=r"4 of 4 images of more than 8 bits .*--set grey_range=0:4095"):
        prepared(tmp_path / "out", tmp_path)
    data, rows = prepared(tmp_path / "out", tmp_path, grey_range="0:4095")
    for place, colour in enumerate(colours):
        np.testing.assert_array_equal(decode_image(rows[f"p{place}"]["image"]), colour)
    assert any("4 images of more than 8 bits: 0..4095 became black to white" in note for note in data.notes)


def test_one_range_serves_a_folder_whose_files_state_their_own(tmp_path: Path) -> None:
    """Files that state 0..1000 and 0..4095 are read alike, so that equal values stay equal."""
    same = np.full((40, 48, 3), 900, np.uint16)
    for place, top in enumerate((1000, 4095, 4095, 4095)):
        values = same if place < 2 else deepen(draw([place % 2], place)[0], top)
        data = write(values, photometric="rgb", extratags=limits(0, top, 3))
        (tmp_path / f"p{place}.tif").write_bytes(data)
    write_table(tmp_path / "labels.csv", [(f"p{place}.tif", ("cat", "dog")[place % 2]) for place in range(4)])
    _, rows = prepared(tmp_path / "out", tmp_path)
    first, second = (decode_image(rows[f"p{place}"]["image"]) for place in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert int(first[0, 0, 0]) == round(900 / 4095 * 255)
