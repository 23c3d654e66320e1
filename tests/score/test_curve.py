# SPDX-License-Identifier: Apache-2.0
"""The threshold curve against IRN's and KTSE's evaluators, and against seeds thresholded one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE, ClassMaps
from wsss_ray.refine.seeds import ThresholdSeedsConfig
from wsss_ray.score.confusion import compute_scores, count_confusion, make_matrix
from wsss_ray.score.curve import ThresholdCurve, find_bins

Golden = Callable[[str], dict[str, np.ndarray]]
Image = tuple[np.ndarray, np.ndarray, np.ndarray]
NUM_LABELS = 7


def random_set(num_images: int = 6) -> list[Image]:
    """Images with 0 to 3 classes; values on a grid of hundredths, so that thresholds are often met exactly."""
    rng = np.random.default_rng(0)
    images = []
    for k in range(num_images):
        size = (9 + k, 13)
        truth = rng.choice([*range(NUM_LABELS), 255], size=size).astype(np.uint8)
        classes = np.sort(rng.permutation(NUM_LABELS - 1)[: k % 4]).astype(np.int32)
        maps = (rng.integers(0, 101, (len(classes), *size)) / 100).astype(np.float32)
        images.append((truth, classes, maps))
    return images


def one_by_one(images: list[Image], threshold: float) -> np.ndarray:
    total = make_matrix(NUM_LABELS)
    for truth, classes, maps in images:
        height, width = truth.shape
        held = ClassMaps("a", classes, maps, (height, width))
        mask = ThresholdSeedsConfig(threshold=threshold).refine(np.zeros((height, width, 3), np.uint8), held)
        total += count_confusion(truth, mask, NUM_LABELS)
    return total


def test_one_pass_equals_every_threshold_by_itself() -> None:
    images = random_set()
    thresholds = np.arange(100) / 100
    curve = ThresholdCurve(thresholds, NUM_LABELS)
    for image in images:
        curve.add(*image)
    expected = [one_by_one(images, threshold) for threshold in thresholds]
    np.testing.assert_array_equal(curve.matrices(), expected)
    for absent in ("skip", "zero", "no_truth"):
        mious = [compute_scores(matrix, absent=absent).miou for matrix in expected]
        np.testing.assert_allclose(curve.mious(absent), mious, atol=1e-12)
    place = int(np.argmax([compute_scores(matrix).miou for matrix in expected]))
    assert curve.best() == (thresholds[place], pytest.approx(compute_scores(expected[place]).miou))


def test_irn_evaluator(golden: Golden) -> None:
    data = golden("b15_utils.npz")
    iou = data["irn_cam_iou21_miou"]
    curve = ThresholdCurve(data["irn_cam_thresholds"], iou.shape[1] - 1)
    for key in (key for key in data if key.startswith("gt_")):
        k = key.removeprefix("gt_")
        curve.add(data[key], data[f"cam_keys_{k}"], data[f"cam_{k}"])
    np.testing.assert_allclose(curve.mious(), iou[:, -1], atol=1e-12)
    np.testing.assert_allclose([compute_scores(m).iou for m in curve.matrices()], iou[:, :-1], atol=1e-12)


def test_ktse_evaluator(golden: Golden) -> None:
    data = golden("b04_ktse_infer_eval.npz")
    iou = data["eval_iou21_and_miou_percent"]
    curve = ThresholdCurve(data["eval_thresholds"], iou.shape[1] - 1)
    for key in (key for key in data if key.startswith("eval_gt_")):
        k = key.removeprefix("eval_gt_")
        curve.add(data[key], data[f"eval_keys_{k}"], data[f"eval_cam_{k}"])
    np.testing.assert_allclose(100 * curve.mious("zero"), iou[:, -1], atol=1e-6)
    each = [np.nan_to_num(compute_scores(matrix).iou) for matrix in curve.matrices()]
    np.testing.assert_allclose(100 * np.stack(each), iou[:, :-1], atol=1e-6)


def test_parts_add_up() -> None:
    images, thresholds = random_set(), [0.1, 0.2, 0.35]
    whole, first, second = (ThresholdCurve(thresholds, NUM_LABELS) for _ in range(3))
    for k, image in enumerate(images):
        whole.add(*image)
        (first if k % 2 else second).add(*image)
    np.testing.assert_array_equal(first.counts + second.counts, whole.counts)
    assert first.counts.sum() < whole.counts.sum()


def test_a_tie_is_background_in_the_precision_of_the_maps() -> None:
    for dtype in (np.float32, np.float64):
        curve = ThresholdCurve([0.1, 0.2], 2)
        maps = np.array([[[0.1, 0.2, 0.15, 0.3]]], dtype)
        curve.add(np.ones((1, 4), np.uint8), np.array([0]), maps)
        assert curve.matrices()[:, 1, 1].tolist() == [3, 1]


def test_an_image_without_classes_is_background() -> None:
    curve = ThresholdCurve([0.0, 0.5], 3)
    curve.add(np.array([[0, 2, 255]], np.uint8), np.zeros(0, np.int32), np.zeros((0, 1, 3), np.float32))
    assert curve.matrices()[:, :, 0].tolist() == [[1, 0, 1], [1, 0, 1]]
    assert curve.matrices().sum() == 4


def test_the_lowest_of_equal_thresholds_is_best() -> None:
    curve = ThresholdCurve([0.1, 0.2, 0.3, 0.9], 2)
    curve.add(np.array([[0, 1]], np.uint8), np.array([0]), np.array([[[0.15, 0.8]]], np.float32))
    assert curve.best() == (0.2, 1.0)
    assert np.isnan(ThresholdCurve([0.1], 2).best()).all()


def test_mistakes_are_named() -> None:
    truth, maps = np.zeros((2, 3), np.uint8), np.zeros((1, 2, 3), np.float32)
    with pytest.raises(UserError, match="each larger"):
        ThresholdCurve([0.2, 0.2], 3)
    curve = ThresholdCurve([0.2], 3)
    with pytest.raises(UserError, match="up-sample"):
        curve.add(truth, np.array([0]), maps[:, :1])
    with pytest.raises(UserError, match="class 2, but there are 2 classes"):
        curve.add(truth, np.array([2]), maps)
    with pytest.raises(UserError, match="index 3"):
        curve.add(truth + 3, np.array([0]), maps)


@pytest.mark.parametrize(
    "thresholds",
    [np.arange(100) / 100, np.array([0.2]), np.array([0.0, 0.1, 0.1 + 1e-5, 0.9]), np.array([-0.5, 0.5, 1.5])],
)
def test_bins_are_those_of_a_binary_search(thresholds: np.ndarray) -> None:
    """Also on a threshold, just beside one, and outside [0, 1]; the third list has two thresholds in one cell."""
    exact = thresholds.astype(np.float32)
    rng = np.random.default_rng(0)
    near = [np.nextafter(exact, side, dtype=np.float32) for side in (-9, 9)]
    values = np.concatenate([exact, *near, rng.random(5000, dtype=np.float32), np.float32([0, 1, -0.1, 1.1])])
    found = find_bins(values.reshape(-1, 1), exact)
    assert found.shape == (len(values), 1)
    assert np.array_equal(found[:, 0], np.searchsorted(exact, values, side="left"))


def test_otsu_parts_the_values_with_the_largest_variance_between() -> None:
    rng = np.random.default_rng(3)
    thresholds = np.arange(100) / 100
    for low, high, share in ((0.1, 0.7, 0.5), (0.2, 0.9, 0.1), (0.45, 0.55, 0.5), (0.3, 0.3, 0.5)):
        values = np.where(
            rng.random((64, 64)) < share, rng.normal(high, 0.05, (64, 64)), rng.normal(low, 0.05, (64, 64))
        )
        values = values.clip(0, 1).astype(np.float32)
        curve = ThresholdCurve(thresholds, 3)
        curve.add(rng.integers(0, 3, (64, 64)).astype(np.uint8), np.array([1]), values[None])
        found = curve.find_otsu(thresholds)
        between = [
            0.0 if not 0 < (above := values > t).mean() < 1 else above.mean() * (1 - above.mean())
            * (values[above].mean() - values[~above].mean()) ** 2
            for t in thresholds
        ]  # fmt: skip
        assert between[round(found * 100)] >= 0.995 * max(between)
        if high > low + 0.2:
            assert low < found < high


def test_otsu_is_one_of_its_candidates_and_reads_no_truth() -> None:
    rng = np.random.default_rng(4)
    values = rng.random((1, 32, 32)).astype(np.float32) ** 2
    found = []
    for labels in (0, 1, 2, IGNORE):
        curve = ThresholdCurve([0.0, 0.2, 0.3333, 0.4, 0.6, 0.8], 3)
        curve.add(np.full((32, 32), labels, np.uint8), np.array([0]), values)
        found.append(curve.find_otsu([0.0, 0.2, 0.4, 0.6, 0.8]))
    assert len(set(found)) == 1
    assert found[0] in (0.2, 0.4)
    flat = ThresholdCurve([0.0, 0.5], 3)
    flat.add(np.zeros((4, 4), np.uint8), np.array([0]), np.full((1, 4, 4), 0.7, np.float32))
    assert flat.find_otsu([0.0, 0.5]) == 0.0
