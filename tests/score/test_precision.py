# SPDX-License-Identifier: Apache-2.0
"""Average precision by hand and against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.score.precision import (
    compute_average_precisions,
    compute_mean_average_precision,
)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_by_hand() -> None:
    # Ranked: right, wrong, right, wrong, right: (1 + 2/3 + 3/5) / 3
    result = compute_average_precisions(column(5, 4, 3, 2, 1), column(1, 0, 1, 0, 1))
    assert result.tolist() == pytest.approx([(1 + 2 / 3 + 3 / 5) / 3])
    assert compute_average_precisions(column(1, 2, 3), column(0, 1, 1)).tolist() == [1]


def test_equal_scores_are_one_level_whatever_their_order() -> None:
    for truth in (column(1, 0, 0, 1), column(0, 1, 1, 0)):
        assert compute_average_precisions(column(2, 2, 2, 2), truth).tolist() == [0.5]
    # Levels of 2 (one of two right) and 1 (one of one right): 1/2 * 1/2 + 1/2 * 2/3
    assert compute_average_precisions(column(2, 2, 1), column(1, 0, 1)).tolist() == pytest.approx([7 / 12])


def test_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    scores, truths = rng.integers(0, 12, (60, 5)).astype(float), rng.random((60, 5)) < 0.3
    for score, truth, value in zip(scores.T, truths.T, compute_average_precisions(scores, truths), strict=True):
        expected, recall = 0.0, 0.0
        for level in sorted(set(score.tolist()), reverse=True):
            taken = score >= level
            new = (taken & truth).sum() / truth.sum()
            expected += (new - recall) * (taken & truth).sum() / taken.sum()
            recall = new
        assert value == pytest.approx(expected)


def test_the_order_of_images_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    scores, truths = rng.integers(0, 5, (40, 3)).astype(np.float32), rng.random((40, 3)) < 0.4
    order = rng.permutation(40)
    assert compute_mean_average_precision(scores, truths) == compute_mean_average_precision(
        scores[order], truths[order]
    )


def test_classes_without_positives_are_left_out() -> None:
    scores, truths = np.array([[2.0, 1, 5], [1, 2, 4]]), np.array([[1, 0, 0], [0, 1, 0]])
    assert np.isnan(compute_average_precisions(scores, truths)).tolist() == [False, False, True]
    assert compute_mean_average_precision(scores, truths) == 1
    assert compute_mean_average_precision(scores, np.zeros((2, 3))) is None


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="must be equal"):
        compute_average_precisions(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UserError, match="NaN"):
        compute_average_precisions(column(np.nan, 1), column(0, 1))
