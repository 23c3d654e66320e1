# SPDX-License-Identifier: Apache-2.0
"""Figures: the same bytes everywhere, in every kind of file, whatever names stand in them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsss_ray import storage
from wsss_ray.cli.main import app
from wsss_ray.config import UserError
from wsss_ray.reports.figure import KINDS, Axes, Mark, Series, draw_charts, encode_figure

STARTS = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}
HOSTILE = ("<script>x</script>\"'&", "$\\frac{", "_hidden", "100 % \u732b", "a\nb")


def draw_two() -> Any:
    marks = tuple(Mark(place, (40.0 + 100 * place, 42.0)) for place in (0.001, 0.01, 0.1))
    words = tuple(Mark(word, (1.0 + place,)) for place, word in enumerate(HOSTILE))
    return draw_charts(
        [
            (
                [Series("ours", marks), Series("published", marks[:2], dashed=True)],
                Axes("T", "rate", "mIoU %", log=True),
            ),
            ([Series(name, words, joined=False) for name in HOSTILE], Axes(HOSTILE[0], HOSTILE[1], HOSTILE[2])),
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_do_not_depend_on_the_machine_or_the_day(kind: str, tmp_path: Path) -> None:
    """Another process, hash seed, day, user's style and display: the same file; pyplot and its state stay out."""
    here = encode_figure(draw_two(), kind)
    assert here.startswith(STARTS[kind])
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\nsvg.fonttype: none\n")
    code = (
        "import sys; from tests.reports.test_figure import draw_two, encode_figure;"
        f"sys.stdout.buffer.write(encode_figure(draw_two(), {kind!r})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    other = {
        **os.environ,
        **{"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "TkAgg"},
        **{"SOURCE_DATE_EPOCH": "86400", "DISPLAY": ""},
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, env=other, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == here


def test_names_are_text_and_never_markup_or_formulas() -> None:
    figure = draw_two()
    svg = encode_figure(figure, "svg")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert "script" not in tags
    assert figure.axes[1].get_title(loc="left") == HOSTILE[0]
    shown = [entry.get_text().lstrip("\u200b") for entry in figure.axes[1].get_legend().texts]
    assert shown == list(HOSTILE)
    assert [entry.get_text() for entry in figure.axes[1].get_xticklabels()][1] == HOSTILE[1]


def test_a_spread_is_that_of_a_sample() -> None:
    (plot,) = draw_charts([([Series("", (Mark(1, (40.0, 44.0)), Mark(2, (50.0,))))], Axes("T", "x", "y"))]).axes
    (bars,) = plot.containers
    low, high = bars[2][0].get_segments()[0][:, 1]
    assert (low + high) / 2 == pytest.approx(42)
    assert (high - low) / 2 == pytest.approx(np.std([40, 44], ddof=1))


def test_another_ending_is_refused() -> None:
    with pytest.raises(UserError, match=r"\.bmp; choose \.png, \.svg, \.pdf"):
        encode_figure(draw_two(), "bmp")


def test_the_report_of_a_study_is_written_as_its_ending_says(tmp_path: Path) -> None:
    seed = {"status": "finished", "seconds": 1.0, "run": "r"}
    scores = {"seeds": {"best": {"miou": 0.4, "protocol": "train"}}}
    row = {"published": {"seeds": 50.0}, "note": "", "runs": True}
    rows = [{**row, "name": name, "seeds": {"0": {**seed, "scores": scores}}} for name in ("CAM", "Ours")]
    results = {
        **{"study": "fake.table1", "title": "T", "source": "S", "metric": "seeds", "axis": None, "data": None},
        **{"scale": "toy", "profile": "paper", "rows": rows},
    }
    storage.write_json(str(tmp_path / "results.json"), results)
    for kind, start in {**STARTS, "md": b"# fake.table1"}.items():
        to = tmp_path / f"table.{kind}"
        done = CliRunner().invoke(app, ["study", "report", str(tmp_path), "--to", str(to)])
        assert done.exit_code == 0, done.output
        assert to.read_bytes().startswith(start)
    assert Image.open(io.BytesIO((tmp_path / "table.png").read_bytes())).size == (1040, 680)
    assert not re.search(rb"<dc:date>|CreationDate", (tmp_path / "table.svg").read_bytes())
    storage.write_json(str(tmp_path / "results.json"), {**results, "rows": [{**one, "seeds": {}} for one in rows]})
    done = CliRunner().invoke(app, ["study", "report", str(tmp_path), "--to", str(tmp_path / "none.pdf")])
    assert isinstance(done.exception, UserError)
    assert "no row of fake.table1 has a number of ours yet" in str(done.exception)
