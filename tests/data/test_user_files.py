# SPDX-License-Identifier: Apache-2.0
"""Files as people have them: names, endings, encodings, depths; what is not used is counted."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.drawing import draw, prepared, save, shown, tagged, write_table
from wsss_ray.config import UserError
from wsss_ray.data.files import Companions, FileTable, image_endings, is_system, make_ids
from wsss_ray.data.image import decode_image, decode_mask, decode_saliency
from wsss_ray.data.names import gather_classes, list_classes
from wsss_ray.data.sources import open_source
from wsss_ray.data.text import read_text


def small(path: Path, label: int = 0, seed: int = 0) -> Path:
    return save(path, draw([label], seed)[0])


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git", "Thumbs.db", "$RECYCLE.BIN"])
def test_hidden_and_system_folders_are_no_classes(tmp_path, name):
    for place in range(4):
        small(tmp_path / ("cat", "dog")[place % 2] / f"{place}.jpg", place % 2, place)
    small(tmp_path / "cat" / name / "0-checkpoint.jpg")
    small(tmp_path / name / "x.jpg")
    (tmp_path / "cat" / "._0.jpg").write_bytes(b"resource fork")
    source = open_source("folder", tmp_path)
    assert source.classes == ["cat", "dog"]
    assert len(source.items) == 4
    assert is_system(name)


def test_every_ending_that_can_be_read_is_found(tmp_path):
    endings = [".jpg", ".JPEG", ".jpe", ".jfif", ".Png", ".TIF", ".webp", ".bmp", ".gif", ".jp2", ".avif"]
    assert {ending.lower() for ending in endings} <= image_endings()
    for place, ending in enumerate(endings):
        image = Image.fromarray(draw([place % 2], place)[0])
        path = tmp_path / ("cat", "dog")[place % 2] / f"i{place}{ending}"
        path.parent.mkdir(exist_ok=True)
        image.save(path, {".jpe": "JPEG", ".jfif": "JPEG"}.get(ending))
    (tmp_path / "cat" / "raw.CR2").write_bytes(b"II*\0")
    (tmp_path / "cat" / "photo.svg").write_text("<svg/>")
    small(tmp_path / "loose.png")
    data, rows = prepared(tmp_path / "out", tmp_path)
    assert len(rows) == len(endings)
    (note,) = data.notes
    assert note.startswith(f"used {len(endings)} of {len(endings) + 3} images: ")
    for reason in ("1 in no class folder", "1 .cr2 are camera raw", "1 .svg cannot be read"):
        assert reason in note


def test_heic_needs_its_plug_in(tmp_path):
    if ".heic" in image_endings():
        pytest.skip("pillow-heif is installed")
    small(tmp_path / "cat" / "a.jpg")
    (tmp_path / "cat" / "b.HEIC").write_bytes(b"....ftypheic")
    assert open_source("folder", tmp_path).notes == ["used 1 of 2 images: 1 .heic need pip install 'wsss-ray[heic]'"]
    write_table(tmp_path / "labels.csv", [("cat/b.HEIC", "cat")])
    with pytest.raises(UserError, match=r"b\.HEIC: .* need pip install 'wsss-ray\[heic\]'"):
        prepared(tmp_path / "out", tmp_path)


def test_heic_is_read_with_its_plug_in(tmp_path):
    """It is stored as PNG, so that whoever reads the prepared data needs no plug-in."""
    pytest.importorskip("pillow_heif", reason="pip install 'wsss-ray[heic]'")
    assert {".heic", ".heif"} <= image_endings()
    for place in range(4):
        image, mask = draw([place % 2], place, (64, 96))
        path = save(tmp_path / "images" / f"p{place}.HEIC", image, format="HEIF", quality=100, chroma=444)
        assert path.read_bytes()[4:8] == b"ftyp"
        save(tmp_path / "masks" / f"p{place}.png", mask)
    write_table(tmp_path / "labels.csv", [(f"p{place}.HEIC", ("cat", "dog")[place % 2]) for place in range(4)])
    data, rows = prepared(tmp_path / "out", tmp_path, classes="cat,dog")
    assert data.notes == []
    for place in range(4):
        image, mask = draw([place % 2], place, (64, 96))
        row = rows[f"p{place}"]
        assert row["image"].startswith(b"\x89PNG")
        assert np.abs(decode_image(row["image"]).astype(int) - image).mean() < 4
        np.testing.assert_array_equal(decode_mask(row["mask"]), mask)


def test_images_of_one_stem_are_different_images(tmp_path):
    rows = [
        (name, "cat") for name in ("a.jpg", "a.png", "x/b.jpg", "y/b.jpg", "x__c.jpg", "x/c.jpg", "d.e.jpg", "d.jpg")
    ]
    for place, (name, _) in enumerate(rows):
        small(tmp_path / "images" / name, 0, place)
    write_table(tmp_path / "labels.csv", rows)
    data, found = prepared(tmp_path / "out", tmp_path)
    assert len(found) == len(rows)
    for name, file in data.file_names().items():
        expected = decode_image((tmp_path / "images" / file).read_bytes())
        np.testing.assert_array_equal(decode_image(found[name]["image"]), expected)
    assert {"x__b", "y__b", "d.e", "d"} <= set(found)


def test_ids_are_unique_whatever_the_names():
    names = ["x/a.png", "x__a.png", "X/A.png", "x__a_png.png", "x/a_png.png", "b.jpg", "b.jpeg", "b_jpg.png"]
    ids = make_ids(names)
    assert len({made.casefold() for made in ids.values()}) == len(names)
    assert make_ids(["x/a.jpg", "b.jpg"]) == {"x/a.jpg": "x__a", "b.jpg": "b"}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("IMG_1.JPG", "img_1.png"),
        ("a.jpg", "a.jpg.png"),
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "A-mask.TIF"),
        ("x/a.jpg", "x/a.png"),
        ("x/a.jpg", "x/a_seg.png"),
        ("x/a.jpg", "a.png"),
        ("x/a.jpg", "x__a.png"),
        ("\u00dcb.jpg", unicodedata.normalize("NFD", "\u00dcb") + ".png"),
        ("a.b.jpg", "a.b.png"),
        ("a.b.jpg", "a.b.jpg_mask.png"),
    ],
)
def test_masks_are_matched_by_the_rules_people_use(tmp_path, image, mask):
    small(tmp_path / "images" / image)
    save(tmp_path / "masks" / mask, draw([0], 0)[1])
    write_table(tmp_path / "labels.csv", [(image, "cat")])
    data, rows = prepared(tmp_path / "out", tmp_path)
    (row,) = rows.values()
    assert shown(row) == [0, 1]
    assert data.notes == []


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.jpg"], ["a.png", "a.tif"], r"a\.png and a\.tif both fit a\.jpg; remove or rename"),
        (["a.jpg"], ["a.png", "a_mask.png"], r"both fit a\.jpg"),
        (["x/b.jpg", "y/b.jpg"], ["b.png"], r"b\.png: fits the images x/b\.jpg and y/b\.jpg; put it .*y/b\.png"),
        (["a.jpg", "a.png"], ["a.png"], r"fits the images a\.jpg and a\.png"),
        (["a.jpg"], ["z.png"], r"no mask of any image there, but z\.png; expected a\.png for a\.jpg"),
    ],
)
def test_masks_that_are_not_clear_are_refused(tmp_path, images, masks, message):
    for name in images:
        small(tmp_path / "images" / name)
    for name in masks:
        save(tmp_path / "masks" / name, draw([0], 0)[1])
    write_table(tmp_path / "labels.csv", [(name, "cat") for name in images])
    with pytest.raises(UserError, match=message):
        open_source("folder", tmp_path)


def test_masks_that_are_missing_or_left_over_are_counted(tmp_path):
    root = tagged(tmp_path / "a", 6)
    for name in ("p0", "p3"):
        (root / "masks" / f"{name}.png").rename(root / "masks" / f"other_{name}.png")
    notes = open_source("folder", root).notes
    assert "4 of 6 images have a mask; none for p0.jpg, p3.jpg" in notes
    assert any(note.endswith("2 masks belong to no image: other_p0.png, other_p3.png") for note in notes)


def test_masks_beside_their_images_are_no_images(tmp_path):
    for place in range(4):
        folder = tmp_path / ("cat", "dog")[place % 2]
        image, mask = draw([place % 2], place)
        save(folder / f"{place}.jpg", image)
        save(folder / f"{place}_mask.png", mask)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    _, rows = prepared(tmp_path / "out", tmp_path)
    assert len(rows) == 4
    assert all(shown(row) == [0, row["labels"][0] + 1] for row in rows.values())


def test_tables_name_files_in_many_ways(tmp_path):
    for name in ("sub/IMG_7.JPG", "b.jpeg", unicodedata.normalize("NFD", "\u00e9.png"), "only/here.jpg"):
        small(tmp_path / name)
    table = FileTable(tmp_path)
    for written, name in (
        ("sub\\img_7.jpg", "sub/IMG_7.JPG"),
        ("./b.jpeg", "b.jpeg"),
        ("b", "b.jpeg"),
        ("\u00e9.png", unicodedata.normalize("NFD", "\u00e9.png")),
        ("here.jpg", "only/here.jpg"),
    ):
        assert table.find(written) == tmp_path / name, written
    assert table.find("nothing.jpg") is None
    small(tmp_path / "other/here.jpg")
    with pytest.raises(UserError, match="have this name; write the path"):
        FileTable(tmp_path).find("here.jpg")


def test_companions_follow_links_once(tmp_path):
    save(tmp_path / "masks" / "a.png", draw([0], 0)[1])
    (tmp_path / "masks" / "again").symlink_to(tmp_path / "masks")
    companions = Companions(tmp_path / "masks", "mask")
    assert companions.find("a.jpg", "a") == tmp_path / "masks" / "a.png"
    assert companions.notes(1) == []


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_texts_in_many_encodings(tmp_path, encoding, end):
    root = tagged(tmp_path / "a", names=("K\u00e4fer", "Hund"))
    names = ("K\u00e4fer", "Hund")
    lines = ["image,labels", *(f"p{place}.jpg,{names[place % 2]}" for place in range(8))]
    (root / "labels.csv").write_bytes((end.join(lines) + end * 3).encode(encoding))
    (root / "classes.txt").write_bytes(end.join(["K\u00e4fer", "Hund", ""]).encode(encoding))
    data, rows = prepared(tmp_path / "out", root)
    assert data.manifest.classes == ("K\u00e4fer", "Hund")
    assert [rows[f"p{place}"]["labels"] for place in range(8)] == [[place % 2] for place in range(8)]
    assert len([note for note in data.notes if "read as cp1252" in note]) == 2 * (encoding == "cp1252")


def test_encodings_that_are_not_certain_are_refused(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\u732b\n\u72d7\n".encode("gb18030"))
    with pytest.raises(UserError, match=r"classes\.txt: not UTF-8, and .* all fit; save it as UTF-8"):
        read_text(path)
    assert read_text(path, "gb18030").text == "\u732b\n\u72d7\n"
    path.write_bytes("\u043a\u043e\u0448\u043a\u0430\n\u0441\u043e\u0431\u0430\u043a\u0430\n".encode("cp1251"))
    assert read_text(path).text.startswith("\u043a\u043e\u0448\u043a\u0430")
    with pytest.raises(UserError, match="encoding 'klingon' is unknown"):
        read_text(path, "klingon")
    path.write_bytes(b"a\0b\0\0\0c")
    with pytest.raises(UserError, match=r"classes\.txt"):
        read_text(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", 'image,labels\na.jpg,cat\n"b.jpg,dog\n', r"labels\.csv:3: not a line of a CSV file"),
        ("labels.csv", "image,labels,labels\na.jpg,cat,\n", r"column 'labels' comes twice"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "labels": ["cat"]}\n{"file_name": NaN}\n',
            r"metadata\.jsonl:2: holds NaN",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "labels": "cat"}\n\n[1\n',
            r"metadata\.jsonl:3: line 1: not valid JSON",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    small(tmp_path / "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        open_source("folder", tmp_path)
    assert "\n" not in str(error.value)


def test_line_separators_inside_json_end_no_line(tmp_path):
    lines = []
    for place in range(4):
        small(tmp_path / f"p{place}.jpg", place % 2, place)
        line = {"file_name": f"p{place}.jpg", "labels": [("cat", "dog")[place % 2]], "text": "one\u2028two\u0085x"}
        lines.append(json.dumps(line, ensure_ascii=False))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(open_source("folder", tmp_path).items) == 4


def test_tables_of_spreadsheets(tmp_path):
    for place in range(4):
        small(tmp_path / f"p{place}.jpg", place % 2, place)
    (tmp_path / "labels.csv").write_text(
        "Image , Labels, Split \np0.jpg,cat,Train\np1.jpg,dog,TRAINING\np2.jpg,cat,Validation\np3.jpg,dog,val\n,,\n,,\n"
    )
    source = open_source("folder", tmp_path)
    assert source.splits == ("train", "val")
    assert [item.splits[0] for item in source.items] == ["train", "train", "val", "val"]


def test_labels_that_look_alike_are_one_class():
    spellings = [
        "caf\u00e9",
        "cafe\u0301",
        "Caf\u00e9",
        "tennis racket",
        "tennis\u00a0racket",
        "tennis  racket",
        "dog",
        "dog\u200b",
        "\ufeffdog",
    ]
    classes = gather_classes(spellings + ["caf\u00e9", "dog"])
    assert classes.names == ("caf\u00e9", "dog", "tennis racket")
    assert {classes.find(name) for name in spellings} == {0, 1, 2}
    assert len(classes.notes) == 3
    assert classes.find("cow") is None
    for first, second in (("dog", "Dog"), ("caf\u00e9", "cafe\u0301"), ("a b", "a\u00a0b"), ("cat", "cat\u200b")):
        with pytest.raises(UserError, match=r"classes\.txt: classes .* look alike"):
            list_classes([first, second], "classes.txt")


def grey_folder(root: Path, arrays: list[np.ndarray], ending: str, **how) -> Path:
    rows = []
    for place, array in enumerate(arrays):
        save(root / f"p{place}{ending}", array, **how)
        rows.append((f"p{place}{ending}", ("cat", "dog")[place % 2]))
    write_table(root / "labels.csv", rows)
    return root


def greys(scale: float, dtype: str, number: int = 4) -> list[np.ndarray]:
    made = []
    for place in range(number):
        grey = draw([place % 2], place)[0].mean(axis=2) / 255 * (1.0 if place else 0.4)
        made.append((grey * scale).astype(dtype))
    return made


def expect(arrays: list[np.ndarray], scale: float) -> list[np.ndarray]:
    return [np.rint(array.astype(np.float64) / scale * 255).astype(np.uint8) for array in arrays]


def agree(rows, expected: list[np.ndarray]) -> None:
    for place, array in enumerate(expected):
        pixels = decode_image(rows[f"p{place}"]["image"])
        np.testing.assert_array_equal(pixels[..., 0], array)
        assert (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bits_are_read_by_their_depth(tmp_path, ending):
    arrays = greys(65535, "uint16")
    data, rows = prepared(tmp_path / "out", grey_folder(tmp_path / "a", arrays, ending))
    agree(rows, expect(arrays, 65535))
    assert any("0..65535 became black to white" in note for note in data.notes)


def test_12_bits_in_16_are_refused_until_the_range_is_stated(tmp_path):
    arrays = greys(4095, "uint16")
    root = grey_folder(tmp_path / "a", arrays, ".png")
    with pytest.raises(UserError, match=r"4 of 4 images of more than 8 bits .*--set grey_range=0:4095"):
        prepared(tmp_path / "out", root)
    _, rows = prepared(tmp_path / "out", root, grey_range="0:4095")
    agree(rows, expect(arrays, 4095))


def test_floats_from_0_to_1_and_with_stated_limits(tmp_path):
    arrays = greys(1.0, "float32")
    _, rows = prepared(tmp_path / "out", grey_folder(tmp_path / "a", arrays, ".tif"))
    agree(rows, expect(arrays, 1.0))
    large = greys(1000.0, "float32")
    root = grey_folder(tmp_path / "b", large, ".tif")
    with pytest.raises(UserError, match=r"leave the range 0\.\.1; give --set grey_range=LOW:HIGH"):
        prepared(tmp_path / "out2", root)
    _, rows = prepared(tmp_path / "out2", root, grey_range="0:1000")
    agree(rows, expect(large, 1000.0))
    stated = grey_folder(tmp_path / "c", large, ".tif", tiffinfo={340: 0.0, 341: 1000.0})
    _, rows = prepared(tmp_path / "out3", stated)
    agree(rows, expect(large, 1000.0))


@pytest.mark.parametrize(("value", "typed"), [(np.nan, "nan"), (np.inf, "inf"), (-9999.0, "-9999")])
def test_missing_pixels_are_named_and_mapped(tmp_path, value, typed):
    arrays = greys(1.0, "float32")
    arrays[2][:5] = value
    root = grey_folder(tmp_path / "a", arrays, ".tif")
    with pytest.raises(UserError, match=r"p2\.tif: .*--set nodata="):
        prepared(tmp_path / "out", root)
    _, rows = prepared(tmp_path / "out", root, nodata=typed)
    arrays[2][:5] = 0
    agree(rows, expect(arrays, 1.0))


@pytest.mark.parametrize(
    ("top", "dtype"), [(1, "uint8"), (255, "uint8"), (1, "uint16"), (255, "uint16"), (65535, "uint16"), (1, "float32")]
)
def test_saliency_is_scaled_over_the_whole_folder(tmp_path, top, dtype):
    root = tagged(tmp_path / "a", 4)
    ending = ".tif" if dtype == "float32" else ".png"
    for place in range(4):
        soft = np.linspace(0, 1, 48)[None].repeat(40, axis=0) if top > 1 or dtype == "float32" else draw([0], place)[1]
        soft = soft * (1.0 if place else 0.0)
        save(root / "saliency" / f"p{place}{ending}", (soft * top).astype(dtype))
    _, rows = prepared(tmp_path / "out", root)
    assert not decode_saliency(rows["p0"]["saliency"]).any()
    for place in (1, 2, 3):
        found = decode_saliency(rows[f"p{place}"]["saliency"])
        assert found.dtype == np.uint8
        assert found.max() == 255
        assert found.min() == 0
