"""``wsss report``: a run or a study as one page for people."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    name: Annotated[str, typer.Argument(help="A run (folder or name) or a study, l2g.table1.", metavar="RUN|STUDY")],
    to: Annotated[str, typer.Option("--out", help="The page to write.")] = "report.html",
    results: Annotated[str, typer.Option(help="Where runs and studies lie: --out of the other commands.")] = "results",
    scale: Annotated[str | None, typer.Option(help="Of a study: which size; default: the one there is.")] = None,
) -> None:
    """Write one page with scores, road, curves, classes and images; it needs no network to be read."""
    from wsss_ray.reports.page import write_page

    typer.echo(write_page(name, to, results, scale))
