# SPDX-License-Identifier: Apache-2.0
"""Names that look the same are the same: class names across spellings, file names across Unicode forms."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wsss_ray.config import UserError, suggest

_BLANKS = re.compile(r"\s+")
_ALIKE = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | dict.fromkeys("\u2018\u2019\u02bc", "'")
)
"""Dashes and apostrophes that programs put in place of the plain ones."""
BACKGROUND = frozenset({"background", "__background__", "_background_", "bg"})
LONGEST_ID = 200
"""Bytes of an image id: file systems take 255 of a name, and endings are added."""
VOID = frozenset({"ignore", "ignored", "void", "unlabeled", "unlabelled", "unknown", "boundary", "border"})
"""Names of what is no class in lists of colours and values."""


def tidy_name(name: str) -> str:
    """A class name as it is shown: composed, without invisible marks, with single plain blanks."""
    visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return _BLANKS.sub(" ", (visible or name).replace("\u00a0", " ")).strip()


def name_key(name: str) -> str:
    """The same for names that a reader cannot tell apart, or only by case."""
    plain = unicodedata.normalize("NFKC", tidy_name(unicodedata.normalize("NFKC", name)))
    return plain.translate(_ALIKE).casefold()


def path_key(path: str) -> str:
    """The same for spellings of one relative path: Unicode form, case, back-slashes."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()


def contain_path(written: str) -> str:
    """A path as written, without what leads out of a folder: a drive, a root, ``..``."""
    parts = re.sub(r"^[A-Za-z]:(?=[\\/])", "", written).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "..", "."))


def show_path(path: str) -> str:
    """A path that can be stored and printed: bytes that are no UTF-8 become a mark."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def compose(text: str) -> str:
    """A file name with composed characters, as most tables write it."""
    return unicodedata.normalize("NFC", text)


def find_id_fault(image_id: str) -> str | None:
    """Why an image id cannot name a file, so that none is ever written outside a folder; None for a good one."""
    if not image_id.strip() or image_id in (".", ".."):
        return "names no file"
    if any(c in "/\\" or unicodedata.category(c) in ("Cc", "Cs") for c in image_id):
        return "holds a slash, a control character or bytes that are no UTF-8"
    if len(image_id.encode("utf-8", "surrogateescape")) > LONGEST_ID:
        return f"is longer than {LONGEST_ID} bytes"
    return None


@dataclass(frozen=True)
class ClassNames:
    """The classes in their order, and every spelling of them."""

    names: tuple[str, ...]
    keys: Mapping[str, int]
    """``name_key`` -> index."""
    notes: tuple[str, ...] = ()

    def find(self, name: str) -> int | None:
        """The index of a name in any spelling; None for an unknown one."""
        return self.keys.get(name_key(name))

    def guess(self, unknown: Iterable[str]) -> dict[str, str]:
        """Unknown name -> "did you mean NAME?", empty where no class is like it."""
        return {name: suggest(name, self.names) for name in unknown}


def list_classes(names: Sequence[str], where: str) -> ClassNames:
    """Classes that somebody listed in order; UserError for names that look alike."""
    tidy = [tidy_name(name) for name in names]
    keys: dict[str, int] = {}
    for index, name in enumerate(tidy):
        first = keys.setdefault(name_key(name), index)
        if first != index:
            raise UserError(
                f"{where}: classes {names[first]!r} and {names[index]!r} look alike or are listed twice; "
                "keep one of the two or rename it"
            )
    return ClassNames(tuple(tidy), keys)


def gather_classes(names: Iterable[str]) -> ClassNames:
    """The classes of labels without a list: in alphabetical order, spellings that look alike made one, and noted."""
    counts = Counter(names)
    spellings: dict[str, Counter[str]] = {}
    for name, count in counts.items():
        spellings.setdefault(name_key(name), Counter())[name] += count
    chosen = {key: tidy_name(max(found, key=lambda name: (found[name], name))) for key, found in spellings.items()}
    ordered = sorted(chosen, key=lambda key: chosen[key])
    notes = [
        f"read as one class {chosen[key]!r}: " + ", ".join(f"{ascii(name)} ({found[name]})" for name in sorted(found))
        for key, found in sorted(spellings.items())
        if len(found) > 1
    ]
    mixed = [name for name in chosen.values() if _mixes_scripts(name)]
    notes += [
        f"class {ascii(name)} ({name}) mixes letters of two scripts that look alike: is it meant?" for name in mixed
    ]
    return ClassNames(tuple(chosen[key] for key in ordered), {key: i for i, key in enumerate(ordered)}, tuple(notes))


def _mixes_scripts(name: str) -> bool:
    """Whether a word has Latin letters beside Cyrillic or Greek ones."""
    scripts = ("LATIN", "CYRILLIC", "GREEK")
    words = [{unicodedata.name(c, "").split(" ")[0] for c in word} for word in re.findall(r"\w+", name)]
    return any(sum(script in found for script in scripts) > 1 for found in words)
