# SPDX-License-Identifier: Apache-2.0
"""Thresholds from the values of all class maps, and the confident seeds that take theirs from them."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE, ClassMaps
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.refine.histogram import NUM_BINS, count_values, find_otsu_threshold, find_quantile, split_by_otsu
from wsss_ray.refine.seeds import ConfidentSeedsConfig, QuantileSeedsConfig, ThresholdSeedsConfig


def maps_of(*planes: list[list[float]]) -> ClassMaps:
    values = np.array(planes, np.float32)
    return ClassMaps("a", np.arange(len(values)), values, (values.shape[1], values.shape[2]))


def counts_of(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, NUM_BINS, (0, 1))[0].astype(np.int64)


def two_peaks(low: float, high: float, share: float = 0.3) -> np.ndarray:
    """100,000 values around two levels, ``share`` of them around the higher one."""
    rng = np.random.default_rng(0)
    levels = np.where(rng.random(100_000) < share, high, low)
    return np.clip(levels + 0.04 * rng.standard_normal(100_000), 0, 0.9999)


def test_each_cell_counts_its_strongest_map_once() -> None:
    counts = count_values(maps_of([[0.0, 0.5], [0.25, 1.0]], [[0.125, 0.75], [0.0, 0.0]]))
    assert counts.shape == (NUM_BINS,)
    found = {place: counts[place] for place in np.flatnonzero(counts)}
    assert found == {125: 1, 750: 1, 250: 1, NUM_BINS - 1: 1}


def test_images_without_maps_count_nothing() -> None:
    empty = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, 3, 4), np.float32), (3, 4))
    assert not count_values(empty).any()
    assert find_otsu_threshold(count_values(empty)) == 0.5
    assert split_by_otsu(count_values(empty), 0.5, 0.5) == (0.5, 0.5)


def test_otsu_leaves_the_least_variance_within_both_sides() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 50, 40)
    centres = np.arange(40) + 0.5

    def within(edge: int) -> float:
        sides = (slice(0, edge), slice(edge, None))
        return sum(
            float((counts[side] * (centres[side] - np.average(centres[side], weights=counts[side])) ** 2).sum())
            for side in sides
        )

    best = min(range(1, 40), key=within)
    assert find_otsu_threshold(counts) == best / 40


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.3, 0.8), (0.05, 0.9)])
def test_otsu_follows_the_maps(low: float, high: float) -> None:
    assert find_otsu_threshold(counts_of(two_peaks(low, high))) == pytest.approx((low + high) / 2, abs=0.06)


def test_otsu_stands_in_the_middle_of_a_gap() -> None:
    counts = np.zeros(100, np.int64)
    counts[[20, 59]] = 7
    assert find_otsu_threshold(counts) == pytest.approx(0.4, abs=0.01)


def test_one_value_alone_has_a_threshold() -> None:
    counts = np.zeros(100, np.int64)
    counts[30] = 5
    assert 0 < find_otsu_threshold(counts) < 1
    high, low = split_by_otsu(counts, 0.5, 0.5)
    assert 0 <= low <= high <= 1


def test_quantiles() -> None:
    counts = np.full(10, 3)
    assert [find_quantile(counts, share) for share in (0, 0.2, 0.5, 1)] == [0, 0.2, 0.5, 1]


def test_thresholds_of_confident_seeds_keep_the_stated_shares() -> None:
    values = two_peaks(0.3, 0.8)
    threshold = find_otsu_threshold(counts_of(values))
    high, low = split_by_otsu(counts_of(values), 0.25, 0.6)
    assert low < threshold < high
    assert (values[values >= threshold] > high).mean() == pytest.approx(0.25, abs=0.02)
    assert (values[values < threshold] < low).mean() == pytest.approx(0.6, abs=0.02)
    assert split_by_otsu(counts_of(values), 1, 1) == (threshold, threshold)


def test_labels_follow_maps_that_constants_are_not_for() -> None:
    """Background at .45 and objects at .8: IRN's constants call all of it an object."""
    rng = np.random.default_rng(2)
    truth = np.zeros((40, 40), bool)
    truth[10:30, 10:30] = True
    values = np.clip(np.where(truth, 0.8, 0.45) + 0.08 * rng.standard_normal(truth.shape), 0, 1)
    maps = ClassMaps("a", np.array([3]), values[None].astype(np.float32), truth.shape)
    image = np.zeros((*truth.shape, 3), np.uint8)
    constant = ConfidentSeedsConfig(crf=None).refine(image, maps)
    assert (constant[~truth] == 4).mean() > 0.9
    settled = QuantileSeedsConfig(crf=None).settle(count_values(maps))
    assert settled.crf is None
    found = settled.refine(image, maps)
    known = found != IGNORE
    assert 0.3 < known.mean() < 0.7
    assert ((found == 4) == truth)[known].mean() > 0.99
    assert {*np.unique(found)} == {0, 4, IGNORE}


@pytest.mark.parametrize(
    "refiner",
    [
        ThresholdSeedsConfig(threshold="otsu"),
        CRFRefinerConfig(background="constant", threshold="otsu", unary="labels"),
        CRFRefinerConfig(background="constant", threshold="otsu", unary="scores"),
    ],
)
def test_a_background_constant_can_be_otsus(refiner: ThresholdSeedsConfig | CRFRefinerConfig) -> None:
    maps = maps_of([[0.6, 0.62], [0.95, 0.97]])
    image = np.zeros((2, 2, 3), np.uint8)
    counts = count_values(maps)
    assert refiner.follows_maps
    settled = refiner.settle(counts)
    assert settled == refiner.model_copy(update={"threshold": find_otsu_threshold(counts)})
    assert 0.62 < settled.threshold < 0.95
    assert not settled.follows_maps
    assert settled.settle(counts) is settled
    with pytest.raises(UserError, match="'otsu' is taken from all maps"):
        refiner.refine(image, maps)
    if isinstance(settled, ThresholdSeedsConfig):
        assert settled.refine(image, maps).astype(bool).tolist() == [[False, False], [True, True]]


def test_a_power_background_has_no_threshold_to_take() -> None:
    refiner = CRFRefinerConfig(background="power", threshold="otsu")
    assert not refiner.follows_maps


def test_only_settled_thresholds_refine() -> None:
    with pytest.raises(UserError, match="'quantile' takes thresholds from all maps"):
        QuantileSeedsConfig().refine(np.zeros((2, 2, 3), np.uint8), maps_of([[0.0, 0.5], [0.25, 1.0]]))
    constant = ConfidentSeedsConfig()
    assert not constant.follows_maps
    assert constant.settle(np.zeros(NUM_BINS, np.int64)) is constant
