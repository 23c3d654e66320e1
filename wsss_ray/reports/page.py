# SPDX-License-Identifier: Apache-2.0
"""``wsss report``: a run or a study as one self-contained page."""

from __future__ import annotations

from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder, open_run
from wsss_ray.config import UserError
from wsss_ray.reports.images import BUDGET, LEAST
from wsss_ray.reports.run_page import build_image_sections, build_run_page
from wsss_ray.reports.study_results import find_results
from wsss_ray.score.names import STEPS

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
        data, left_out = fit_run_page(run, limit)
    else:
        from wsss_ray.reports.study_page import build_study_page

        data, left_out = build_study_page(results).encode(), False
    storage.write_bytes(storage.make_absolute(to), data)
    notes = ", without images, which did not fit" if left_out else ""
    notes += f", larger than the limit of {limit / 1e6:g} MB" if len(data) > limit else ""
    return f"{to} ({len(data) / 1e6:.1f} MB{notes}, self-contained, works offline)"


def fit_run_page(run: RunFolder, limit: int = LIMIT) -> tuple[bytes, bool]:
    """(the page of a run, whether its images had to be left out) of at most ``limit`` bytes where text allows it."""
    bare = build_run_page(run, 0).encode()
    budget = min(BUDGET, limit - len(bare))
    while budget >= 4 * LEAST * len(STEPS):
        page = build_run_page(run, budget).encode()
        if len(page) <= limit:
            return page, False
        budget -= max(len(page) - limit, budget // 8)
    return bare, bool(build_image_sections(run, BUDGET))
