# SPDX-License-Identifier: Apache-2.0
"""What is too large, or no file at all, is refused in a line before it is read; large tables take little memory."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.drawing import save
from wsss_ray.cli import choices
from wsss_ray.config import UserError
from wsss_ray.data.checks import inspect_item
from wsss_ray.data.folder import open_folder
from wsss_ray.data.image import MAX_PIXELS, decode_image
from wsss_ray.data.source import MAX_BYTES, read_file
from wsss_ray.data.sources import open_source
from wsss_ray.data.tables import read_csv


def test_images_above_the_limit_are_refused_by_their_header(tmp_path: Path) -> None:
    assert choices.MAX_PIXELS == MAX_PIXELS
    root = tmp_path / "images"
    root.mkdir()
    Image.new("L", (300, 200)).save(root / "cat.png")
    (root / "labels.csv").write_text("image,labels\ncat.png,cat\n")
    for limit, refused in ((59_999, True), (60_000, False)):
        source = open_source("folder", root, max_pixels=str(limit))
        (item,) = source.items
        problems = inspect_item(item, source.load.reading).errors  # type: ignore[attr-defined]
        assert [problem.kind for problem in problems] == ["too many pixels"] * refused
    told = "cat.png: 300 x 200 pixels, and 59999 are the limit; scale it down or raise --max-pixels"
    with pytest.raises(UserError, match=told):
        decode_image((root / "cat.png").read_bytes(), "cat.png", max_pixels=59_999)


def test_what_was_let_in_is_read_whatever_pil_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", np.zeros((30, 40), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image((tmp_path / "a.png").read_bytes()).size == 30 * 40 * 3
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("role", ["image", "mask", "saliency", "labels"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link"])
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path, role: str, kind: str) -> None:
    """Reading it could last for ever."""
    place = tmp_path / "odd.png"
    with socket.socket(socket.AF_UNIX) as holder:
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "socket":
            holder.bind(str(place))
        elif kind == "device":
            place.symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / "pipe")
            place.symlink_to(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a regular file"):
            read_file(str(place), role)
        (tmp_path / "images").mkdir()
        save(tmp_path / "images" / "cat.png", np.zeros((8, 8), np.uint8))
        labels = tmp_path / "images" / "labels.csv"
        if role == "labels":
            labels.symlink_to(place)
            with pytest.raises(UserError):
                open_folder(tmp_path / "images", labels=str(labels))
        else:
            column = {"image": "image"}.get(role, role)
            labels.write_text(f"image,labels{'' if role == 'image' else ',' + column}\n")
            with labels.open("a") as stream:
                stream.write(f"{place},cat\n" if role == "image" else f"cat.png,cat,{place}\n")
            assert "\n" not in look_at(tmp_path / "images")


def look_at(root: Path) -> str:
    """What is said of a folder whose items are all inspected; without an end it would hang here."""
    try:
        source = open_folder(root)
        problems = [inspect_item(item, source.load.reading).errors for item in source.items]  # type: ignore[attr-defined]
    except UserError as error:
        return str(error)
    return str(problems)


def test_files_of_gigabytes_are_refused_by_their_size(tmp_path: Path) -> None:
    place = tmp_path / "large.png"
    with place.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"large.png: image cannot be read \(1.0 GB, and 1 GB are the limit\)"):
        read_file(str(place), "image")


def test_a_large_table_takes_little_more_than_its_lines(tmp_path: Path) -> None:
    """Rows are read one after the other: 30,000 of them in a few times the bytes of the file."""
    path = tmp_path / "labels.csv"
    with path.open("w") as stream:
        stream.write("image,labels,split\n")
        stream.writelines(
            f"images/{n % 50}/image_{n:07d}.jpg,class_{n % 20};class_{n % 7},train\n" for n in range(30_000)
        )
    tracemalloc.start()
    lines, _ = read_csv(path, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lines) == 30_000
    assert lines[7].labels == ("class_7", "class_0")
    assert peak < 8 * path.stat().st_size
