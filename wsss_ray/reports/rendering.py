# SPDX-License-Identifier: Apache-2.0
"""The one environment that turns templates into HTML: every value is escaped, and a value that is missing is an error.

Templates lie in ``templates/``. Line breaks and indents in them are for their readers and do not reach the page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wsss_ray.reports.layout import format_duration, format_percent

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, macro: str, **values: Any) -> Markup:
    """What a macro of a template makes of ``values``."""
    made = getattr(_environment().get_template(f"{template}.html").module, macro)
    rendered: Markup = made(**values)
    return rendered


def render_document(title: str, facts: Mapping[str, object], sections: Sequence[Markup], foot: str) -> str:
    """A whole page around its sections."""
    style, script = _read("style.css"), _read("script.js")
    return (
        _environment()
        .get_template("document.html")
        .render(
            title=title,
            facts=facts,
            sections=sections,
            foot=foot,
            policy=Markup(_write_policy(script)),
            style=Markup(style),
            script=Markup(script),
        )
    )


def _write_policy(script: str) -> str:
    """What a browser lets a page do: show the images and the style inside it and run its own script, and no more."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )


@lru_cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(loader=FunctionLoader(_join_lines), autoescape=True, undefined=StrictUndefined)
    made.filters.update(percent=format_percent, duration=format_duration)
    return made


def _join_lines(template: str) -> str:
    return re.sub(r"\n\s*", "", _read(template))


@lru_cache
def _read(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")
