# SPDX-License-Identifier: Apache-2.0
"""Where annotation files in COCO's format lie, which split each one is, and where its images are.

COCO itself: ``train2014/ annotations/instances_train2014.json``. Roboflow: ``train/_annotations.coco.json`` among the
images. CVAT, Label Studio and this project's own exports: one file (``instances_default.json``, ``result.json``) and
``images/``, without a split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wsss_ray.config import UserError
from wsss_ray.data.coco_index import build_index
from wsss_ray.data.files import FileTable, is_system
from wsss_ray.data.names import contain_path
from wsss_ray.data.tables import SPLIT_FOLDERS, read_split

_YEARS = ("2014", "2017")
_SPLITS = ("train", "val")
UNSPLIT = "default"


@dataclass(frozen=True)
class Part:
    """One annotation file and its images."""

    split: str
    """``default`` where the file says none."""
    root: Path
    below: tuple[str, ...]
    """Folders, relative to the root, in which file names are looked for, one after the other."""
    file: Path
    index: Path
    official: bool
    """COCO's own layout: every image lies in the one folder, under the name the file gives it."""

    @cached_property
    def table(self) -> FileTable:
        """The files below the root."""
        return FileTable(self.root)

    def find_image(self, name: str) -> Path:
        """Where the image of this name lies, or should lie."""
        plain = self.root / self.below[0] / name
        return plain if self.official else self.table.find(name, self.below) or plain

    def shorten(self, name: str) -> str:
        """The name without the folders that every image of the part lies in."""
        for place in sorted((place for place in self.below if place), key=len, reverse=True):
            if name.startswith(f"{place}/"):
                return name[len(place) + 1 :]
        return contain_path(name)


def find_parts(root: Path, wanted: Sequence[str], folder: Path) -> list[Part]:
    """The parts of a data set with their indexes in ``folder``; UserError where there are none."""
    found = _find_official(root, wanted, folder)
    if not found:
        found = _find_others(root, wanted, folder)
    if not found and wanted:
        first = root / "annotations" / f"instances_{wanted[0]}2014.json"
        raise UserError(f"{first}: no such file; remove split {wanted[0]!r} or add the file")
    if not found:
        raise UserError(f"{root}: no annotations/instances_train2014.json or instances_val2014.json; add them")
    twice = [part for part in found if sum(other.split == part.split for other in found) > 1]
    if twice:
        raise UserError(f"{twice[0].file} and {twice[1].file} are both of split {twice[0].split!r}; give one of them")
    return found


def _find_official(root: Path, wanted: Sequence[str], folder: Path) -> list[Part]:
    found = []
    for split in wanted or _SPLITS:
        files = [(root / "annotations" / f"instances_{split}{year}.json", f"{split}{year}") for year in _YEARS]
        there = next(((file, images) for file, images in files if file.is_file()), None)
        if there is None:
            continue
        file, images = there
        if not (root / images).is_dir():
            raise UserError(f"{root / images}: no such folder, but {file} lists its images; add it or remove the file")
        found.append(Part(split, root, (images,), file, build_index(file, folder), True))
    missing = [split for split in wanted if split not in {part.split for part in found}]
    if found and missing:
        file = root / "annotations" / f"instances_{missing[0]}2014.json"
        raise UserError(f"{file}: no such file; remove split {missing[0]!r} or add the file")
    return found


def annotation_files(root: Path) -> list[tuple[str, Path]]:
    """(split, file) of every file of a layout that tools export."""
    found = [
        (_read_word(file.stem.removeprefix("instances_")), file)
        for file in sorted((root / "annotations").glob("instances_*.json"))
        if file.is_file()
    ]
    if not found:
        places = sorted(place for place in root.iterdir() if place.is_dir() and not is_system(place.name))
        roboflow = [(place, place / "_annotations.coco.json") for place in places]
        found = [(_read_word(place.name), file) for place, file in roboflow if file.is_file()]
    if not found:
        single = (root / "_annotations.coco.json", root / "result.json", root / "annotations.json")
        found = [(UNSPLIT, file) for file in single if file.is_file()][:1]
    return found


def find_by_content(root: Path) -> list[tuple[str, Path]]:
    """(split, file) of the JSON files of any name, at the top or in ``annotations``, that are in COCO's format."""
    files = [file for place in (root, root / "annotations") for file in sorted(place.glob("*.json"))]
    return [(_read_word(file.stem), file) for file in files if file.is_file() and _looks_like_coco(file)]


def _read_word(name: str) -> str:
    """The split that the name of a file or folder says, whatever stands around it."""
    words = [word for word in re.split(r"[^A-Za-z]+", name.lower()) if word in SPLIT_FOLDERS]
    return read_split(words[0]) or UNSPLIT if len(words) == 1 else UNSPLIT


def _looks_like_coco(path: Path) -> bool:
    """Whether a JSON file begins like annotations in COCO's format: an object that lists images or the like."""
    with path.open("rb") as stream:
        head = stream.read(65536).replace(b"\0", b"")
    start = head.lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t").startswith(b"{")
    lists = re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head)
    return start and lists is not None and b'"items"' not in head


def _find_others(root: Path, wanted: Sequence[str], folder: Path) -> list[Part]:
    parts = []
    for split, file in annotation_files(root) or find_by_content(root):
        if wanted and split not in wanted:
            continue
        own = "" if file.parent in (root, root / "annotations") else file.parent.relative_to(root).as_posix()
        word = file.stem.removeprefix("instances_")
        word = re.sub(r"[^A-Za-z0-9]*(annotations|coco)[^A-Za-z0-9]*", "", word)
        places = [own, f"images/{word}", word, f"images/{split}", split, "images", ""]
        below = tuple(dict.fromkeys(place for place in places if not place or (root / place).is_dir()))
        parts.append(
            Part(
                split,
                root,
                below if own else tuple(p for p in below if p) + ("",),
                file,
                build_index(file, folder),
                False,
            )
        )
    return parts
