# SPDX-License-Identifier: Apache-2.0
"""``wsss report``: a run or a study as one page."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import complete_page
from wsss_ray.config import Scale


def report(
    name: Annotated[
        str,
        typer.Argument(
            help="A run (folder or name) or a study, e.g. l2g.table1.",
            metavar="RUN|STUDY",
            autocompletion=complete_page,
        ),
    ],
    to: Annotated[str, typer.Option("--out", help="HTML file to write.")] = "report.html",
    results: Annotated[str, typer.Option(help="Folder or URI of runs and studies: --out of 'wsss run'.")] = "results",
    scale: Annotated[Scale | None, typer.Option(help="Scale of a study; default: the only one found.")] = None,
) -> None:
    """Write a run or a study as one self-contained HTML page that works offline."""
    from wsss_ray.reports.page import write_page

    typer.echo(write_page(name, to, results, scale))
