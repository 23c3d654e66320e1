# SPDX-License-Identifier: Apache-2.0
"""What commands print: results on stdout, as tables and lines or as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

PLAIN_WIDTH = 160
"""Columns of a log or a pipe where COLUMNS names none: 80 would break the tables' headings and remarks apart."""


def print_parts(parts: Iterable[Table | Text | str]) -> None:
    """Tables, sentences (``Text``) and lines, in order; lines, which may hold a path, are not broken."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if known else PLAIN_WIDTH)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)


def print_json(value: Any) -> None:
    """A value as JSON on stdout; dataclasses as their fields."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=dataclasses.asdict))


@contextlib.contextmanager
def keep_stdout_clean(wanted: bool) -> Iterator[None]:
    """What libraries print goes to stderr, so that JSON is all there is on stdout."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield
