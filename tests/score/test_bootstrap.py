# SPDX-License-Identifier: Apache-2.0
"""The paired bootstrap: what it must find, what it must not, and that a seed fixes it."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.score import bootstrap
from wsss_ray.score.bootstrap import compare_counts, stack_counts
from wsss_ray.score.confusion import compute_scores, count_confusion


def method(num_images: int, mistakes: float, seed: int) -> tuple[np.ndarray, float]:
    """Counts and mIoU of predictions with a share of wrong pixels, on truths that do not depend on ``seed``."""
    matrices = []
    for k in range(num_images):
        truth = np.random.default_rng(k).integers(0, 3, (8, 9)).astype(np.uint8)
        rng = np.random.default_rng([seed, k])
        prediction = np.where(rng.random(truth.shape) < mistakes, (truth + 1) % 3, truth).astype(np.uint8)
        matrices.append(count_confusion(truth, prediction, 3))
    return np.stack([stack_counts(matrix) for matrix in matrices]), compute_scores(np.sum(matrices, axis=0)).miou


def test_a_clear_difference_is_found() -> None:
    (worse, low), (better, high) = method(40, 0.4, 1), method(40, 0.2, 2)
    result = compare_counts(worse, better, num_resamples=400)
    assert (result.first, result.second) == pytest.approx((low, high))
    assert result.difference == pytest.approx(high - low)
    assert 0 < result.low < result.difference < result.high
    assert result.p_value == pytest.approx(2 / 401)
    turned = compare_counts(better, worse, num_resamples=400)
    assert turned.difference == -result.difference
    assert (turned.low, turned.high) == pytest.approx((-result.high, -result.low))


def test_no_difference_is_not_found() -> None:
    same, _ = method(40, 0.3, 1)
    assert compare_counts(same, same, num_resamples=50).p_value == 1
    other, _ = method(40, 0.3, 3)
    result = compare_counts(same, other, num_resamples=400)
    assert result.low < 0 < result.high
    assert result.p_value > 0.05


def test_one_image_decides_nothing() -> None:
    """All of the difference comes from one image of forty, which a third of the resamples miss."""
    first, _ = method(40, 0.3, 1)
    second = first.copy()
    second[0, 0] = second[0, 1]
    second[0, 2] = second[0, 1]
    assert compare_counts(first, second, num_resamples=500).p_value > 0.3


def test_the_interval_is_that_of_plain_resampling() -> None:
    (first, _), (second, _) = method(12, 0.4, 1), method(12, 0.3, 2)
    result = compare_counts(first, second, num_resamples=4000, confidence=0.8)
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(2000):
        drawn = rng.integers(0, 12, 12)
        pair = []
        for counts in (first, second):
            intersection, truth, predicted = counts[drawn].sum(axis=0)
            pair.append((intersection / (truth + predicted - intersection)).mean())
        gaps.append(pair[1] - pair[0])
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(gaps, [10, 90])), abs=0.006)


def test_a_seed_fixes_it_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, _), (second, _) = method(10, 0.4, 1), method(10, 0.3, 2)
    result = compare_counts(first, second, num_resamples=100, seed=3)
    assert compare_counts(first, second, num_resamples=100, seed=3) == result
    assert compare_counts(first, second, num_resamples=100, seed=4) != result
    monkeypatch.setattr(bootstrap, "ROUNDS_AT_ONCE", 7)
    assert compare_counts(first, second, num_resamples=100, seed=3) == result


def test_counts_must_pair_up() -> None:
    counts, _ = method(4, 0.3, 1)
    with pytest.raises(UserError, match="do not pair up"):
        compare_counts(counts, counts[:3])
    other = counts.copy()
    other[0, 1, 0] += 1
    with pytest.raises(UserError, match="different truths"):
        compare_counts(counts, other)
    with pytest.raises(UserError, match="needs images"):
        compare_counts(counts[:0], counts[:0])
