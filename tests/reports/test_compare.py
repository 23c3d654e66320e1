# SPDX-License-Identifier: Apache-2.0
"""Comparing runs: recipes, scores, and the paired bootstrap on hand-made results."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.fake_run import RECIPE, fake_run, prepare
from wsss_ray.artifacts.record import open_run
from wsss_ray.artifacts.tables import read_counts
from wsss_ray.config import UserError
from wsss_ray.reports.compare import Comparison, compare_runs, find_differences, flatten
from wsss_ray.reports.compare_tables import build_recipe_table


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three runs on the same images: perfect, with one wrong image, and half wrong."""
    data = prepare(tmp_path / "data")
    fake_run(tmp_path, "good-1", data)
    fake_run(tmp_path, "near-1", data, {"000"}, train={"epochs": 3, "optimizer": {"lr": 0.1}}, tags={"note": "x"})
    fake_run(tmp_path, "bad-1", data, {f"{place:03d}" for place in range(6)}, refine=None)
    return tmp_path


def test_recipes_differ_only_where_numbers_can(out: Path) -> None:
    runs = [open_run(name, str(out)) for name in ("good-1", "near-1", "bad-1")]
    differing = find_differences([run.recipe for run in runs])
    assert differing["train.epochs"] == (2, 3, 2)
    assert differing["refine.threshold"] == (0.2, 0.2, None)
    assert not any(key.startswith(("tags", "resources", "name")) for key in differing)
    assert "train.optimizer.lr" not in differing


def test_flatten_keeps_lists_and_empty_mappings() -> None:
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "a.c": {}, "d": None}


def test_bootstrap_tells_a_clear_gap_from_chance(out: Path) -> None:
    result = compare_runs([open_run(name, str(out)) for name in ("good-1", "near-1", "bad-1")], num_resamples=400)
    near, bad = (test for test in result.tests if test.step == "masks")
    assert near.result is not None
    assert bad.result is not None
    assert near.result.first == 1.0
    assert near.result.num_images == 12
    assert bad.verdict == "lower, statistically significant"
    assert bad.result.p_value < 0.02
    # One of twelve images is left out of a resample with probability (11/12)^12 = 0.35: the interval reaches 0.
    assert near.verdict == "not significant"
    assert near.result.difference < 0
    assert near.result.high == 0


def test_counts_add_up_to_the_reported_score(out: Path) -> None:
    run = open_run("bad-1", str(out))
    ids, counts = run.counts("masks")["mask"]
    assert ids == sorted(ids)
    assert counts.shape == (12, 3, 4)
    union = counts[:, 1].sum(axis=0) + counts[:, 2].sum(axis=0) - counts[:, 0].sum(axis=0)
    iou = counts[:, 0].sum(axis=0) / union
    assert iou.tolist() == pytest.approx(list(run.scored("masks")["mask"]["iou"].values()))
    assert iou[1:] == pytest.approx(0.5)


def test_per_class_values_follow_the_labels(out: Path) -> None:
    result = compare_runs([open_run("good-1", str(out)), open_run("bad-1", str(out))], num_resamples=10)
    assert result.labels[0] == "background"
    rows = dict(zip(result.labels, result.iou["masks/mask"], strict=True))
    assert rows["cat"] == pytest.approx((1.0, 0.5))
    line = next(line for line in result.scores if line.step == "masks")
    assert line.one_protocol
    assert line.values[0] == 1.0


def test_runs_on_other_images_are_not_tested(out: Path) -> None:
    data = prepare(out / "data2", num_images=9)
    fake_run(out, "other-1", data)
    result = compare_runs([open_run("good-1", str(out)), open_run("other-1", str(out))], num_resamples=10)
    assert [test.verdict for test in result.tests] == ["scored on different images"]


def test_runs_are_found_by_folder_or_unique_name(out: Path) -> None:
    assert open_run("go", str(out)).name == "good-1"
    assert open_run(str(out / "runs" / "bad-1")).name == "bad-1"
    with pytest.raises(UserError, match="bad-1, good-1, near-1"):
        open_run("nothing", str(out))
    with pytest.raises(UserError, match="at least two"):
        compare_runs([open_run("good-1", str(out))])


def test_other_classes_are_refused(out: Path) -> None:
    first, second = open_run("good-1", str(out)), open_run("bad-1", str(out))
    second.record["classes"] = ["cat", "dog"]
    with pytest.raises(UserError, match="different classes"):
        compare_runs([first, second])


def test_lost_score_artifacts_leave_the_table(out: Path) -> None:
    for part in (out / "score" / "bad-1").iterdir():
        part.unlink()
    result = compare_runs([open_run("good-1", str(out)), open_run("bad-1", str(out))], num_resamples=10)
    assert result.tests == []
    assert result.scores
    assert read_counts(str(out / "score" / "bad-1"), 4) == {}


def test_command_prints_every_part_without_ray(out: Path) -> None:
    code = (
        "import sys; from wsss_ray.cli.compare import compare;"
        f"compare(['good-1', 'bad-1'], out={str(out)!r}, resamples=50, seed=0, all_classes=False);"
        "assert 'ray' not in sys.modules and 'mlflow' not in sys.modules"
    )
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=wide)
    assert done.returncode == 0, done.stderr
    for text in ("refine.threshold", "mIoU in %", "-50.0", "lower, statistically significant"):
        assert text in done.stdout.replace("\n", " "), text
    assert RECIPE["name"] == "fake"


def test_brackets_in_values_and_names_are_printed() -> None:
    differing = {"data.toy.words": ("[/there]", [True, False])}
    result = Comparison(names=("[a]", "b"), differing=differing, scores=[], labels=())
    page = io.StringIO()
    Console(file=page, width=200).print(build_recipe_table(result))
    text = page.getvalue()
    for words in ("[/there]", "[True, False]", "(1) [a]"):
        assert words in text
