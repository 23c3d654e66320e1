# SPDX-License-Identifier: Apache-2.0
"""The confusion matrix of a whole set, counted in integers, and every score read off it.

A matrix is (K, K + 1) int64: rows truth, columns prediction, the last column the pixels predicted unknown (255).
Matrices of parts of a set add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE

Absent = Literal["skip", "zero", "no_truth"]
"""Classes left out of a mean: those in neither truth nor prediction (IRN), none (they count as 0; KTSE, SSSS), or those
without a pixel of truth (deeplab-pytorch)."""


def make_matrix(num_labels: int) -> np.ndarray:
    """The (K, K + 1) matrix of no pixels, ``num_labels`` = K with background."""
    return np.zeros((num_labels, num_labels + 1), np.int64)


def count_confusion(truth: np.ndarray, prediction: np.ndarray, num_labels: int, name: str = "image") -> np.ndarray:
    """(K, K + 1) int64 counts of one image's (H, W) masks; truth 255 is not counted.

    Raises UserError where the sizes differ or a value is neither a label nor 255.
    """
    if truth.shape != prediction.shape:
        raise UserError(
            f"{name}: the prediction is {_format_size(prediction)}, the truth {_format_size(truth)}: "
            "predict at the image's size"
        )
    counted = truth != IGNORE
    rows, columns = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    _check_values(rows, num_labels, f"{name}: the truth")
    _check_values(columns[columns != IGNORE], num_labels, f"{name}: the prediction")
    columns[columns == IGNORE] = num_labels
    counts = np.bincount(rows * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return counts.astype(np.int64).reshape(num_labels, num_labels + 1)


def _check_values(values: np.ndarray, num_labels: int, what: str) -> None:
    wrong = values[(values < 0) | (values >= num_labels)]
    if wrong.size:
        raise UserError(
            f"{what} holds index {wrong[0]}, but there are {num_labels} labels: "
            f"use 0..{num_labels - 1} and {IGNORE} for unknown"
        )


def _format_size(mask: np.ndarray) -> str:
    return "x".join(str(side) for side in mask.shape)


@dataclass(frozen=True)
class Counts:
    """What IoU needs of a matrix; (..., K) int64 each, so that images or thresholds can be stacked in front."""

    intersection: np.ndarray
    truth: np.ndarray
    """Pixels of truth, those predicted unknown included."""
    predicted: np.ndarray

    @staticmethod
    def of(matrix: np.ndarray) -> Counts:
        """The counts of a (..., K, K + 1) matrix."""
        square = matrix[..., :-1]
        return Counts(np.diagonal(square, axis1=-2, axis2=-1), matrix.sum(axis=-1), square.sum(axis=-2))


def compute_iou(counts: Counts) -> np.ndarray:
    """(..., K) IoU in [0, 1]; NaN for a label in neither truth nor prediction."""
    return _divide(counts.intersection, counts.truth + counts.predicted - counts.intersection)


def compute_mean_iou(counts: Counts, absent: Absent = "skip", foreground: bool = False) -> np.ndarray:
    """(...) mean of the IoU over labels, NaN where none is left; ``foreground`` leaves the background out."""
    first = 1 if foreground else 0
    iou, truth = compute_iou(counts)[..., first:], counts.truth[..., first:]
    if absent == "zero":
        return np.asarray(np.nan_to_num(iou).mean(axis=-1))
    counted = truth > 0 if absent == "no_truth" else ~np.isnan(iou)
    return _divide(np.where(counted, np.nan_to_num(iou), 0).sum(axis=-1), counted.sum(axis=-1))


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole in float64, NaN where whole is 0."""
    nothing = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    shares: np.ndarray = np.divide(part, whole, out=nothing, where=np.asarray(whole) > 0)
    return shares


@dataclass(frozen=True)
class Scores:
    """Everything reported of one matrix; all in [0, 1], NaN where there is nothing to divide by."""

    iou: np.ndarray
    """(K,), background first."""
    precision: np.ndarray
    recall: np.ndarray
    """Both (K,); NaN for a label never predicted, or without truth: left out of their means where absent labels are."""
    miou: float
    """Mean over all K labels."""
    miou_foreground: float
    """Mean without background (the first number SSSS prints)."""
    mean_precision: float
    mean_recall: float
    """Means over all K labels: where foreground grows into the background, the background's recall falls with it."""
    precision_foreground: float
    recall_foreground: float
    """Means without background: what CAMs' over- and under-activation is judged by."""
    pixel_accuracy: float
    coverage: float
    """Share of counted pixels whose prediction is not unknown."""
    object_iou: float
    """IoU of "any class" against background, whatever the class."""

    def numbers(self) -> dict[str, float]:
        """The scalars by name, for a tracker."""
        return {key: value for key, value in vars(self).items() if isinstance(value, float)}


def compute_scores(matrix: np.ndarray, absent: Absent = "skip") -> Scores:
    """Scores of a (K, K + 1) matrix over a whole set; pixels predicted unknown are misses, and lower the coverage.

    Other evaluators do not look at them (EPS, L2G) or call them background (RIB).
    """
    total = matrix.sum()
    coverage = float(_divide(total - matrix[:, -1].sum(), total))
    counts = Counts.of(matrix)
    precision, recall = _divide(counts.intersection, counts.predicted), _divide(counts.intersection, counts.truth)
    right, objects, found = matrix[1:, 1:-1].sum(), matrix[1:].sum(), matrix[:, 1:-1].sum()
    return Scores(
        iou=compute_iou(counts),
        precision=precision,
        recall=recall,
        miou=float(compute_mean_iou(counts, absent)),
        miou_foreground=float(compute_mean_iou(counts, absent, foreground=True)),
        mean_precision=_average(precision, absent),
        mean_recall=_average(recall, absent),
        precision_foreground=_average(precision[1:], absent),
        recall_foreground=_average(recall[1:], absent),
        pixel_accuracy=float(_divide(counts.intersection.sum(), matrix.sum())),
        coverage=coverage,
        object_iou=float(_divide(right, objects + found - right)),
    )


def _average(values: np.ndarray, absent: Absent) -> float:
    known = np.nan_to_num(values) if absent == "zero" else values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
