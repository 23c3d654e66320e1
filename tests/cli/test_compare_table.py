"""The tables of ``wsss compare`` as they are printed."""

from __future__ import annotations

import io

from rich.console import Console
from wsss_ray.cli.compare import _recipes

from wsss_ray.reports.compare import Comparison


def test_brackets_in_values_and_names_are_printed() -> None:
    differing = {"data.toy.words": ("[/there]", [True, False])}
    result = Comparison(names=("[a]", "b"), differing=differing, scores=[], labels=())
    page = io.StringIO()
    Console(file=page, width=200).print(_recipes(result))
    text = page.getvalue()
    assert "[/there]" in text and "[True, False]" in text and "(1) [a]" in text
