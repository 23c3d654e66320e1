# SPDX-License-Identifier: Apache-2.0
"""Scores against the evaluators of IRN, KTSE and SSSS, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wsss_ray.config import UserError
from wsss_ray.score.confusion import (
    Counts,
    compute_mean_iou,
    compute_scores,
    count_confusion,
    make_matrix,
)

Golden = Callable[[str], dict[str, np.ndarray]]


def masks(truth: list[int], prediction: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([truth], np.uint8), np.array([prediction], np.uint8)


def whole_set(data: dict[str, np.ndarray], num_labels: int) -> np.ndarray:
    total = make_matrix(num_labels)
    for key in (key for key in data if key.startswith("gt_")):
        total += count_confusion(data[key], data[key.replace("gt_", "pred_")], num_labels)
    return total


def test_released_evaluators(golden: Golden) -> None:
    data = golden("b15_utils.npz")
    num_labels = len(data["ssss_conf_mat"])
    matrix = whole_set(data, num_labels)
    np.testing.assert_array_equal(matrix[:, :-1], data["ssss_conf_mat"])
    # IRN's evaluator counts up to the largest label there is.
    largest = len(data["confusion_gt_rows"])
    np.testing.assert_array_equal(matrix[:largest, :largest], data["confusion_gt_rows"])
    assert not matrix[largest:].any()
    assert not matrix[:, largest:].any()
    irn, ktse = compute_scores(matrix), compute_scores(matrix, absent="zero")
    known = len(data["irn_semseg_iou"])
    np.testing.assert_allclose(irn.iou[:known], data["irn_semseg_iou"], atol=1e-12)
    assert np.isnan(irn.iou[known:]).all()
    assert irn.miou == pytest.approx(float(data["irn_semseg_miou"]), abs=1e-12)
    np.testing.assert_allclose(100 * np.nan_to_num(ktse.iou), data["ktse_iou_percent"], atol=1e-8)
    assert 100 * ktse.miou == pytest.approx(float(data["ktse_miou_percent"]), abs=1e-8)
    printed = [round(100 * ktse.miou_foreground, 2), round(100 * ktse.miou, 2)]
    assert printed == data["ssss_miou_fg_bg_percent_printed"].tolist()


def test_unknown_truth_is_not_counted() -> None:
    truth, prediction = masks([0, 0, 1, 255], [0, 1, 1, 1])
    result = compute_scores(count_confusion(truth, prediction, 2))
    assert result.iou.tolist() == [0.5, 0.5]
    assert (result.miou, result.pixel_accuracy, result.coverage) == (0.5, 2 / 3, 1)


def test_unknown_predictions_are_misses_and_are_reported() -> None:
    truth, prediction = masks([0, 0, 1, 1, 255], [0, 255, 1, 255, 255])
    matrix = count_confusion(truth, prediction, 2)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 1]]
    missed = compute_scores(matrix)
    assert missed.iou.tolist() == [0.5, 0.5]
    assert missed.pixel_accuracy == 0.5
    assert missed.precision.tolist() == [1, 1]
    assert missed.recall.tolist() == [0.5, 0.5]
    assert missed.coverage == 0.5


def test_three_ways_to_count_absent_classes() -> None:
    # label 0: IoU 2/3, label 1: in no truth but predicted once, label 2: nowhere
    truth, prediction = masks([0, 0, 0], [0, 0, 1])
    matrix = count_confusion(truth, prediction, 3)
    assert np.isnan(compute_scores(matrix).iou).tolist() == [False, False, True]
    assert compute_scores(matrix, absent="skip").miou == pytest.approx(1 / 3)
    assert compute_scores(matrix, absent="zero").miou == pytest.approx(2 / 9)
    assert compute_scores(matrix, absent="no_truth").miou == pytest.approx(2 / 3)
    assert compute_scores(matrix).miou_foreground == 0


def test_maps_that_grow_gain_recall_of_the_foreground_where_the_mean_over_labels_falls() -> None:
    truth, narrow = masks([0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1, 0, 2])
    _, wide = masks([0], [0, 1, 1, 2, 1, 1, 1, 2])
    before, after = (compute_scores(count_confusion(truth, found, 3)) for found in (narrow, wide))
    assert before.recall_foreground == pytest.approx((2 / 3 + 1) / 2)
    assert after.recall_foreground == 1
    assert before.mean_recall == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert after.mean_recall == pytest.approx(2.25 / 3)
    assert before.precision_foreground == 1
    assert after.precision_foreground == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert after.mean_precision == pytest.approx((1 + 3 / 5 + 1 / 2) / 3)


def test_a_perfect_prediction_scores_one() -> None:
    truth = np.random.default_rng(0).integers(0, 4, (9, 11)).astype(np.uint8)
    result = compute_scores(count_confusion(truth, truth, 4))
    assert set(result.numbers().values()) == {1.0}


def test_object_iou_looks_past_the_class() -> None:
    truth, prediction = masks([1, 2, 0, 0], [2, 2, 1, 0])
    assert compute_scores(count_confusion(truth, prediction, 3)).object_iou == pytest.approx(2 / 3)


def test_a_set_is_not_the_mean_of_its_images() -> None:
    first = count_confusion(*masks([0] * 100, [0] * 100), 2)
    second = count_confusion(*masks([0, 1], [0, 0]), 2)
    together = compute_scores(first + second, absent="zero").miou
    apart = (compute_scores(first, absent="zero").miou + compute_scores(second, absent="zero").miou) / 2
    assert together == pytest.approx(101 / 102 / 2)
    assert abs(together - apart) > 0.1


def test_nothing_counted_is_no_number() -> None:
    result = compute_scores(count_confusion(*masks([255, 255], [0, 1]), 2))
    assert np.isnan([result.miou, result.pixel_accuracy, result.coverage]).all()


def test_stacked_counts() -> None:
    one, two = count_confusion(*masks([0, 1, 1], [0, 1, 0]), 2), count_confusion(*masks([0, 0, 1], [0, 1, 1]), 2)
    counts = Counts.of(np.stack([one, two, one + two]))
    mious = compute_mean_iou(counts)
    assert mious.tolist() == pytest.approx([compute_scores(m).miou for m in (one, two, one + two)])


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 3], [0, 0], "truth holds index 3, but there are 3 labels"),
        ([0, 0], [0, 3], "prediction holds index 3"),
        ([0, 0], [0, 254], "prediction holds index 254"),
        ([0, 0], [0], "1x1.*1x2"),
    ],
)
def test_mistakes_are_named(truth: list[int], prediction: list[int], message: str) -> None:
    with pytest.raises(UserError, match=f"cat: .*{message}"):
        count_confusion(*masks(truth, prediction), 3, "cat")


def test_255_labels_count_in_full() -> None:
    truth = np.arange(255, dtype=np.uint8)[None]
    assert compute_scores(count_confusion(truth, truth, 255)).iou.tolist() == [1] * 255
