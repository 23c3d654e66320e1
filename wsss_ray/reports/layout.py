"""The parts of a page: document, section, table."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape

from wsss_ray.reports.style import SCRIPT, STYLE

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'"
)
"""What a browser lets a page do: show the images and the style inside it and run its own script, and nothing else."""


def build_document(title: str, facts: Mapping[str, object], sections: Sequence[str], foot: str) -> str:
    """A whole HTML document around its sections."""
    listed = "".join(f"<span>{escape(key)} <b>{escape(str(value))}</b></span>" for key, value in facts.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="facts">{listed}</p></header>'
        f"{''.join(sections)}<footer>{escape(foot)} · wsss-ray</footer></main><script>{SCRIPT}</script></body></html>\n"
    )


def build_section(title: str, body: str, lead: str = "") -> str:
    """A titled part of the page; nothing where it has no body."""
    if not body:
        return ""
    note = f'<p class="soft">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def build_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first and last columns are text and the others numbers; lines become blocks on a phone."""

    def kind(place: int) -> str:
        return "wide" if place == len(titles) - 1 else "" if place == 0 else "n"

    head = "".join(f'<th class="{kind(place)}">{escape(title)}</th>' for place, title in enumerate(titles))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind(place)}" data-name="{escape(titles[place])}">{escape(cell)}</td>'
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="lines"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def format_percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}"


def format_duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
