# SPDX-License-Identifier: Apache-2.0
"""COCO annotation files of any size: one streaming pass into an SQLite index on disk, grouped by image.

Memory does not grow with the file: JSON is parsed object by object, and images are read back in order of their id.
The index lies in the cache under the digest of the file's bytes, so that it is made once.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from wsss_ray.config import UserError
from wsss_ray.data.text import read_text

VERSION = 3
_CHUNK = 1 << 20
_OWN_NUMBERS = 1 << 40
"""Ids that are words are numbered from here."""
_TABLES = """
CREATE TABLE image (id INTEGER PRIMARY KEY, file TEXT NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL);
CREATE TABLE annotation (place INTEGER PRIMARY KEY, id INTEGER, image INTEGER NOT NULL, category INTEGER NOT NULL,
                         area REAL NOT NULL, crowd INTEGER NOT NULL, bare INTEGER NOT NULL, shape BLOB NOT NULL);
CREATE TABLE category (id INTEGER PRIMARY KEY, name TEXT NOT NULL, parent TEXT NOT NULL);
"""
_INSERT_IMAGE = "INSERT INTO image VALUES (?, ?, ?, ?)"
_INSERT_ANNOTATION = (
    "INSERT INTO annotation (id, image, category, area, crowd, bare, shape) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True)
class CocoImage:
    """One image of an index, without its shapes."""

    id: int
    file: str
    height: int
    width: int
    categories: tuple[tuple[int, bool], ...]
    """(category id, whether every annotation of it is a crowd), ascending."""
    bare: bool = False
    """An annotation has no shape, so that nobody can draw the mask."""


@dataclass(frozen=True)
class Category:
    """One category of a file."""

    id: int
    name: str
    parent: str
    """Its supercategory."""
    num_annotations: int


@dataclass(frozen=True)
class Annotation:
    """One shape."""

    id: int
    category: int
    area: float
    crowd: bool
    shape: Any
    """Polygons ``[[x, y, ...], ...]`` or RLE ``{"size": [h, w], "counts": [...] or "..."}``."""


def file_digest(path: Path) -> str:
    """32 hexadecimal digits of the SHA-256 of a file; UserError where it cannot be read."""
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); put the annotation file there") from error
    return hasher.hexdigest()[:32]


def build_index(path: Path, folder: Path) -> Path:
    """The index of an annotation file in ``folder``, made where it is not there yet.

    Raises UserError, naming the file, for JSON that is broken or not of instances, and for annotations of no image.
    """
    index = folder / f"coco-{file_digest(path)}-v{VERSION}.sqlite"
    if index.is_file():
        return index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-", suffix=".sqlite")
    except OSError as error:
        raise UserError(f"{folder}: cannot keep the index ({error}); give another folder by --set index=DIR") from error
    os.close(handle)
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as base:
            base.execute("PRAGMA journal_mode=OFF")
            base.execute("PRAGMA synchronous=OFF")
            base.executescript(_TABLES)
            base.execute("BEGIN")
            _fill(base, path)
            base.execute("CREATE INDEX by_image ON annotation (image, category, crowd)")
            _refuse_orphans(base, path)
            base.execute("COMMIT")
        os.replace(temporary, index)
    except (sqlite3.OperationalError, OSError) as error:
        raise UserError(
            f"{folder}: cannot keep the index of {path} ({error}); free space or give another folder by --set index=DIR"
        ) from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return index


def _fill(base: sqlite3.Connection, path: Path) -> None:
    try:
        _parse(base, path, _open_json(path, False))
    except _NotUnicodeError:
        for table in ("image", "annotation", "category"):
            base.execute(f"DELETE FROM {table}")
        _parse(base, path, _open_json(path, True))
    for table, key in (("image", "images"), ("annotation", "annotations"), ("category", "categories")):
        if base.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
            raise UserError(f"{path}: has no {key!r}; give an instances_*.json of COCO's layout")


class _NotUnicodeError(Exception):
    """The file is not UTF-8."""


def _open_json(path: Path, transcode: bool) -> BinaryIO:
    """The bytes of a JSON file as UTF-8 without a mark."""
    stream = path.open("rb")
    head = stream.read(4)
    if transcode or head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        stream.close()
        return io.BytesIO(read_text(path).text.encode())
    stream.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    return stream


def _parse(base: sqlite3.Connection, path: Path, stream: BinaryIO) -> None:
    ijson = _ijson()
    found: dict[str, Any] = {name: ijson.sendable_list() for name in ("images", "annotations", "categories")}
    parsers = [ijson.items_coro(values, f"{name}.item", use_float=True) for name, values in found.items()]
    read = _Reader(path)

    def store() -> None:
        base.executemany(_INSERT_IMAGE, [read.image(value) for value in found["images"]])
        base.executemany(_INSERT_ANNOTATION, [read.annotation(value) for value in found["annotations"]])
        base.executemany("INSERT INTO category VALUES (?, ?, ?)", [read.category(v) for v in found["categories"]])
        for values in found.values():
            values.clear()

    try:
        with stream:
            while chunk := stream.read(_CHUNK):
                for parser in parsers:
                    parser.send(chunk)
                store()
        for parser in parsers:
            parser.close()
        store()
    except (ijson.JSONError, ijson.IncompleteJSONError) as error:
        raise _explain(path, str(error)) from error
    except sqlite3.IntegrityError as error:
        raise UserError(f"{path}: an id comes twice ({error}); remove the second image or category") from error


def _explain(path: Path, message: str) -> Exception:
    """What a parser's error means to a person."""
    if "UTF8" in message or "utf-8" in message:
        return _NotUnicodeError(message)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            odd = re.search(rb"[:\[,\s](-?(?:NaN|Infinity))\b", line)
            if odd is not None:
                near = line[max(0, odd.start() - 40) : odd.end()].decode("utf-8", "replace")
                return UserError(
                    f"{path}: line {number} holds {odd[1].decode()}, which is no number (after {near!r}); "
                    "correct that annotation or remove it"
                )
    reason = message.strip().splitlines()[0] if message.strip() else "it ends too early"
    return UserError(f"{path}: broken or cut short ({reason}); download it again")


def _ijson() -> Any:
    try:
        import ijson
    except ImportError as error:
        raise UserError("reading COCO's annotations needs ijson: pip install 'wsss-ray[coco]'") from error
    return ijson


class _Reader:
    """Entries of one file as rows; ids that are no numbers get numbers of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, value: Any, of: str) -> int:
        """The number of an id."""
        if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
            return self._numbers.setdefault((of, value), _OWN_NUMBERS + len(self._numbers))
        if value is None or isinstance(value, bool):
            raise ValueError("no id")
        return int(value)

    def image(self, value: Any) -> tuple[int, str, int, int]:
        """(id, file, height, width)."""
        try:
            file = str(value["file_name"]).replace("\\", "/")
            made = self.number(value["id"], "image"), file, int(value["height"]), int(value["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: an image without id, file_name, height or width ({_short(value)}); correct it"
            ) from error
        if made[2] <= 0 or made[3] <= 0:
            raise UserError(f"{self.path}: image {made[0]} is {made[2]}x{made[3]} (height x width); correct its size")
        return made

    def annotation(self, value: Any) -> tuple[int, int, int, float, int, int, bytes]:
        """(id, image, category, area or -1, whether a crowd, whether without a shape, shape as JSON)."""
        try:
            shape = value["segmentation"] if "bbox" not in value else value.get("segmentation")
            bare = not shape or (isinstance(shape, list) and not any(shape))
            crowd = int(bool(int(value.get("iscrowd") or 0)))
            number = self.number(value.get("id", 0), "annotation")
            image = self.number(value["image_id"], "image")
            category = self.number(value["category_id"], "category")
            area = float(value["area"]) if value.get("area") is not None else math.nan
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.path}: an annotation without image_id, category_id or segmentation ({_short(value)}); "
                "give an instances_*.json, not captions or keypoints alone"
            ) from error
        stated = area if area > 0 and math.isfinite(area) else -1.0
        return number, image, category, stated, crowd, int(bare), json.dumps(shape or []).encode()

    def category(self, value: Any) -> tuple[int, str, str]:
        """(id, name, supercategory)."""
        try:
            parent = value.get("supercategory")
            return self.number(value["id"], "category"), str(value["name"]), str(parent or "")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.path}: a category without id or name ({_short(value)}); correct it") from error


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_orphans(base: sqlite3.Connection, path: Path) -> None:
    missing = "FROM annotation WHERE image NOT IN (SELECT id FROM image)"
    found = base.execute(f"SELECT id, image {missing} LIMIT 1").fetchone()
    if found is not None:
        more = base.execute(f"SELECT count(*) {missing}").fetchone()[0] - 1
        rest = f" (and {more} more like it)" if more else ""
        raise UserError(
            f"{path}: annotation {found[0]} is of image {found[1]}, which 'images' does not list{rest}; "
            "add the image or remove the annotation"
        )


@contextmanager
def opened(index: str | Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection; UserError where the index is gone (a worker on a machine that does not see it)."""
    try:
        base = sqlite3.connect(f"{Path(index).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{index}: no index of annotations here; give a folder that every machine sees by --set index=DIR"
        ) from error
    with closing(base):
        yield base


def list_categories(index: Path) -> list[Category]:
    """The categories of a file by id, with how many annotations each has."""
    query = """SELECT c.id, c.name, c.parent, coalesce(n.num, 0) FROM category c LEFT JOIN
               (SELECT category, count(*) AS num FROM annotation GROUP BY category) n ON n.category = c.id
               ORDER BY c.id"""
    with opened(index) as base:
        return [Category(*found) for found in base.execute(query)]


def first_of_unknown(index: Path, known: set[int]) -> tuple[int, int] | None:
    """(annotation id, category id) of an annotation whose category is not known, or None."""
    with opened(index) as base:
        for (category,) in base.execute("SELECT DISTINCT category FROM annotation ORDER BY category"):
            if category not in known:
                query = "SELECT id FROM annotation WHERE category = ? ORDER BY place LIMIT 1"
                return base.execute(query, (category,)).fetchone()[0], category
    return None


def iterate_images(index: Path) -> Iterator[CocoImage]:
    """Every image by id, one at a time."""
    query = """SELECT p.id, p.file, p.height, p.width, a.category, min(a.crowd), max(a.bare) FROM image p
               LEFT JOIN annotation a ON a.image = p.id GROUP BY p.id, a.category ORDER BY p.id, a.category"""
    with opened(index) as base:
        for head, rows in groupby(base.execute(query), key=lambda row: row[:4]):
            found = [row[4:] for row in rows if row[4] is not None]
            labels = tuple((category, bool(crowd)) for category, crowd, _ in found)
            number, file, height, width = head
            yield CocoImage(number, file, height, width, labels, any(bare for _, _, bare in found))


def iterate_files(index: Path) -> Iterator[str]:
    """The file name of every image."""
    with opened(index) as base:
        for (file,) in base.execute("SELECT file FROM image ORDER BY id"):
            yield file


def read_shapes(index: str | Path, image: int) -> list[Annotation]:
    """The shapes of an image, in the order of the file."""
    query = "SELECT id, category, area, crowd, shape FROM annotation WHERE image = ? AND NOT bare ORDER BY place"
    with opened(index) as base:
        return [
            Annotation(number, category, area, bool(crowd), json.loads(shape))
            for number, category, area, crowd, shape in base.execute(query, (image,))
        ]
