"""COCO annotation files of any size: one streaming pass into an SQLite index on disk, grouped by image.

Memory does not grow with the file: JSON is parsed object by object, and images are read back in order of their id.
The index lies in the cache under the digest of the file's bytes, so that it is made once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError

VERSION = 2
_CHUNK = 1 << 20
_TABLES = """
CREATE TABLE image (id INTEGER PRIMARY KEY, file TEXT NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL);
CREATE TABLE annotation (place INTEGER PRIMARY KEY, id INTEGER, image INTEGER NOT NULL, category INTEGER NOT NULL,
                         area REAL NOT NULL, crowd INTEGER NOT NULL, shape BLOB NOT NULL);
CREATE TABLE category (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
"""
_INSERT_IMAGE = "INSERT INTO image VALUES (?, ?, ?, ?)"
_INSERT_ANNOTATION = "INSERT INTO annotation (id, image, category, area, crowd, shape) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class CocoImage:
    """One image of an index, without its shapes."""

    id: int
    file: str
    height: int
    width: int
    categories: tuple[tuple[int, bool], ...]
    """(category id, whether every annotation of it is a crowd), ascending."""


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
    ijson = _ijson()
    images: Any = ijson.sendable_list()
    annotations: Any = ijson.sendable_list()
    categories: Any = ijson.sendable_list()
    parsers = [
        ijson.items_coro(images, "images.item", use_float=True),
        ijson.items_coro(annotations, "annotations.item", use_float=True),
        ijson.items_coro(categories, "categories.item", use_float=True),
    ]

    def store() -> None:
        base.executemany(_INSERT_IMAGE, [_image(value, path) for value in images])
        base.executemany(_INSERT_ANNOTATION, [_annotation(value, path) for value in annotations])
        base.executemany("INSERT INTO category VALUES (?, ?)", [_category(value, path) for value in categories])
        for done in (images, annotations, categories):
            done.clear()

    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                for parser in parsers:
                    parser.send(chunk)
                store()
        for parser in parsers:
            parser.close()
        store()
    except (ijson.JSONError, ijson.IncompleteJSONError) as error:
        reason = str(error).strip().splitlines()[0] or "it ends too early"
        raise UserError(f"{path}: broken or cut short ({reason}); download it again") from error
    except sqlite3.IntegrityError as error:
        raise UserError(f"{path}: an id comes twice ({error}); remove the second image or category") from error
    for table, key in (("image", "images"), ("annotation", "annotations"), ("category", "categories")):
        if base.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None:
            raise UserError(f"{path}: has no {key!r}; give an instances_*.json of COCO's layout")


def _ijson() -> Any:
    try:
        import ijson
    except ImportError as error:
        raise UserError("reading COCO's annotations needs ijson: pip install 'wsss-ray[coco]'") from error
    return ijson


def _image(value: Any, path: Path) -> tuple[int, str, int, int]:
    try:
        made = int(value["id"]), str(value["file_name"]), int(value["height"]), int(value["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: an image without id, file_name, height or width ({_short(value)}); correct it"
        ) from error
    if made[2] <= 0 or made[3] <= 0:
        raise UserError(f"{path}: image {made[0]} is {made[2]}x{made[3]} (height x width); correct its size")
    return made


def _annotation(value: Any, path: Path) -> tuple[int, int, int, float, int, bytes]:
    try:
        shape = value["segmentation"]
        crowd = int(bool(value.get("iscrowd", 0)))
        number, image, category = int(value.get("id", 0)), int(value["image_id"]), int(value["category_id"])
        area = float(value["area"]) if value.get("area") is not None else math.nan
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: an annotation without image_id, category_id or segmentation ({_short(value)}); "
            "give an instances_*.json, not captions or keypoints alone"
        ) from error
    # SQLite takes NaN for NULL, so an unknown area is stored as -1.
    return number, image, category, -1.0 if math.isnan(area) else area, crowd, json.dumps(shape).encode()


def _category(value: Any, path: Path) -> tuple[int, str]:
    try:
        return int(value["id"]), str(value["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a category without id or name ({_short(value)}); correct it") from error


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


def categories(index: Path) -> dict[int, str]:
    """Category id -> name, ascending."""
    with opened(index) as base:
        return dict(base.execute("SELECT id, name FROM category ORDER BY id"))


def first_of_unknown(index: Path, known: set[int]) -> tuple[int, int] | None:
    """(annotation id, category id) of an annotation whose category is not known, or None."""
    with opened(index) as base:
        for (category,) in base.execute("SELECT DISTINCT category FROM annotation ORDER BY category"):
            if category not in known:
                query = "SELECT id FROM annotation WHERE category = ? ORDER BY place LIMIT 1"
                return base.execute(query, (category,)).fetchone()[0], category
    return None


def iterate(index: Path) -> Iterator[CocoImage]:
    """Every image by id, one at a time."""
    query = """SELECT p.id, p.file, p.height, p.width, a.category, min(a.crowd) FROM image p
               LEFT JOIN annotation a ON a.image = p.id GROUP BY p.id, a.category ORDER BY p.id, a.category"""
    with opened(index) as base:
        head: tuple[int, str, int, int] | None = None
        found: list[tuple[int, bool]] = []
        for number, file, height, width, category, crowd in base.execute(query):
            if head is not None and head[0] != number:
                yield CocoImage(*head, tuple(found))
                found = []
            head = (number, file, height, width)
            found += [] if category is None else [(category, bool(crowd))]
        if head is not None:
            yield CocoImage(*head, tuple(found))


def shapes_of(index: str | Path, image: int) -> list[Annotation]:
    """The shapes of an image, in the order of the file."""
    query = "SELECT id, category, area, crowd, shape FROM annotation WHERE image = ? ORDER BY place"
    with opened(index) as base:
        return [
            Annotation(number, category, area, bool(crowd), json.loads(shape))
            for number, category, area, crowd, shape in base.execute(query, (image,))
        ]
