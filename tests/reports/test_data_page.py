# SPDX-License-Identifier: Apache-2.0
"""The page of prepared data: what it counts, and that texts of files never become markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tests.data.drawing import draw, prepared, save, tagged, write_table
from wsss_ray.reports.data_page import write_data_page

EVIL = ("<b>bold</b>", '"><img src=x onerror=alert(1)>', "R&B '; \u732b")


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read_page(path: Path) -> Tags:
    page = Tags()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_texts_of_files_are_no_markup(tmp_path):
    root = tagged(tmp_path / "m", 9, EVIL)
    evil = 'x" onload="alert(1)<i>.jpg'
    save(root / "images" / "x.jpg", draw([0], 50)[0])
    (root / "images" / "x.jpg").rename(root / "images" / evil)
    rows = [(f"p{n}.jpg", EVIL[n % 3].replace(";", "")) for n in range(9)]
    names = [name.replace(";", "") for name in EVIL]
    (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    write_table(root / "labels.csv", [*rows, (evil, names[0])])
    data, _ = prepared(tmp_path / "<u>out", root)
    out = tmp_path / "page.html"
    assert write_data_page(data.uri, out, 20).startswith("10 images, ")
    page = read_page(out)
    assert {tag for tag, _ in page.tags}.isdisjoint({"b>", "i>", "u"})
    assert not any("onload" in found or "onerror" in found or found.get("src") == "x" for _, found in page.tags)
    assert sum(tag == "img" for tag, _ in page.tags) == 10
    assert all(str(found["src"]).startswith("data:image/webp") for tag, found in page.tags if tag == "img")
    for name in (*names, evil.removesuffix(".jpg"), "<u>out"):
        assert name in page.text


def test_counts_masks_and_notes(tmp_path):
    root = tagged(tmp_path / "m", 8)
    (root / "masks" / "p3.png").unlink()
    save(root / "masks" / "p4.png", np.full((40, 48), 255, np.uint8))
    data, _ = prepared(tmp_path / "out", root)
    write_data_page(data.uri, tmp_path / "page.html", 8)
    page = read_page(tmp_path / "page.html")
    assert "7 of 8 images have a mask; none for p3.jpg" in page.text
    assert "no mask" in page.text
    assert "mask: ignored" in page.text
    assert page.text.count("labels: cat") == 4
    write_data_page(data.uri, tmp_path / "page.html", 0)
    assert not any(tag == "img" for tag, _ in read_page(tmp_path / "page.html").tags)
