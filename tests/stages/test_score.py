# SPDX-License-Identifier: Apache-2.0
"""What the score step says where there is nothing to score."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_ray.experiments.log import flatten_scores
from wsss_ray.experiments.study_run import keep_scores
from wsss_ray.experiments.sweep_outcomes import collect_mious
from wsss_ray.score.config import ScoreConfig
from wsss_ray.score.names import NOT_SCORED, explain_missing, read_miou
from wsss_ray.stages.score import summarize_totals

LABELS = ("background", "cat", "dog")


def totals(matrix: np.ndarray) -> dict[str, np.ndarray]:
    return {"mask": matrix, "parts": np.zeros((2, 256), np.int64), "curve": np.zeros(0, np.int64)}


@pytest.mark.parametrize(
    ("truth", "reason"),
    [((0, 0, 0), "every pixel of the ground truth is ignored"), ((9, 0, 0), "background alone")],
)
def test_a_score_over_nothing_is_no_percentage(truth: tuple[int, ...], reason: str) -> None:
    matrix = np.zeros((3, 4), np.int64)
    matrix[:, 0] = truth
    found = summarize_totals(totals(matrix), "masks", LABELS, ScoreConfig(), {"mask": "train"})
    assert list(found) == [NOT_SCORED]
    assert reason in found[NOT_SCORED]


def test_foreground_that_was_missed_is_a_score() -> None:
    matrix = np.zeros((3, 4), np.int64)
    matrix[:2, 0] = 5
    found = summarize_totals(totals(matrix), "masks", LABELS, ScoreConfig(), {"mask": "train"})
    assert found["mask"]["miou"] == pytest.approx(0.25)
    assert found["mask"]["protocol"] == "train"


def test_a_step_without_a_score_has_no_numbers_anywhere() -> None:
    scores = {"seeds": {NOT_SCORED: "the ground truth holds background alone"}}
    assert collect_mious(scores) == {}
    assert keep_scores(scores) == {"seeds": {}}
    assert list(flatten_scores("seeds", scores["seeds"])) == []
    assert read_miou(scores, "seeds.fixed") is None
    assert explain_missing(scores, "seeds.fixed") == "the ground truth holds background alone"
    assert explain_missing(scores, "masks") == "nothing scored as masks"
