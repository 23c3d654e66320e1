# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal whose cells are plain text: Rich would take brackets in values for its markup."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table
from rich.text import Text


def build_text_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[int] = ()
) -> Table:
    """A table of text; the columns at the places ``numeric`` stand to the right."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place in numeric else "left", overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table
