# SPDX-License-Identifier: Apache-2.0
"""Masks against labels: what is systematic is refused with the fix, and the fix gives the right data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.drawing import draw, prepared, save, shown, tagged, write_table
from wsss_ray.config import UserError
from wsss_ray.data.audit import audit_tally
from wsss_ray.data.image import decode_mask, voc_palette
from wsss_ray.data.tally import Facts, Tally


def right(rows) -> bool:
    return all(set(shown(row)) - {0, 255} == {label + 1 for label in row["labels"]} for row in rows.values())


def refused(tmp_path: Path, root: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        prepared(tmp_path / "out", root, **options)
    line = str(error.value)
    assert "\n" not in line
    return line


def stated(line: str) -> dict[str, str]:
    """The option that a refusal asks for."""
    setting = line.rpartition("--set ")[2].split()[0]
    return dict([setting.split("=", 1)])


def test_masks_of_0_and_255_mean_one_class(tmp_path):
    root = tagged(tmp_path / "a", names=("cat",), values=lambda mask: (mask > 0).astype(np.uint8) * 255)
    line = refused(tmp_path, root)
    assert "masks of 8 of 8 images show no class" in line
    assert stated(line) == {"mask_values": "255:cat"}
    _, rows = prepared(tmp_path / "out", root, **stated(line))
    assert right(rows)


def test_binary_masks_of_two_classes_are_no_class_masks(tmp_path):
    root = tagged(tmp_path / "a", values=lambda mask: (mask > 0).astype(np.uint8))
    assert "--set masks=none" in refused(tmp_path, root)
    _, rows = prepared(tmp_path / "none", root, masks="none")
    assert all(row["mask"] is None for row in rows.values())


def test_classes_in_another_order(tmp_path):
    names = ("cat", "dog", "owl")
    root = tagged(tmp_path / "a", 9, names, values=lambda mask: np.array([0, 3, 1, 2], np.uint8)[mask])
    line = refused(tmp_path, root)
    assert "contradict their labels" in line
    assert "--classes dog,owl,cat" in line
    _, rows = prepared(tmp_path / "out", root, classes="dog,owl,cat")
    assert right(rows)


def test_a_background_that_is_not_0(tmp_path):
    root = tagged(tmp_path / "a", values=lambda mask: np.array([2, 0, 1], np.uint8)[mask])
    line = refused(tmp_path, root)
    assert stated(line) == {"mask_values": "0:cat,1:dog,2:background"}
    _, rows = prepared(tmp_path / "out", root, **stated(line))
    assert right(rows)


def test_indices_beyond_the_classes(tmp_path):
    def add(mask):
        mask = mask.copy()
        mask[0] = 3
        return mask

    root = tagged(tmp_path / "a", values=add)
    line = refused(tmp_path, root)
    assert "hold 3, which is none of the 2 classes (cat, dog), the first is p0" in line
    assert stated(line) == {"mask_values": "1:cat,2:dog,3:ignore"}
    _, rows = prepared(tmp_path / "out", root, **stated(line))
    assert right(rows)


def test_one_class_that_another_stands_for(tmp_path):
    root, rows = tmp_path / "a", []
    for place in range(12):
        label = place % 3
        image, mask = draw([label], place)
        save(root / "images" / f"p{place}.png", image)
        save(root / "masks" / f"p{place}.png", np.where(mask == 3, 1, mask))
        rows.append((f"p{place}.png", ("cat", "dog", "owl")[label]))
    write_table(root / "labels.csv", rows)
    (root / "classes.txt").write_text("cat\ndog\nowl\n")
    assert "masks of 4 of 4 images labelled 'owl' show 'cat' instead" in refused(tmp_path, root)


def test_rare_differences_are_counted_notes(tmp_path):
    root = tagged(tmp_path / "a", 10)
    for name, mask in (("p0", np.zeros((40, 48))), ("p1", np.full((40, 48), 255)), ("p2", draw([1, 0], 2)[1])):
        save(root / "masks" / f"{name}.png", mask.astype(np.uint8))
    data, _ = prepared(tmp_path / "out", root)
    assert "1 masks are ignored everywhere: p1" in data.notes
    assert "1 masks show no class though their labels name some: p0" in data.notes
    assert "1 masks show a class that their labels lack: p2 (dog)" in data.notes


def test_facts_without_masks_say_nothing():
    tally = Tally(2)
    tally.add(Facts("a", ("train",), (0,)))
    tally.add(Facts("b", ("val",), (1,)))
    assert audit_tally(tally, [], ["cat", "dog"]) == []


def test_equal_images_are_reported(tmp_path):
    root = tagged(tmp_path / "a", 8)
    copied = (root / "images" / "p0.jpg").read_bytes()
    (root / "images" / "p7.jpg").write_bytes(copied)
    rows = [(f"p{place}.jpg", ("cat", "dog")[place % 2], "train" if place < 6 else "val") for place in range(8)]
    write_table(root / "labels.csv", rows, ("image", "labels", "split"))
    data, _ = prepared(tmp_path / "out", root)
    assert any("p0 = p7 (train, val)" in note for note in data.notes)
    assert any("p0 = p7 (cat and dog)" in note for note in data.notes)


def reduced(mask: np.ndarray, palette: np.ndarray) -> bytes:
    """What PNG optimisers do: colours that no pixel has leave the palette, and indices close up."""
    used = np.unique(mask)
    close = np.zeros(256, np.uint8)
    close[used] = np.arange(len(used))
    image = Image.fromarray(close[mask], "L")
    image.putpalette(palette[used].astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_palettes_that_were_reduced(tmp_path):
    root = tagged(tmp_path / "a", 9, ("cat", "dog", "owl"))
    expected = {}
    for path in sorted((root / "masks").iterdir()):
        mask = np.array(Image.open(path))
        mask[0, :5] = 255
        expected[path.stem] = mask
        path.write_bytes(reduced(mask, voc_palette()))
    _, rows = prepared(tmp_path / "out", root)
    for name, mask in expected.items():
        np.testing.assert_array_equal(decode_mask(rows[name]["mask"]), mask)


def test_a_palette_of_a_tools_own(tmp_path):
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = ((10, 10, 12), (250, 0, 3), (0, 250, 7), (3, 0, 250))
    root = tagged(tmp_path / "a", 9, ("cat", "dog", "owl"))
    whole = tmp_path / "whole"
    for path in sorted((root / "masks").iterdir()):
        mask = np.array(Image.open(path))
        image = Image.fromarray(mask, "L")
        image.putpalette(palette.tobytes())
        (whole / path.name).parent.mkdir(exist_ok=True)
        image.save(whole / path.name)
        path.write_bytes(reduced(mask, palette))
    data, rows = prepared(tmp_path / "same", root, masks=whole)
    assert right(rows)
    assert any("9 masks have a palette of their own" in note for note in data.notes)
    assert "put a labelmap.txt" in refused(tmp_path, root)
    (root / "labelmap.txt").write_text("owl:3,0,250::\nbackground:10,10,12::\ncat:250,0,3::\ndog:0,250,7::\n")
    _, rows = prepared(tmp_path / "map", root)
    assert right(rows)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_masks_by_a_list_of_colours(tmp_path, mode):
    colours = np.array([(0, 0, 0), (48, 112, 32), (176, 112, 32)], np.uint8)
    root = tagged(tmp_path / "a")
    (root / "classes.txt").unlink()
    for path in sorted((root / "masks").iterdir()):
        save(path, np.array(Image.fromarray(colours[np.array(Image.open(path))]).convert(mode)))
    assert "no list of classes" in refused(tmp_path, root)
    line = refused(tmp_path, root, classes="cat,dog")
    assert "8 of 8 images cannot be used: 8 like " in line
    assert "#307020" in line
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nDOG:176,112,32::\nbackground:0,0,0::\ncat:48,112,32::\n"
    )
    _, rows = prepared(tmp_path / "out", root)
    assert right(rows)
    (root / "labelmap.txt").unlink()
    _, rows = prepared(tmp_path / "set", root, mask_values="#307020:cat,#b07020:dog,#000000:background")
    assert right(rows)


def test_greys_saved_as_colours_are_indices(tmp_path):
    root = tagged(tmp_path / "a")
    for path in sorted((root / "masks").iterdir()):
        save(path, np.repeat(np.array(Image.open(path))[..., None], 3, axis=2))
    _, rows = prepared(tmp_path / "out", root)
    assert right(rows)


def test_masks_without_a_list_of_classes_are_refused(tmp_path):
    root = tagged(tmp_path / "a")
    (root / "classes.txt").unlink()
    line = refused(tmp_path, root)
    assert "classes.txt" in line
    assert "--classes cat,dog" in line
    one = tagged(tmp_path / "one", names=("cat",))
    (one / "classes.txt").unlink()
    assert right(prepared(tmp_path / "single", one)[1]), "one class needs no order"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat:1,2\n", r"labelmap.txt:1: expected NAME:red,green,blue"),
        ("cat:1,2,300\n", r"labelmap.txt:1: colour .* leaves 0..255"),
        ("cat:1,2,3\ndog:1,2,3\n", r"'cat' and 'dog' have one colour"),
        ("cow:1,2,3\n", r"'cow' is none of the classes"),
    ],
)
def test_bad_lists_of_colours(tmp_path, text, message):
    root = tagged(tmp_path / "a")
    (root / "labelmap.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "out", root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("255", r"mask_values '255': '255' has no meaning; write VALUE:CLASS"),
        ("x:cat", r"'x' is neither a value 0..255 nor a colour"),
        ("300:cat", r"'300' is neither a value"),
        ("1:cow", r"'cow' is none of the classes"),
        ("1:cat,#ff0000:dog", r"values or colours, not both"),
    ],
)
def test_bad_meanings(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "out", tagged(tmp_path / "a"), mask_values=values)


def turned(array: np.ndarray, tag: int) -> np.ndarray:
    """The stored pixels of what a viewer shows under an EXIF orientation."""
    ways = {2: array[:, ::-1], 3: array[::-1, ::-1], 6: np.rot90(array, 1), 8: np.rot90(array, -1)}
    return ways.get(tag, array)


def turned_folder(root: Path, size: tuple[int, int], tags: tuple[int, ...], stored: bool) -> dict[str, np.ndarray]:
    """Images turned by EXIF and their masks, on stored or shown pixels; the masks as shown."""
    expected, rows = {}, []
    for place, tag in enumerate(tags * 2):
        image, mask = draw([0, 1], place, size)
        exif = Image.Exif()
        exif[0x0112] = tag
        name = f"{size[0]}x{size[1]}_{place}"
        save(root / "images" / f"{name}.jpg", turned(image, tag), exif=exif, quality=95)
        save(root / "masks" / f"{name}.png", turned(mask, tag) if stored else mask)
        expected[name] = mask
        rows.append((f"{name}.jpg", "cat;dog"))
    old = (root / "labels.csv").read_text().splitlines()[1:] if (root / "labels.csv").exists() else []
    write_table(root / "labels.csv", [*(tuple(line.split(",")) for line in old), *rows])
    (root / "classes.txt").write_text("cat\ndog\n")
    return expected


@pytest.mark.parametrize("stored", [True, False])
def test_masks_of_images_turned_by_exif(tmp_path, stored):
    root = tmp_path / "a"
    expected = turned_folder(root, (40, 56), (2, 3, 6, 8), stored) | turned_folder(root, (48, 48), (6, 8), stored)
    data, rows = prepared(tmp_path / "out", root)
    for name, mask in expected.items():
        np.testing.assert_array_equal(decode_mask(rows[name]["mask"]), mask, err_msg=name)
    assert any("were drawn on the stored pixels" in note for note in data.notes) == stored


def test_turned_images_whose_masks_do_not_tell(tmp_path):
    root = tmp_path / "a"
    expected = turned_folder(root, (48, 48), (3, 6), stored=True)
    data, rows = prepared(tmp_path / "out", root)
    assert any("--set masks_as=stored" in note for note in data.notes)
    _, rows = prepared(tmp_path / "stored", root, masks_as="stored")
    for name, mask in expected.items():
        np.testing.assert_array_equal(decode_mask(rows[name]["mask"]), mask)


def test_masks_drawn_both_ways_are_refused(tmp_path):
    root = tmp_path / "a"
    turned_folder(root, (40, 56), (6,), stored=True)
    turned_folder(root, (40, 64), (6,), stored=False)
    turned_folder(root, (48, 48), (6,), stored=True)
    line = refused(tmp_path, root)
    assert "--set masks_as=stored or --set masks_as=shown" in line


def test_notes_are_kept_with_the_data(tmp_path):
    root = tagged(tmp_path / "a")
    save(root / "images" / "extra.jpg", draw([0], 99)[0])
    data, _ = prepared(tmp_path / "out", root)
    assert json.loads((tmp_path / "out" / "notes.json").read_text()) == data.notes
    assert data.notes == ["used 8 of 9 images: 1 not listed in labels.csv"]
    assert data.file_names()["p0"] == "p0.jpg"
