# SPDX-License-Identifier: Apache-2.0
"""Names as MLflow takes them."""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from functools import lru_cache
from typing import Any

_LONGEST_NAME = 250
"""Characters of a metric's name that MLflow stores."""


@lru_cache(maxsize=10_000)
def clean_name(name: str) -> str:
    """A name MLflow accepts, another one for every name: letters and digits of all scripts, ``_ - . / :`` and spaces
    stay, what else there is becomes its number.
    """
    kept = "".join(c if re.match(r"[\w\-./: ]", c) else f"_{ord(c):x}_" for c in unicodedata.normalize("NFC", name))
    if posixpath.normpath(kept) != kept or kept.startswith(("..", "/")) or kept == ".":
        kept = re.sub(r"(?<![^/])\.+(?![^/])|/(?=/|$)|^/", _number_marks, kept)
    if len(kept) > _LONGEST_NAME:
        kept = f"{kept[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return kept


def _number_marks(found: re.Match[str]) -> str:
    return "".join(f"_{ord(c):x}_" for c in found[0])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b.c`` keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
