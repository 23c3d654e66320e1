# SPDX-License-Identifier: Apache-2.0
"""Text files as people save them: one reader for lists, tables and JSON, whatever their encoding and line ends."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wsss_ray import storage
from wsss_ray.config import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; those of UTF-32 begin like those of UTF-16."""
_LATIN = ("cp1252", "cp1250", "cp1254", "cp1257", "mac_roman", "cp850", "cp437")
_OTHERS = ("cp1251", "cp1253", "cp1255", "cp1256", "koi8_r", "cp866")
_WIDE_PAGES = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
_ENOUGH = 400
"""Bytes beyond ASCII from which the code page of a Chinese, Japanese or Korean text is certain."""
_LARGEST = 1_000_000_000
"""Bytes of a text file that is read as a whole."""
GUESSED = "not UTF-8, read as"
"""How a note about a guessed encoding begins."""
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class TextFile:
    """A text file that was read."""

    path: Path
    text: str
    encoding: str
    guessed: bool = False
    """Nothing in the file says its encoding; it was chosen by how likely the text is."""

    @property
    def note(self) -> str | None:
        """What a person should check, in one line; None where the encoding is certain."""
        if not self.guessed:
            return None
        word = next((word for word in re.split(r"[\s,;\"]+", self.text) if not word.isascii()), "")
        return (
            f"{self.path}: {GUESSED} {self.encoding} ({word}); "
            "save it as UTF-8 or give --set encoding=NAME if that is wrong"
        )

    def lines(self) -> Iterator[tuple[int, str]]:
        """(line number, line without its end) of every line that is not blank; U+2028 ends no line."""
        for number, line in enumerate(_LINE_END.split(self.text), start=1):
            if line.strip():
                yield number, line

    def json(self) -> Any:
        """The value of a JSON file; UserError names file and line."""
        return parse_json(self.text, str(self.path))

    def table(self) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
        """Column names, stripped and in lower case, and (line number, stripped cells) of every line that holds
        something, at least one cell for each column, as they are read. UserError names file and line.
        """
        rows = self._rows()
        columns = [name.casefold() for name in next(rows, (0, []))[1]]
        self._refuse_twins(columns)
        return columns, ((number, cells + [""] * (len(columns) - len(cells))) for number, cells in rows)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(_split_lines(self.text), strict=True)
        try:
            for cells in reader:
                stripped = [strip_invisible(cell) for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
        except csv.Error as error:
            raise UserError(f"{self.path}:{reader.line_num}: not a line of a CSV file ({error}); correct it") from error

    def _refuse_twins(self, columns: list[str]) -> None:
        twice = next((name for name in columns if name and columns.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.path}: column {twice!r} comes twice in its first line; remove one")


def _split_lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends, one after the other."""
    start = 0
    for found in _LINE_END.finditer(text):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; NaN and Infinity are refused like every other mistake, in one line."""

    def refuse(word: str) -> Any:
        raise UserError(f"{where}: holds {word}, which is no number; correct it or export again")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deep to be read; export it again") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}: not valid JSON ({error.msg}); correct it") from error


def parse_xml(data: bytes, where: str) -> ElementTree.Element:
    """The root of an XML file, also in encodings that the parser does not know; UserError names the file."""
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)[\"'][^>]*\?>", data)
        if declared is None and _reads_as_utf8(data):
            raise UserError(f"{where}: not valid XML ({error}); copy it again") from error
    try:
        text = _decode(data, Path(where), declared[1].decode("ascii") if declared else None)[0]
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise UserError(f"{where}: not valid XML ({error}); copy it again") from error


def _reads_as_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def strip_invisible(text: str) -> str:
    """Without blanks, byte order marks and zero-width marks at both ends."""
    return text.strip(" \t\r\n\v\f\u00a0\u2007\u202f\u3000\ufeff\u200b\u200c\u200d\u2060")


def read_text(path: str | Path, encoding: str | None = None) -> TextFile:
    """A text file: UTF-8 with or without a byte order mark, UTF-16, UTF-32, else the likeliest code page.

    ``encoding`` settles it for files without a mark. UserError names the file.
    """
    where = Path(path)
    try:
        _refuse_size(where)
        data = storage.read_local(where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); put the file there") from error
    return TextFile(where, *_decode(data, where, encoding))


def _refuse_size(path: Path) -> None:
    """UserError for a file that is too large for a list, a table or the JSON of an export, and would fill memory."""
    size = path.stat().st_size
    if size > _LARGEST:
        raise UserError(f"{path}: {size / 1e9:.1f} GB, which is no list or table of images; give a smaller file")


def _decode(data: bytes, path: Path, encoding: str | None) -> tuple[str, str, bool]:
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _wide(data)
    name = marked or encoding or "utf-8"
    try:
        return _without_nulls(data.decode(name), path), name, False
    except LookupError as error:
        raise UserError(
            f"{path}: encoding {name!r} is unknown; give a name such as utf-8, cp1252 or gb18030"
        ) from error
    except UnicodeDecodeError as error:
        if marked or encoding:
            line = data[: error.start].count(b"\n") + 1
            raise UserError(f"{path}:{line}: not {name} ({error.reason}); save it as UTF-8") from error
    name = _guess(data, path)
    return _without_nulls(data.decode(name), path), name, True


def _guess(data: bytes, path: Path) -> str:
    """The likeliest code page; UserError where several of those with two bytes a character fit a short text."""
    from charset_normalizer import from_bytes  # only texts of unknown encoding need it

    matches = [match.encoding for match in from_bytes(data, cp_isolation=[*_LATIN, *_OTHERS, *_WIDE_PAGES])]
    if not matches:
        raise UserError(f"{path}: in no known encoding; save it as UTF-8")
    best = matches[0]
    # Short texts fit many pages; cp1252 is by far the most common one for Latin letters, where it gives letters alone.
    western = all(c.isascii() or c.isalpha() for c in data.decode("cp1252", "replace"))
    single = not re.search(rb"[\x80-\xff]{2}", data)
    if western and (single or best in _LATIN):
        return "cp1252"
    fitting = [name for name in _WIDE_PAGES if name in matches]
    if best in _WIDE_PAGES and len(fitting) > 1 and sum(byte > 127 for byte in data) < _ENOUGH:
        raise UserError(
            f"{path}: not UTF-8, and {', '.join(fitting)} all fit; save it as UTF-8 or give --set encoding=NAME"
        )
    return best


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark, told by where its zero bytes lie."""
    sample = data[:4096]
    odd, even = sample[1::2].count(0), sample[::2].count(0)
    if len(sample) < 4 or len(data) % 2 or max(odd, even) * 5 < len(sample) // 2 * 2:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _without_nulls(text: str, path: Path) -> str:
    if "\0" in text:
        raise UserError(f"{path}: holds zero bytes and is no text file; save it as UTF-8")
    return text
