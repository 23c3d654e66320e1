# SPDX-License-Identifier: Apache-2.0
"""A scored variant that stands in score/names.py alone shows up wherever scores are read."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from tests.fake_run import fake_run, prepare
from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder, open_run
from wsss_ray.artifacts.tables import COUNTS_SCHEMA, read_table, write_table
from wsss_ray.config import UserError
from wsss_ray.experiments.study import Row, Study
from wsss_ray.experiments.study_run import keep_scores
from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.reports.closing import list_scores
from wsss_ray.reports.compare import compare_runs
from wsss_ray.reports.compare_tables import build_tables
from wsss_ray.reports.run_page import build_run_page
from wsss_ray.reports.study_table import summarize_study
from wsss_ray.reports.study_text import write_markdown
from wsss_ray.score.names import STEPS, VARIANTS, Variant, describe_metrics
from wsss_ray.studies import resolve

TITLE = "refined twice"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with one variant more."""
    monkeypatch.setitem(VARIANTS, "twice", Variant(TITLE, "{split}, refined by {refiner} twice"))
    variants = (*STEPS["masks"].variants, "twice")
    monkeypatch.setitem(STEPS, "masks", dataclasses.replace(STEPS["masks"], variants=variants))


def scored_run(out: Path, name: str, data: str, wrong: set[str]) -> RunFolder:
    """A run whose score step has reported the new variant as it reports the others."""
    run = open_run(fake_run(out, name, data, wrong))
    for part in storage.list_names(str(out / "score" / name)):
        rows = read_table(str(out / "score" / name / part)).to_pylist()
        rows += [{**row, "variant": "twice"} for row in rows]
        write_table(pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA), str(out / "score" / name / part))
    masks = run.record["scores"]["masks"]
    masks["twice"] = {**masks["mask"], "protocol": "train, refined by seeds twice"}
    return run


@pytest.mark.usefixtures("names")
def test_a_new_variant_is_read_everywhere(tmp_path: Path) -> None:
    data = prepare(tmp_path / "data")
    first = scored_run(tmp_path, "a", data, set())
    second = scored_run(tmp_path, "b", data, {f"{place:03d}" for place in range(6)})
    title = f"Pseudo masks, {TITLE}"

    assert (f"{title}: mIoU", "100.0", "train, refined by seeds twice") in list_scores(first)

    page = build_run_page(first, 0)
    assert f'<td class="" data-name="score">{title}</td>' in page
    assert "train, refined by seeds twice" in page

    comparison = compare_runs([first, second], num_resamples=50)
    assert "lower, statistically significant" in {test.verdict for test in comparison.tests if test.variant == "twice"}
    console = Console(width=200, record=True, file=io.StringIO())
    for table in build_tables(comparison):
        console.print(table)
    assert console.export_text().count(title) == 2

    assert "masks[.mask|twice]" in describe_metrics()
    plan = plan_sweep(resolve("cam"), parse_space(["refine.threshold=0.1,0.2"]), SweepOptions(metric="masks.twice"))
    assert plan.recipe.segment is None

    study = Study(
        "x.y", "T", "S", "masks", (Row("a", resolve("cam"), {"masks.twice": 50.0}),), also=("precision.twice",)
    )
    results = {
        **{"study": study.name, "title": "T", "source": "S", "metric": study.metric, "also": list(study.also)},
        **{"scale": "toy", "profile": "paper", "axis": None, "variant": None, "data": None, "settings": []},
        "rows": [
            {
                **{"name": "a", "published": study.rows[0].published, "note": "", "runs": True},
                "seeds": {"0": {"status": "finished", "scores": keep_scores(first.record["scores"])}},
            }
        ],
    }
    table = summarize_study(results)
    assert table.lines[0].cells["masks.twice"].difference == pytest.approx(50)
    assert table.lines[0].cells["precision.twice"].mean == pytest.approx(100 * np.float64(1))
    assert f"Pseudo masks mIoU %, {TITLE}: published" in write_markdown(table)


def test_without_its_line_it_is_unknown() -> None:
    assert "twice" not in describe_metrics()
    with pytest.raises(UserError, match="--metric masks.twice"):
        plan_sweep(resolve("cam"), parse_space(["train.epochs=1"]), SweepOptions(metric="masks.twice"))
