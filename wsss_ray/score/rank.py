# SPDX-License-Identifier: Apache-2.0
"""Do two lists of numbers order the same things alike? Kendall's tau-b, and how often chance does as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from wsss_ray.config import UserError

EXACT_UP_TO = 8
"""Up to so many things all orders are counted; beyond, random ones are drawn."""


@dataclass(frozen=True)
class Agreement:
    """How far ours orders the rows as published."""

    tau: float
    """Kendall's tau-b in [-1, 1] of the means; NaN where one side is all ties."""
    low: float
    """95 % interval over seeds drawn anew; both ends equal tau where no row has a second seed."""
    high: float
    p_value: float
    """Share of all orders (the given one counted) that agree at least as well: one-sided, 1 / n! at best."""
    num_rows: int
    num_pairs: int
    """Pairs of rows whose published numbers differ."""
    num_agreeing: int
    """Of these, the pairs that ours puts in the same order."""
    num_seeds: int
    """Fewest seeds of a row."""


def compute_tau_b(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(..., N) twice -> (...) Kendall's tau-b (Kendall 1945: ties lower both norms), NaN where one side is all ties."""
    one, two = _compute_signs(np.asarray(first, np.float64)), _compute_signs(np.asarray(second, np.float64))
    norm = np.sqrt((one != 0).sum(axis=-1) * (two != 0).sum(axis=-1))
    together = (one * two).sum(axis=-1)
    taus: np.ndarray = np.divide(together, norm, out=np.full(np.shape(together), np.nan), where=norm > 0)
    return taus


def measure_agreement(
    published: Sequence[float], ours: Sequence[Sequence[float]], num_resamples: int = 2000, seed: int = 0
) -> Agreement:
    """N published numbers and for each the scores of our seeds -> how far the orders agree.

    Raises UserError for fewer than two rows or a row without a score.
    """
    if len(published) < 2 or len(published) != len(ours) or not all(len(row) for row in ours):
        raise UserError("an order needs at least two rows that have both a published number and a score")
    paper = np.asarray(published, np.float64)
    means = np.array([np.mean(row) for row in ours])
    generator = np.random.default_rng(seed)
    drawn = np.stack([_draw_means(np.asarray(row, np.float64), num_resamples, generator) for row in ours], axis=-1)
    taus = compute_tau_b(np.broadcast_to(paper, drawn.shape), drawn)
    tau = float(compute_tau_b(paper, means))
    known = taus[~np.isnan(taus)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (tau, tau)
    signs = _compute_signs(paper)
    return Agreement(
        tau=tau,
        low=float(low),
        high=float(high),
        p_value=_compute_p_value(paper, means, tau, num_resamples, generator),
        num_rows=len(paper),
        num_pairs=int((signs != 0).sum()),
        num_agreeing=int((signs * _compute_signs(means) > 0).sum()),
        num_seeds=min(len(row) for row in ours),
    )


def _compute_signs(values: np.ndarray) -> np.ndarray:
    """(..., N) -> (..., N (N - 1) / 2) sign of the difference of every pair."""
    left, right = np.triu_indices(values.shape[-1], k=1)
    signs: np.ndarray = np.sign(values[..., left] - values[..., right])
    return signs


def _draw_means(scores: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(S,) -> (R,) means of S scores drawn with replacement."""
    if len(scores) == 1:
        return np.full(num_resamples, scores[0])
    return np.asarray(generator.choice(scores, (num_resamples, len(scores))).mean(axis=1))


def _compute_p_value(
    paper: np.ndarray, means: np.ndarray, tau: float, num_resamples: int, generator: np.random.Generator
) -> float:
    """The one-sided permutation p-value of ``tau``."""
    if np.isnan(tau):
        return float("nan")
    if len(means) <= EXACT_UP_TO:
        orders = np.array(list(permutations(means)))
        return float((compute_tau_b(np.broadcast_to(paper, orders.shape), orders) >= tau - 1e-12).mean())
    orders = generator.permuted(np.broadcast_to(means, (num_resamples, len(means))), axis=1)
    better = np.count_nonzero(compute_tau_b(np.broadcast_to(paper, orders.shape), orders) >= tau - 1e-12)
    return (better + 1) / (num_resamples + 1)
