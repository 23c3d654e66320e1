# SPDX-License-Identifier: Apache-2.0
"""Image-level average precision: how well a classifier ranks the images of each class."""

from __future__ import annotations

import numpy as np

from wsss_ray.config import UserError


def compute_average_precisions(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(N, C) scores or logits, (N, C) labels in {0, 1} -> (C,) average precision in [0, 1], NaN without positives.

    The sum over score levels of (gain in recall) times precision at that level, equal scores taken together; no
    interpolation (VOC 2010 and later interpolate and come out higher).
    """
    if scores.shape != truths.shape:
        raise UserError(f"scores of shape {scores.shape} for labels of shape {truths.shape}: they must be equal")
    if not np.isfinite(scores).all():
        raise UserError("class scores hold NaN or infinity: the training diverged; lower the learning rate")
    columns = zip(scores.T, np.asarray(truths).T > 0, strict=True)
    return np.array([_compute_average_precision(score, truth) for score, truth in columns])


def _compute_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    num_positives = int(truth.sum())
    if not num_positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_level = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(truth[order])[last_of_level]
    precision = hits / (last_of_level + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / num_positives)


def compute_mean_average_precision(scores: np.ndarray, truths: np.ndarray) -> float | None:
    """(N, C), (N, C) -> mean over the classes that have a positive image; None where no class has one."""
    values = compute_average_precisions(scores, truths)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
