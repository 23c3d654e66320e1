"""``wsss report``: a run or a study as one page."""

from __future__ import annotations

from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder, open_run
from wsss_ray.config import UserError
from wsss_ray.reports.images import BUDGET, KINDS, LEAST
from wsss_ray.reports.run_page import images, run_page
from wsss_ray.reports.study_table import find_results

LIMIT = 10_000_000
"""Bytes of a page; images shrink, then become fewer, until it fits."""


def write_page(name: str, to: str, out: str = "results", scale: str | None = None, limit: int = LIMIT) -> str:
    """Write the page of a run (folder or name) or a study (``l2g.table1``, or its folder) to ``to``; says what it is.

    Raises UserError where ``name`` is neither.
    """
    try:
        results = find_results(name, out, scale)
    except UserError as no_study:
        try:
            run = open_run(name, out)
        except UserError as no_run:
            raise UserError(f"{no_run}; and {no_study}") from None
        data, left_out = within(run, limit)
    else:
        from wsss_ray.reports.study_page import study_page

        data, left_out = study_page(results).encode(), False
    storage.write_bytes(storage.absolute(to), data)
    told = ", without images, which did not fit" if left_out else ""
    told += f", more than the {limit / 1e6:g} MB a page should have" if len(data) > limit else ""
    return f"{to} ({len(data) / 1e6:.1f} MB{told}, opens without a network)"


def within(run: RunFolder, limit: int = LIMIT) -> tuple[bytes, bool]:
    """(the page of a run, whether its images had to be left out) of at most ``limit`` bytes where text allows it."""
    bare = run_page(run, 0).encode()
    budget = min(BUDGET, limit - len(bare))
    while budget >= 4 * LEAST * len(KINDS):
        page = run_page(run, budget).encode()
        if len(page) <= limit:
            return page, False
        budget -= max(len(page) - limit, budget // 8)
    return bare, bool(images(run, BUDGET))
