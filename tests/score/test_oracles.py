# SPDX-License-Identifier: Apache-2.0
"""Rank agreement, average precision and the bootstrap against scipy and scikit-learn, on drawn inputs with ties."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, jaccard_score

from wsss_ray.score.bootstrap import compare_counts, stack_counts
from wsss_ray.score.confusion import Counts, compute_mean_iou, count_confusion
from wsss_ray.score.precision import compute_average_precisions, compute_mean_average_precision
from wsss_ray.score.rank import compute_tau_b, measure_agreement

LEVELS = st.integers(-3, 3)
"""Few values, so that ties are common."""
NUM_RESAMPLES = 20_000
PAIRS = st.lists(st.tuples(LEVELS, LEVELS), min_size=2, max_size=12)


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_tau_b_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, np.float64).T
    ours, theirs = float(compute_tau_b(first, second)), float(stats.kendalltau(first, second, variant="b").statistic)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=3, max_size=6))
def test_chance_of_a_ranking_is_scipys_exact_permutation_test(pairs: list[tuple[int, int]]) -> None:
    published, ours = np.array(pairs, np.float64).T
    found = measure_agreement(published.tolist(), [[value] for value in ours.tolist()], num_resamples=2)
    if np.isnan(found.tau):
        assert np.isnan(found.p_value)
        return
    exact = stats.permutation_test(
        (ours,),
        lambda drawn: float(compute_tau_b(published, drawn)),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert found.p_value == pytest.approx(float(exact.pvalue))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LEVELS, st.booleans(), LEVELS, st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_scikit_learns(rows: list[tuple[int, bool, int, bool]]) -> None:
    table = np.array(rows, np.float64)
    scores, truths = table[:, ::2], table[:, 1::2]
    ours = compute_average_precisions(scores, truths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class without an image, which it scores 0
        theirs = [average_precision_score(truths[:, k], scores[:, k]) for k in range(2)]
    known = truths.any(axis=0)
    assert np.isnan(ours[~known]).all()
    assert ours[known] == pytest.approx(np.array(theirs)[known])
    mean = compute_mean_average_precision(scores, truths)
    assert mean is None if not known.any() else mean == pytest.approx(np.array(theirs)[known].mean())


def predict(truth: np.ndarray, wrong: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(generator.random(truth.shape) < wrong, generator.integers(0, 4, truth.shape), truth)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_paired_bootstrap_has_scipys_interval_of_scikit_learns_scores(seed: int) -> None:
    """mIoU of all images is scikit-learn's macro Jaccard; scipy draws the same images for both methods."""
    truth = np.random.default_rng(seed).integers(0, 4, (30, 8, 8))
    made = [predict(truth, 0.5, seed + 10), predict(truth, 0.48, seed + 20)]
    counts = [
        np.stack([stack_counts(count_confusion(t, m, 4)) for t, m in zip(truth, masks, strict=True)]) for masks in made
    ]
    found = compare_counts(counts[0], counts[1], num_resamples=NUM_RESAMPLES, seed=seed)
    scores = [jaccard_score(truth.ravel(), masks.ravel(), average="macro") for masks in made]
    assert (found.first, found.second) == pytest.approx(scores)

    def measure_difference(places: np.ndarray, axis: int = -1) -> np.ndarray:
        """(..., N) drawn images -> (...) difference of the mIoU of their summed counts."""
        sums = [np.moveaxis(one[places].sum(axis=axis - 2), -2, 0) for one in counts]
        first, second = (compute_mean_iou(Counts(*one)) for one in sums)
        return second - first

    drawn = stats.bootstrap(
        (np.arange(30),),
        measure_difference,
        n_resamples=NUM_RESAMPLES,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    # An end of an interval of so many draws strays by 0.02 of the spread, a share by at most 0.004.
    tolerance = 0.1 * float(drawn.standard_error)
    assert found.low == pytest.approx(drawn.confidence_interval.low, abs=tolerance)
    assert found.high == pytest.approx(drawn.confidence_interval.high, abs=tolerance)
    share = float((drawn.bootstrap_distribution <= 0).mean())
    assert min(share, 1 - share) > 0.02, "neither method is surely better, so that the p-value is tested"
    assert found.p_value == pytest.approx(2 * min(share, 1 - share), abs=0.03)
