# SPDX-License-Identifier: Apache-2.0
"""What a study leaves out of its rows' recipes."""

from __future__ import annotations

from wsss_ray.experiments.study import Row, Study, shorten_recipe
from wsss_ray.studies import build_study, resolve


def study(metric: str, **more: object) -> Study:
    """A study of one row."""
    return Study(name="x", title="", source="", metric=metric, rows=(Row("a"),), **more)  # type: ignore[arg-type]


def test_steps_no_column_reads_are_left_out() -> None:
    whole = resolve("cam")
    seeds = shorten_recipe(study("seeds", also=("precision", "heads")), whole)
    assert seeds.refine is None
    assert seeds.segment is None
    assert seeds.method == whole.method
    masks = shorten_recipe(study("masks", also=("seeds",)), whole)
    assert masks.refine == whole.refine
    assert masks.segment is None
    assert shorten_recipe(study("seeds", also=("masks",)), whole).refine == whole.refine
    for metric in ("segmentation", "params", "pixel_accuracy"):
        assert shorten_recipe(study(metric), whole) == whole
    assert shorten_recipe(study("seeds"), resolve("ssss")) == resolve("ssss")


def test_published_numbers_count_as_columns() -> None:
    made = build_study("smaf.table2")
    rows = [shorten_recipe(made, row.recipe) for row in made.rows if row.recipe is not None]
    printed = {key for row in made.rows for key in row.published}
    assert "masks" in printed
    assert all(row.refine is not None and row.segment is None for row in rows)
