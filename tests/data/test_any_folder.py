# SPDX-License-Identifier: Apache-2.0
"""Folders drawn at random: what comes out equals what was drawn, or it was refused in a line that names a file."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.drawing import draw, prepared, save, write_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask

ENDINGS = (".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp", ".tif", ".bmp", ".gif")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252")
LETTERS = st.characters(codec="cp1252", categories=("L", "N"))
WORDS = st.text(st.one_of(LETTERS, st.sampled_from(" #%+&()-_.=@\u00e9\u00df")), min_size=1, max_size=8)
NAMES = WORDS.map(str.strip).filter(lambda name: name.strip(".") != "" and not name.startswith((".", "@", "$")))
LABELS = WORDS.map(str.strip).filter(lambda name: any(c.isalpha() for c in name) and name.lower() != "background")
MASKS = {
    "as it is": ("{}.png", "L"),
    "palette": ("{}.png", "P"),
    "reduced palette": ("{}.png", "reduced"),
    "tail": ("{}_mask.png", "L"),
    "whole name": ("{}{}.png", "L"),
    "tiff": ("{}.tif", "L"),
    "colours": ("{}.png", "RGB"),
}


def store(path: Path, mask: np.ndarray, mode: str) -> None:
    from PIL import Image

    from wsss_ray.data.image import voc_palette

    palette = voc_palette()
    if mode == "RGB":
        save(path, palette[mask])
        return
    image = Image.fromarray(mask, "L")
    if mode == "reduced":
        used = np.unique(mask)
        image = Image.fromarray(np.searchsorted(used, mask).astype(np.uint8), "L")
        image.putpalette(palette[used].tobytes())
    elif mode == "P":
        image.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@st.composite
def folders(draw_from):
    classes = draw_from(st.lists(LABELS, min_size=1, max_size=4, unique_by=lambda name: name.casefold()))
    names = draw_from(st.lists(NAMES, min_size=3, max_size=8, unique=True))
    images = []
    for name in names:
        folder = draw_from(st.sampled_from(("", "", "x/", "y/z/")))
        labels = draw_from(st.lists(st.integers(0, len(classes) - 1), min_size=1, max_size=2, unique=True))
        images.append((folder, name, draw_from(st.sampled_from(ENDINGS)), sorted(labels)))
    return {
        "classes": classes,
        "images": images,
        "masks": draw_from(st.sampled_from([None, *MASKS])),
        "encoding": draw_from(st.sampled_from(ENCODINGS)),
        "inner": draw_from(st.sampled_from(("images/", ""))),
        "form": draw_from(st.sampled_from(("NFC", "NFD"))),
    }


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(folders())
def test_what_comes_out_is_what_was_drawn(drawn):
    with tempfile.TemporaryDirectory() as scratch:
        root, expected, rows = Path(scratch) / "mine", {}, []
        for place, (folder, name, ending, labels) in enumerate(drawn["images"]):
            image, mask = draw(labels, place)
            file = f"{folder}{name}{ending}"
            save(root / drawn["inner"] / unicodedata.normalize(drawn["form"], file), image)
            if drawn["masks"] is not None:
                pattern, mode = MASKS[drawn["masks"]]
                store(root / "masks" / folder / pattern.format(name, ending), mask, mode)
            expected[unicodedata.normalize("NFC", file)] = (labels, mask if drawn["masks"] is not None else None)
            rows.append((file, ";".join(drawn["classes"][label] for label in labels)))
        write_table(root / "labels.csv", rows, encoding=drawn["encoding"])
        (root / "classes.txt").write_bytes("\n".join(drawn["classes"]).encode(drawn["encoding"]))
        try:
            data, found = prepared(Path(scratch) / "out", root)
        except UserError as error:
            line = str(error)
            parts = [
                *(name for _, name, _, _ in drawn["images"]),
                "classes.txt",
                "labels.csv",
                "masks",
                *drawn["classes"],
            ]
            assert any(part in line for part in parts), line
            assert not (Path(scratch) / "out" / "manifest.json").exists()
            return
        names = data.file_names()
        assert {unicodedata.normalize("NFC", names[key]) for key in found} == set(expected)
        for key, row in found.items():
            labels, mask = expected[unicodedata.normalize("NFC", names[key])]
            said = [data.manifest.classes[label] for label in row["labels"]]
            wanted = [drawn["classes"][label] for label in labels]
            assert [name.split() for name in sorted(said)] == [name.split() for name in sorted(wanted)]
            assert (row["mask"] is None) == (mask is None)
            if mask is not None:
                np.testing.assert_array_equal(decode_mask(row["mask"]), mask)
