"""What the score step says where there is nothing to score."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_ray.score.config import ScoreConfig
from wsss_ray.score.names import NOT_SCORED
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
