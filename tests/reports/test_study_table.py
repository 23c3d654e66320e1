# SPDX-License-Identifier: Apache-2.0
"""Published beside ours: the table, Kendall's tau-b, and what a reader is told."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.experiments.study_run import keep_last_epoch
from wsss_ray.reports.chart_svg import Axes, Series, draw_chart
from wsss_ray.reports.figure import encode_figure, spans_decades
from wsss_ray.reports.page import write_page
from wsss_ray.reports.study_page import build_study_page
from wsss_ray.reports.study_results import find_results
from wsss_ray.reports.study_table import read_column, summarize_study
from wsss_ray.reports.study_text import (
    describe_ranking,
    describe_setting,
    draw_figure,
    format_rows,
    list_headings,
    write_markdown,
)
from wsss_ray.score.rank import compute_tau_b, measure_agreement


def tau_by_hand(first: list[float], second: list[float]) -> float:
    """Kendall (1945): concordant less discordant over the geometric mean of the untied pairs of each side."""
    agree = untied_first = untied_second = 0
    for (a, b), (c, d) in itertools.combinations(zip(first, second, strict=True), 2):
        one, two = (a > c) - (a < c), (b > d) - (b < d)
        agree += one * two
        untied_first += one != 0
        untied_second += two != 0
    return agree / math.sqrt(untied_first * untied_second)


def test_tau_of_known_orders() -> None:
    assert compute_tau_b(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 40])) == 1
    assert compute_tau_b(np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])) == -1
    assert compute_tau_b(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 4])) == pytest.approx(4 / 6)
    # Two ties on one side: 5 of 6 pairs untied there, all of them agreeing.
    assert compute_tau_b(np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(5 / math.sqrt(5 * 6))
    assert math.isnan(compute_tau_b(np.array([1, 1]), np.array([1, 2])))


def test_tau_matches_the_definition_on_random_ties() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        first, second = generator.integers(0, 4, (2, 7)).astype(float)
        if len(set(first)) > 1 and len(set(second)) > 1:
            assert compute_tau_b(first, second) == pytest.approx(tau_by_hand(first.tolist(), second.tolist()))


def test_chance_counts_all_orders() -> None:
    # 4 rows in the published order: 1 of 24 orders is as good. One swapped neighbour: 1 + 3 of 24.
    assert measure_agreement([1, 2, 3, 4], [[1], [2], [3], [4]]).p_value == pytest.approx(1 / 24)
    assert measure_agreement([1, 2, 3, 4], [[1], [2], [4], [3]]).p_value == pytest.approx(4 / 24)
    assert measure_agreement([1, 2], [[2], [1]]).p_value == 1
    many = measure_agreement(list(range(12)), [[float(place)] for place in range(12)], num_resamples=500)
    assert many.tau == 1
    assert many.p_value == pytest.approx(1 / 501)


def test_interval_comes_from_seeds() -> None:
    one = measure_agreement([1, 2, 3], [[1.0], [2.0], [3.0]])
    assert (one.low, one.high, one.num_seeds) == (1, 1, 1)
    sure = measure_agreement([1, 2, 3], [[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])
    assert (sure.low, sure.high, sure.num_seeds) == (1, 1, 2)
    unsure = measure_agreement([1, 2, 3], [[1.0, 3.0], [1.1, 2.9], [1.2, 3.1]])
    assert unsure.low < 0 < unsure.tau <= unsure.high == 1
    assert unsure == measure_agreement([1, 2, 3], [[1.0, 3.0], [1.1, 2.9], [1.2, 3.1]])


def test_pairs_with_equal_published_numbers_do_not_count() -> None:
    found = measure_agreement([5, 5, 7], [[1], [2], [3]])
    assert (found.num_pairs, found.num_agreeing) == (2, 2)
    with pytest.raises(UserError, match="at least two rows"):
        measure_agreement([1], [[1]])


def seed(miou: float, **others: Any) -> dict[str, Any]:
    scores = {
        "seeds": {
            "fixed": {"miou": miou - 0.1, "pixel_accuracy": 0.9, "protocol": "train, fixed"},
            "best": {"miou": miou, "pixel_accuracy": 0.9, "protocol": "train, best"},
        },
        "segmentation": {"single_scale": {"miou": 0.2, "pixel_accuracy": 0.75, "protocol": "val, single"}},
    }
    return {"status": "finished", "scores": scores, "key": "k", "seconds": 61.0, "run": "r", **others}


@pytest.fixture
def results() -> dict[str, Any]:
    failed = {"status": "failed", "reason": "no weights | here; fetch them", "key": "", "seconds": 0.1}
    return {
        "study": "fake.table1",
        "title": "A table",
        "source": "A paper, Table 1",
        "metric": "seeds",
        "variant": None,
        "axis": None,
        "scale": "toy",
        "profile": "paper",
        "data": None,
        "settings": ["train.epochs=1"],
        "rows": [
            {"name": "CAM", "published": {"seeds": 47.0}, "note": "", "runs": True, "seeds": {"0": seed(0.30)}},
            {
                "name": "Ours",
                "published": {"seeds": 56.0, "segmentation": 70.0},
                "note": "a note",
                "runs": True,
                "seeds": {"0": seed(0.40), "1": seed(0.44), "2": failed},
            },
            {"name": "Broken", "published": {"seeds": 50.0}, "note": "", "runs": True, "seeds": {"0": failed}},
            {"name": "Later", "published": {}, "note": "", "runs": True, "seeds": {}},
            {"name": "Theirs", "published": {"seeds": 48.0}, "note": "", "runs": False, "seeds": {}},
        ],
    }


def test_table_shows_every_row_as_it_stands(results: dict[str, Any]) -> None:
    report = summarize_study(results)
    assert [line.status for line in report.lines] == ["finished", "partly", "failed", "not run", "quoted"]
    assert report.metrics == ("seeds", "segmentation")
    table = format_rows(report)
    assert table[0] == ["CAM", "47.0", "30.0", "-17.0", "-", "20.0", "-", ""]
    # Mean of 40 and 44, standard deviation of a sample 4 / sqrt(2).
    assert table[1][:4] == ["Ours", "56.0", "42.0 ± 2.8 (2)", "-14.0"]
    assert "no weights" in table[1][-1]
    assert "a note" in table[1][-1]
    assert table[2][1:4] == ["50.0", "failed", "-"]
    assert table[3][1:4] == ["-", "not run", "-"]
    assert table[4][1:4] == ["48.0", "-", "-"]
    assert table[4][-1] == "quoted, not run"
    assert len(list_headings(report)) == len(table[0])


def test_order_uses_rows_that_have_both_numbers(results: dict[str, Any]) -> None:
    report = summarize_study(results)
    assert report.ranking is not None
    assert report.ranking.num_rows == 2
    assert report.ranking.tau == 1
    assert "1 of 1 pairs ranked as in the paper" in describe_ranking(report)
    assert "one seed" in describe_ranking(report)
    results["rows"][0]["seeds"] = {}
    assert summarize_study(results).ranking is None
    assert "not known" in describe_ranking(summarize_study(results))


def test_variant_is_read_where_it_is_named(results: dict[str, Any]) -> None:
    assert summarize_study({**results, "variant": "fixed"}).lines[0].cells["seeds"].mean == pytest.approx(20.0)
    assert summarize_study({**results, "variant": "crf"}).lines[0].cells["seeds"].mean is None


def test_pixel_accuracy_and_parameters_have_their_own_source(results: dict[str, Any]) -> None:
    results["rows"][0]["published"] = {"pixel_accuracy": 90.0, "params": 20.0}
    results["rows"][0]["seeds"] = {"0": seed(0.3, params=12.5)}
    report = summarize_study({**results, "metric": "pixel_accuracy"})
    assert report.lines[0].cells["pixel_accuracy"].mean == pytest.approx(75.0)
    assert report.lines[0].cells["params"].difference == pytest.approx(-7.5)


def test_last_epoch_gives_precision_and_monitors(results: dict[str, Any]) -> None:
    losses = [{"total": 0.5, "monitor/offset": 0.1, "monitor/outside": 0.0}, {"total": 0.4, "monitor/offset": 0.7}]
    history = [{"epoch": epoch, "losses": found, "mean_ap": 0.8 + epoch / 10} for epoch, found in enumerate(losses)]
    results["rows"][0]["seeds"] = {"0": seed(0.3, **keep_last_epoch(history))}
    results["rows"][1]["seeds"] = {"0": seed(0.3, **keep_last_epoch(()))}
    first, second = summarize_study({**results, "also": ["mean_ap", "offset", "outside"]}).lines[:2]
    assert first.cells["mean_ap"].mean == pytest.approx(90)
    assert first.cells["offset"].mean == pytest.approx(0.7)
    assert first.cells["outside"].mean is None
    assert second.cells["offset"].mean is None


def test_reader_is_told_the_setting(results: dict[str, Any]) -> None:
    text = describe_setting(summarize_study(results))
    assert "scale toy" in text
    assert "train.epochs=1" in text
    assert "not the values" in text
    paper = {**results, "scale": "paper", "data": "/voc", "settings": []}
    assert "not the values" not in describe_setting(summarize_study(paper))


def test_studies_without_published_numbers_have_no_such_column(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        row["published"] = {}
    report = summarize_study(results)
    assert list_headings(report) == ["row", "CAM seeds mIoU %: ours", "remarks"]
    assert "prints no numbers" in describe_ranking(report)


def test_markdown_is_one_table(results: dict[str, Any]) -> None:
    text = write_markdown(summarize_study(results))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert "no weights \\| here" in text
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(list_headings(summarize_study(results))) + 1}


def test_figure_and_page(results: dict[str, Any], tmp_path: Path) -> None:
    figure = draw_figure(summarize_study(results))
    assert figure is not None
    assert [entry.get_text() for entry in figure.axes[0].get_legend().texts] == ["ours", "published"]
    storage.write_json(str(tmp_path / "studies" / "fake.table1-toy" / "results.json"), results)
    write_page("fake.table1", str(tmp_path / "page.html"), str(tmp_path))
    page = (tmp_path / "page.html").read_text()
    assert "42.0 ± 2.8 (2)" in page
    assert "no weights | here" in page
    assert page.count("<circle") == 4 + 2
    assert not any(mark in page for mark in ("http://", "https://"))


def test_no_text_of_results_becomes_markup(results: dict[str, Any]) -> None:
    hostile = "<script>x</script>"
    for key in ("study", "title", "source", "scale", "profile"):
        results[key] += hostile
    results |= {"data": hostile, "settings": [hostile], "axis": hostile}
    for row in results["rows"]:
        row["name"], row["note"] = row["name"] + hostile, hostile
        for entry in row["seeds"].values():
            entry.update(reason=hostile, run=hostile)
    page = build_study_page(results)
    assert page.count("<script") == 1, "its own"
    assert page.count("&lt;script&gt;") > 10


def test_axis_of_numbers_is_joined(results: dict[str, Any], tmp_path: Path) -> None:
    for place, row in enumerate(results["rows"]):
        row["name"] = str(place / 10)
    results["axis"] = "threshold"
    storage.write_json(str(tmp_path / "results.json"), results)
    write_page(str(tmp_path), str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text().count("<polyline") == 2


def test_axis_over_decades_is_a_logarithm(results: dict[str, Any]) -> None:
    """0.001, 0.01 and 0.1 stand at equal distances."""
    results["axis"] = "rate"
    results["rows"] = results["rows"][:2] + [{**results["rows"][1], "published": {}}]

    def columns(*names: str) -> list[float]:
        for row, name in zip(results["rows"], names, strict=True):
            row["name"], row["published"] = name, {}
        figure = draw_figure(summarize_study(results))
        assert figure is not None
        encode_figure(figure)
        (plot,) = figure.axes
        (bars,) = plot.containers
        return [float(plot.transData.transform(point)[0]) for point in bars[0].get_xydata()]

    first, middle, last = columns("0.001", "0.01", "0.1")
    assert abs((middle - first) - (last - middle)) <= 4 < last - middle
    first, middle, last = columns("0.01", "0.05", "0.1")
    assert middle - first < last - middle, "within 20 times the axis stays as it is"
    assert spans_decades([0.001, 0.1])
    assert not spans_decades([0.01, 0.1])
    assert not spans_decades([0.0, 1.0])
    assert not spans_decades([])


def test_page_charts_space_a_wide_axis_by_its_logarithm() -> None:
    text = draw_chart(
        [Series("ours", [0.001, 0.01, 0.1], [1.0, 2.0, 3.0], 1, dots=True)], Axes("T", "x", "y", log=True)
    )
    first, middle, last = (float(x) for x in re.findall(r'class="fill1" cx="([\d.]+)"', text))
    assert middle - first == pytest.approx(last - middle, abs=0.2)
    assert all(f">{name}</text>" in text for name in ("0.001", "0.01", "0.1"))


def test_results_are_found_by_scale(results: dict[str, Any], tmp_path: Path) -> None:
    for scale in ("toy", "small"):
        where = str(tmp_path / "studies" / f"fake.table1-{scale}" / "results.json")
        storage.write_json(where, {**results, "scale": scale})
    assert find_results("fake.table1", str(tmp_path), "small")["scale"] == "small"
    with pytest.raises(UserError, match="--scale"):
        find_results("fake.table1", str(tmp_path))
    with pytest.raises(UserError, match="wsss study run other"):
        find_results("other", str(tmp_path))


def test_tables_in_a_log_keep_their_headings_whole_unless_a_width_is_asked_for(
    results: dict[str, Any], tmp_path: Path
) -> None:
    storage.write_json(str(tmp_path / "results.json"), results)

    def told(**columns: str) -> str:
        command = [sys.executable, "-m", "wsss_ray.cli.main", "study", "report", str(tmp_path)]
        others = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**others, **columns})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "CAM seeds mIoU %: published" in told()
    narrow = told(COLUMNS="60")
    assert max(map(len, narrow.splitlines())) <= 60
    assert "CAM seeds mIoU %: published" not in narrow


def test_precision_and_recall_are_read_of_the_threshold_that_is_named() -> None:
    protocol = {"protocol": "train"}
    scored = {
        "best": {"miou": 0.4, "mean_precision": 0.5, "mean_recall": 0.6, **protocol},
        "fixed": {"miou": 0.3, "mean_precision": 0.2, "mean_recall": 0.7, "recall_foreground": 0.9, **protocol},
    }
    seed = {"status": "finished", "scores": {"seeds": scored}}
    columns = ("precision", "recall", "precision.fixed", "recall.fixed", "recall_foreground.fixed")
    found = [read_column(seed, column, "seeds", "best")[0] for column in columns]
    assert found == pytest.approx([50, 60, 20, 70, 90])
