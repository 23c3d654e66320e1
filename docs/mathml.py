# SPDX-License-Identifier: Apache-2.0
"""Formulas as MathML: what browsers draw by themselves, without a script and without a network (an MkDocs hook)."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_page_content(page_html: str, **_: Any) -> str:
    """Every ``$...$`` and ``$$...$$`` of a page, as Arithmatex marks them, drawn as MathML."""
    return FORMULA.sub(_draw, page_html)


def _draw(found: re.Match[str]) -> str:
    tag, inline, block = found.groups()
    display = "inline" if block is None else "block"
    formula = convert(html.unescape(inline if block is None else block).strip(), display=display)
    return f'<{tag} class="arithmatex">{formula}</{tag}>'
