# SPDX-License-Identifier: Apache-2.0
"""Files that are no files, names that lead elsewhere, values too deep or too dark, texts of any kind."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.data.drawing import draw, prepared, save, tagged, write_table
from tests.data.dry_pass import find_problems
from wsss_ray.config import UserError
from wsss_ray.data.files import make_ids
from wsss_ray.data.image import decode_image, decode_saliency
from wsss_ray.data.names import LONGEST_ID, contain_path, find_id_fault
from wsss_ray.data.source import read_file
from wsss_ray.data.sources import open_source
from wsss_ray.data.text import parse_xml, read_text


@pytest.fixture(autouse=True)
def _never_hang():
    """A read that waits for a pipe ends with an error instead of never."""

    def stop(*_):
        raise TimeoutError("waited for a pipe or device")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_pipes_and_devices_are_no_images(tmp_path):
    root = tagged(tmp_path / "m")
    make_pipe(root / "images" / "p3.jpg")
    with pytest.raises(UserError, match=r"p3\.jpg: image cannot be read \(not a regular file\)"):
        prepared(tmp_path / "out", root)
    (root / "images" / "p3.jpg").unlink()
    (root / "images" / "p3.jpg").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file"):
        prepared(tmp_path / "out", root)


def test_pipes_are_no_masks(tmp_path):
    root = tagged(tmp_path / "m")
    make_pipe(root / "masks" / "p3.png")
    data, _ = prepared(tmp_path / "out", root)
    assert any("7 of 8 images have a mask; none for p3.jpg" in note for note in data.notes)
    rows = [(f"p{n}.jpg", ("cat", "dog")[n % 2], f"masks/p{n}.png") for n in range(8)]
    write_table(root / "labels.csv", rows, ("image", "labels", "mask"))
    with pytest.raises(UserError, match=r"p3\.png: mask cannot be read \(not a regular file\)"):
        prepared(tmp_path / "named", root)


@pytest.mark.parametrize("name", ["labels.csv", "classes.txt"])
def test_pipes_are_no_lists(tmp_path, name):
    root = tagged(tmp_path / "m")
    make_pipe(root / name)
    with pytest.raises(
        UserError, match="m: (holds 8 images, but nothing says their labels|there are masks but no list)"
    ):
        prepared(tmp_path / "out", root)
    with pytest.raises(UserError, match="not a regular file"):
        read_text(root / name)


def test_a_socket_is_no_file(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(UserError, match="not a regular file"):
            read_file(str(tmp_path / "s"), "image")


def test_texts_that_are_too_large_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("wb") as stream:
        stream.truncate(2_000_000_000)
    with pytest.raises(UserError, match=r"labels\.csv: 2\.0 GB, which is no list"):
        read_text(path)


def test_images_listed_from_outside_have_names_inside(tmp_path):
    """The same file name in two folders outside stays two images, and no name leads out of a folder."""
    root = tmp_path / "m"
    for n, place in enumerate(("one", "two")):
        save(tmp_path / place / "1.jpg", draw([n], n)[0])
    save(root / "a.jpg", draw([0], 5)[0])
    write_table(
        root / "labels.csv",
        [("../one/1.jpg", "cat"), (str(tmp_path / "two/1.jpg"), "dog"), (str(root / "a.jpg"), "cat")],
    )
    data, rows = prepared(tmp_path / "out", root)
    assert len(rows) == 3
    assert data.file_names()["a"] == "a.jpg"
    for name, file in data.file_names().items():
        assert find_id_fault(name) is None
        assert ".." not in Path(file).parts
        assert not Path(file).is_absolute()


@pytest.mark.parametrize(
    ("written", "kept"),
    [("../../x.jpg", "x.jpg"), ("/etc/x.jpg", "etc/x.jpg"), ("C:\\a\\x.jpg", "a/x.jpg"), ("./a/../x.jpg", "a/x.jpg")],
)
def test_paths_are_contained(written, kept):
    assert contain_path(written) == kept


@pytest.mark.parametrize("bad", ["../x", "a/b", "a\\b", "", " ", "..", "a\nb", "a\0b", "x" * 201, "\udcff"])
def test_ids_that_name_no_file_are_refused(tmp_path, bad):
    """Whatever a source says, no id leads out of the folder that masks are written to."""
    source = open_source("folder", tagged(tmp_path / "m"))
    assert find_problems(source) == []
    from dataclasses import replace

    source.items = [replace(item, image_id=bad) if item.image_id == "p3" else item for item in source.items]
    assert [str(problem).partition("; ")[2] for problem in find_problems(source) if problem.kind == "id"] == [
        "rename the image"
    ]


def test_ids_of_long_and_strange_names():
    names = [
        "x" * 150 + "/" + "y" * 150 + ".jpg",
        "x" * 150 + "/" + "y" * 149 + "z.jpg",
        "a\nb.jpg",
        "a\tb.jpg",
        "\udcff.jpg",
    ]
    ids = make_ids(names)
    assert len(set(ids.values())) == len(names)
    assert all(find_id_fault(made) is None for made in ids.values())
    assert max(len(made) for made in ids.values()) <= LONGEST_ID


def test_names_that_are_no_text(tmp_path):
    root = tmp_path / "m"
    save(root / "dog" / "a.jpg", draw([1], 3)[0])
    save(root / "cat" / "b.jpg", draw([0], 4)[0])
    shutil.copy(root / "cat" / "b.jpg", os.fsencode(str(root / "cat")) + b"/\xff\xfe.jpg")
    data, rows = prepared(tmp_path / "out", root)
    assert len(rows) == 3
    assert sum("\ufffd" in file for file in data.file_names().values()) == 1


def test_saliency_of_12_bits_in_16_is_refused_and_faint_maps_are_noted(tmp_path):
    root = tagged(tmp_path / "m")
    for n in range(8):
        save(root / "saliency" / f"p{n}.png", ((draw([n % 2], n)[1] > 0) * 4095).astype(np.uint16))
    with pytest.raises(UserError, match=r"no saliency map holds more than 4095 of 65535; save them in 8 bits"):
        prepared(tmp_path / "deep", root)
    for n in range(8):
        save(root / "saliency" / f"p{n}.png", ((draw([n % 2], n)[1] > 0) * 100).astype(np.uint8))
    data, rows = prepared(tmp_path / "faint", root)
    assert any("no saliency map holds more than 100 of 255" in note for note in data.notes)
    assert decode_saliency(rows["p0"]["saliency"]).max() == 100


@pytest.mark.parametrize("typed", ["0:4095", "0,4095", "[0, 4095]", "0 : 4095"])
def test_ranges_as_people_type_them(tmp_path, typed):
    grey = draw([0], 1)[0].mean(2)
    for n, name in enumerate(("cat", "dog")):
        save(tmp_path / "m" / name / f"{n}.tif", (grey / 255 * 4095).astype(np.uint16))
    _, rows = prepared(tmp_path / "out", tmp_path / "m", grey_range=typed)
    assert np.abs(decode_image(rows["cat__0"]["image"])[..., 0] - grey).max() < 1


@pytest.mark.parametrize("typed", ["4095", "0:1:2", "a:b", "4095:0", "0,5:1"])
def test_ranges_that_are_none(tmp_path, typed):
    with pytest.raises(UserError, match="folder: grey_range"):
        prepared(tmp_path / "out", tagged(tmp_path / "m"), grey_range=typed)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-8-sig", "cp1252", "shift_jis"])
def test_xml_in_the_encoding_it_states(encoding):
    word = "K\u00e4fer" if encoding == "cp1252" else "\u732b"
    text = (
        f'<?xml version="1.0" encoding="{encoding.replace("-sig", "")}"?>\n<annotation><name>{word}</name></annotation>'
    )
    assert parse_xml(text.encode(encoding), "a.xml").findtext("name") == word


def test_xml_that_states_no_encoding_or_is_none():
    assert parse_xml("<a><name>K\u00e4fer</name></a>".encode("cp1252"), "a.xml").findtext("name") == "K\u00e4fer"
    with pytest.raises(UserError, match=r"a\.xml: not valid XML"):
        parse_xml(b"<a><name>", "a.xml")
    with pytest.raises(UserError, match=r"a\.xml"):
        parse_xml(b'<?xml version="1.0" encoding="nonsense"?><a/>', "a.xml")
