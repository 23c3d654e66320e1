# SPDX-License-Identifier: Apache-2.0
"""The files of a folder: which are images, which are not data at all, and which belong together by their names."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.image import NEEDS, register_plugins
from wsss_ray.data.names import LONGEST_ID, compose, find_id_fault, path_key

_SYSTEM = frozenset(
    {
        "@eadir",
        "__macosx",
        "thumbs.db",
        "desktop.ini",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
_NO_IMAGES = frozenset({".pdf", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr"})
"""Endings that PIL registers for what is no raster image here."""
TAILS = (
    "_mask",
    "-mask",
    "_masks",
    ".mask",
    " mask",
    "_seg",
    "_segmentation",
    "_gt",
    "_label",
    "_labels",
    "_annotation",
)
SALIENCY_TAILS = ("_saliency", "-saliency", "_sal", "_salmap")
_SHOWN = 3


@lru_cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case, of the images that can be read here, with those of installed plug-ins."""
    register_plugins()
    Image.init()
    readable = {ending.lower() for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    return frozenset((readable | {".jpe", ".jfif"}) - _NO_IMAGES)


def is_image(name: str) -> bool:
    """Whether the ending is that of an image that can be read here."""
    return os.path.splitext(name)[1].lower() in image_endings()


def is_system(name: str) -> bool:
    """Hidden and system files and folders, which are never data."""
    return name.startswith(".") or name.lower() in _SYSTEM


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted, without hidden and system ones; links are followed once."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        inner = []
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if is_system(entry.name):
                continue
            if entry.is_dir():
                inner.append(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)
        waiting += reversed(inner)


def short_list(names: Iterable[object]) -> str:
    """The first three, and that there are more."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")


@dataclass
class Census:
    """What was found and why some of it is not used."""

    reasons: Counter[str] = field(default_factory=Counter)
    """Reason -> number of files."""

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count files that are images but not used."""
        if count:
            self.reasons[reason] += count

    def notes(self, used: int) -> list[str]:
        """One line that says how many images are used and why the others are not; none where all are."""
        left = sum(self.reasons.values())
        if not left:
            return []
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return [f"used {used} of {used + left} images: {why}"]


class FileTable:
    """The files below a folder by the names that tables give them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def files(self) -> list[Path]:
        """Every file, hidden and system ones left out."""
        return list(walk_files(self.folder))

    @cached_property
    def images(self) -> list[Path]:
        """The images among them."""
        return [path for path in self.files if is_image(path.name)]

    @cached_property
    def _by_key(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in self.files:
            key = path_key(path.relative_to(self.folder).as_posix())
            found.setdefault(key, []).append(path)
            found.setdefault("*/" + key.rpartition("/")[2], []).append(path)
            if is_image(path.name):
                found.setdefault(key.rpartition(".")[0] + "/", []).append(path)
        return found

    def find(self, name: str, below: tuple[str, ...] = ("",)) -> Path | None:
        """The file a table means: as written, else in another Unicode form or case, else an image without its ending,
        else the only file of that name in any folder.

        ``below`` names folders to look in, one after the other. UserError where two files fit.
        """
        plain = name.replace("\\", "/")
        for inner in below:
            exact = self.folder / inner / plain
            if exact.is_file():
                return exact
        for ending in ("", "/"):
            for inner in below:
                key = path_key(os.path.normpath(f"{inner}/{plain}" if inner else plain).lstrip("/")) + ending
                found = self._by_key.get(key, [])
                if len(found) > 1:
                    raise UserError(
                        f"{name}: fits {found[0]} and {found[1]}; write the whole name as it is on the disk"
                    )
                if found:
                    return found[0]
        named = self._by_key.get("*/" + path_key(plain.rpartition("/")[2]), [])
        if len(named) > 1:
            raise UserError(f"{name}: {named[0]} and {named[1]} have this name; write the path below {self.folder}")
        return named[0] if named else None

    def count_unused(self, used: Iterable[Path], census: Census, reason: str) -> None:
        """Count the images that are not among ``used``, and files that would be images with a plug-in."""
        taken = {str(path) for path in used}
        census.leave_out(reason, sum(str(path) not in taken for path in self.images))
        count_unreadable(self.files, census)


def count_unreadable(files: Iterable[Path], census: Census) -> None:
    """Count the files that are images of a kind which cannot be read here."""
    for path in files:
        ending = path.suffix.lower()
        if ending in NEEDS and ending not in image_endings():
            census.leave_out(f"{ending} {NEEDS[ending]}")


@dataclass(frozen=True)
class _Companion:
    path: Path
    ending: str
    """The image's ending where the name carries it (``a.jpg.png``), else empty."""


class Companions:
    """Masks or saliency maps in a folder of their own, matched to images by the names that people give them.

    The same relative path, the image's id, or the same stem, in any case and Unicode form; ``a.jpg.png`` and
    ``a_mask.png`` are masks of ``a.jpg``.
    """

    def __init__(self, folder: Path, kind: str, tails: tuple[str, ...] = TAILS, required: bool = False) -> None:
        self.folder, self.kind, self._tails, self._required = folder, kind, tails, required
        self.files = [path for path in walk_files(folder) if is_image(path.name)]
        self._claims: dict[Path, str] = {}
        self.lacking: list[str] = []
        """Images that have none."""

    @cached_property
    def _index(self) -> dict[str, list[_Companion]]:
        index: dict[str, list[_Companion]] = {}
        for path in self.files:
            relative = path_key(path.relative_to(self.folder).as_posix())
            key, ending = split_companion(relative, self._tails)
            parts = key.split("/")
            for place in {f"={key}", f"/{parts[-1]}", *([f"-{key}"] if len(parts) == 1 else [])}:
                index.setdefault(place, []).append(_Companion(path, ending))
        return index

    def find(self, relative: str, image_id: str) -> Path | None:
        """The file that belongs to the image at this relative path; UserError where two fit or two images share one."""
        key, _, ending = path_key(relative).rpartition(".")
        stem = PurePosixPath(key).name
        for place in (f"={key}", f"-{path_key(image_id)}", f"-{stem}", f"/{stem}"):
            found = [one for one in self._index.get(place, []) if one.ending in ("", f".{ending}")]
            if len(found) > 1:
                names = " and ".join(str(one.path.relative_to(self.folder)) for one in found[:2])
                raise UserError(f"{self.folder}: {names} both fit {relative}; remove or rename one of the two")
            if found:
                return self.claim(found[0].path, relative)
        self.lacking.append(relative)
        return None

    def claim(self, path: Path, relative: str) -> Path:
        """Give a file to the image at this relative path; UserError where it belongs to another already."""
        other = self._claims.setdefault(path, relative)
        if other != relative:
            raise UserError(
                f"{path}: fits the images {other} and {relative}; put it where its image lies "
                f"({self.folder.name}/{PurePosixPath(relative).with_suffix('.png')})"
            )
        return path

    def notes(self, num_images: int) -> list[str]:
        """How many images have one, three that lack one, and files that belong to nobody.

        UserError where no image at all has one.
        """
        example = str(PurePosixPath(self.lacking[0]).with_suffix(".png")) if self.lacking else "<image>.png"
        if not self.files and not self._required:
            return [f"{self.folder}: holds no {self.kind}s that can be read"]
        if not self._claims:
            there = short_list(path.name for path in self.files) or "nothing that can be read"
            raise UserError(
                f"{self.folder}: no {self.kind} of any image there, but {there}; expected {example} for "
                f"{self.lacking[0] if self.lacking else 'an image'}: name each one like its image"
            )
        lines = []
        if self.lacking:
            have = num_images - len(self.lacking)
            lines.append(f"{have} of {num_images} images have a {self.kind}; none for {short_list(self.lacking)}")
        unused = [path for path in self.files if path not in self._claims]
        if unused:
            names = short_list(path.relative_to(self.folder) for path in unused)
            lines.append(f"{self.folder}: {len(unused)} {self.kind}s belong to no image: {names}")
        return lines


def split_companion(relative: str, tails: tuple[str, ...]) -> tuple[str, str]:
    """(name of the image without ending, ending where the name carries it) of a mask's relative path."""
    key = relative.rpartition(".")[0]
    tail = next((tail for tail in sorted(tails, key=len, reverse=True) if key.endswith(tail)), "")
    if tail and len(PurePosixPath(key).name) > len(tail):
        key = key[: -len(tail)]
    inner = os.path.splitext(key)[1]
    if inner in image_endings():
        return key[: -len(inner)], inner
    return key, ""


def make_ids(relatives: Iterable[str]) -> dict[str, str]:
    """Relative path -> image id: its parts joined by ``__`` without the ending.

    Where two would share one, also in another case, each keeps its ending, and a digest of its path where that does not
    tell them apart either, or where its name is too long or holds what no file may be called.
    """
    listed = list(dict.fromkeys(relatives))
    ids = {name: "__".join(PurePosixPath(compose(name)).with_suffix("").parts) for name in listed}
    ids = {name: _with_digest(name) if find_id_fault(made) else made for name, made in ids.items()}
    for make in (_with_ending, _with_digest):
        counts = Counter(path_key(made) for made in ids.values())
        ids = {name: make(name) if counts[path_key(made)] > 1 else made for name, made in ids.items()}
    return ids


def _with_ending(name: str) -> str:
    return "__".join(PurePosixPath(compose(name)).parts).replace(".", "_")


def _with_digest(name: str) -> str:
    plain = "".join(c if c.isprintable() and c != "\\" else "_" for c in _with_ending(name))
    short = plain.encode("utf-8", "replace")[: LONGEST_ID - 40].decode("utf-8", "ignore")
    return f"{short}_{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
