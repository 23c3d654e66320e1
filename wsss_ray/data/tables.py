# SPDX-License-Identifier: Apache-2.0
"""Tables of images and labels as people write them: CSV, and Hugging Face's ``metadata.csv`` and ``metadata.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.names import tidy_name
from wsss_ray.data.text import TextFile, parse_json, read_text

_IMAGE = ("image", "file_name", "filename", "file", "path", "image_path")
_LABELS = ("labels", "label", "classes", "class", "categories", "category", "tags")
_SPLIT = ("split", "subset", "set")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_FOLDERS = tuple(_SPLIT_WORDS)
"""Names of folders, in lower case, that mean a split."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a table says of one image."""

    name: str
    """As written."""
    labels: tuple[str, ...] | None
    """None where the table says nothing of them."""
    split: str | None
    where: str
    """File and line, for messages."""
    mask: str | None = None
    saliency: str | None = None


@lru_cache(maxsize=1024)
def read_split(word: str) -> str | None:
    """The split a word means: train, val, test, or the word itself; None for an empty one."""
    tidy = tidy_name(word)
    return _SPLIT_WORDS.get(tidy.casefold(), tidy) or None


def read_csv(path: Path, listed: bool, encoding: str | None = None) -> tuple[list[Line], list[str]]:
    """Every line of a CSV table, and notes; ``listed``: the classes are listed elsewhere, so that one may hold a comma.

    UserError names file and line.
    """
    file = read_text(path, encoding)
    columns, rows = file.table()
    image, labels, split = (next((c for c in names if c in columns), None) for names in (_IMAGE, _LABELS, _SPLIT))
    if image is None or labels is None:
        hint = "; separate columns by commas and labels by ;" if len(columns) == 1 else ""
        raise UserError(
            f"{path}: columns {', '.join(columns) or 'none'}; the first line must name image and labels{hint}"
        )
    masks, saliency = (columns.index(c) if c in columns else None for c in ("mask", "saliency"))
    image_at, labels_at = columns.index(image), columns.index(labels)
    split_at = columns.index(split) if split is not None else None
    lines = []
    for number, cells in rows:
        if not cells[image_at]:
            raise UserError(f"{path}: line {number} names no image; fill it in or delete the line")
        if any(cells[len(columns) :]):
            raise UserError(
                f"{path}: line {number} has more fields than the first line names; join several labels by ;"
            )
        names, joined = _read_labels(cells[labels_at])
        if joined is not None and not listed:
            raise UserError(
                f"{path}: line {number}: label {joined!r}; join several labels by ;, or list that class in classes.txt"
            )
        own = read_split(cells[split_at]) if split_at is not None else None
        known = None if not names and own == "test" else names
        found = (cells[at] or None if at is not None else None for at in (masks, saliency))
        lines.append(Line(cells[image_at], known, own, f"{path}:{number}", *found))
    if not lines:
        raise UserError(f"{path}: no images found below its first line; add a line for each")
    return lines, _notes(file)


@lru_cache(maxsize=4096)
def _read_labels(text: str) -> tuple[tuple[str, ...], str | None]:
    """Labels joined by ``;``, and one that is joined by something else, which would lose some or make a class of
    two.
    """
    names = split_labels(text)
    return names, next((name for name in names if any(mark in name for mark in "|,\t")), None)


def split_labels(text: str) -> tuple[str, ...]:
    """Labels joined by ``;``."""
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _notes(file: TextFile) -> list[str]:
    return [file.note] if file.note else []


def read_jsonl(path: Path, encoding: str | None = None) -> tuple[list[Line], list[str]]:
    """Every line of a ``metadata.jsonl``, and notes; UserError names file and line."""
    file = read_text(path, encoding)
    lines = []
    for number, text in file.lines():
        where = f"{path}:{number}"
        try:
            value = parse_json(text, where)
            name = value["file_name"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: expected a JSON object with file_name ({error}); correct the line") from error
        own = read_split(str(value.get("split") or ""))
        labels = _json_labels(value, where)
        mask, saliency = (str(value[key]) if value.get(key) else None for key in ("mask", "saliency"))
        lines.append(Line(str(name), labels, own, where, mask, saliency))
    return lines, _notes(file)


def _json_labels(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = next((line[key] for key in ("labels", "label", "objects") if key in line), ())
    if isinstance(value, dict):
        value = next((value[key] for key in ("categories", "category", "label") if key in value), ())
    if isinstance(value, str):
        return split_labels(value)
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, (str, int)) for part in value):
        raise UserError(f"{where}: labels must be a list of class names or numbers; correct the line")
    return tuple(str(part) for part in value)
