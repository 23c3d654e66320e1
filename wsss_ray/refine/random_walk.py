# SPDX-License-Identifier: Apache-2.0
"""The random walk that spreads class scores over cells of high affinity (PSA, IRN), as a stencil."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.refine.pairs import Offset, find_path_maximum, list_path_offsets

CUT = 1e-10
"""Weight of the Chebyshev terms that are left out."""
DTYPE = torch.float64
"""In float32 the rounding of hundreds of steps moves scores."""


def spread_within_edges(scores: Tensor, edge: Tensor, radius: int = 5, beta: float = 10, exp_times: int = 8) -> Tensor:
    """(P, h, w) scores >= 0 and (h, w) edges in [0, 1] -> (P, h, w): scores x (1 - edge) after the random walk.

    IRN Sec. 5.2: edges close the paths between cells, and the scores on an edge do not start.
    """
    return spread_scores(
        scores * (1 - edge), link_within_edges(edge, radius), list_path_offsets(radius), beta, exp_times
    )


def scale_exp_times(exp_times: int, grid: tuple[int, int], side: int | None) -> int:
    """``exp_times`` of a walk that gets as far, as a share of the (h, w) ``grid``, as the given one on a square of
    ``side`` cells: a walk's reach grows as the root of its steps, 2^exp_times. None: as given.
    """
    if side is None:
        return exp_times
    return max(round(exp_times + math.log2(grid[0] * grid[1] / side**2)), 0)


def link_within_edges(edge: Tensor, radius: int) -> Tensor:
    """(h, w) edges -> (pairs, h, w) affinity of each cell and those at ``list_path_offsets``; 0 beyond the border.

    1 - the largest edge on the path between both cells (IRN Sec. 4.3).
    """
    margin = radius - 1
    closed = F.pad(edge, (margin, margin, 0, margin), value=1.0)
    return 1 - find_path_maximum(closed[None], radius)[0]


def spread_scores(scores: Tensor, links: Tensor, offsets: Sequence[Offset], beta: float, exp_times: int) -> Tensor:
    """Scores times the column-normalised transition matrix to the power 2^exp_times, without ever making that matrix.

    PSA Sec. 3.3 and IRN Sec. 5.2.

    ``scores`` (P, h, w) >= 0; ``links`` (pairs, h, w): affinity in [0, 1] of the cells at (y, x) and (y, x) + offset, 0
    where that lies outside. The matrix is the identity plus the links both ways, each to the power ``beta``, columns
    divided by their sums: 2 pairs + 1 bands. It is similar to a symmetric matrix, so its n-th power is a sum of
    Chebyshev polynomials with binomial coefficients: n = 256 takes 102 products with the bands, exact to 1e-10
    (Sachdeva and Vishnoi 2014, "Faster algorithms via approximation theory").

    Works in float64. Memory at the peak: about (3 pairs + 6 P) h (w + radius) numbers. Time is linear in P h w.
    """
    bands = _Bands(links, offsets, beta)
    return bands.crop(_apply_power(bands, bands.pad(scores), 2**exp_times))


class _Bands:
    """The transition matrix as one weight per cell and offset, on rows with a margin so that every shift is flat."""

    def __init__(self, links: Tensor, offsets: Sequence[Offset], beta: float) -> None:
        _, self.height, self.width = links.shape
        margin = max((abs(dx) for _, dx in offsets), default=0)
        self.stride = self.width + margin
        self.size = self.height * self.stride
        self.shifts = [dy * self.stride + dx for dy, dx in offsets]
        self.margin = max(self.shifts, default=0)
        forward = F.pad(links.to(DTYPE).pow(beta), (0, margin)).flatten(1)
        backward = torch.zeros_like(forward)
        for k, shift in enumerate(self.shifts):
            backward[k, shift:] = forward[k, : max(self.size - shift, 0)]
        total = 1 + forward.sum(0) + backward.sum(0)
        self.forward, self.backward, self.centre = forward.div_(total), backward.div_(total), 1 / total

    def pad(self, values: Tensor) -> Tensor:
        """(P, h, w) -> (P, margin + h stride + margin) flat rows, zeros around."""
        wide = F.pad(values.to(DTYPE), (0, self.stride - self.width)).flatten(1)
        return F.pad(wide, (self.margin, self.margin))

    def crop(self, flat: Tensor) -> Tensor:
        """The inverse of ``pad``."""
        inner = flat[:, self.margin : self.margin + self.size]
        return inner.reshape(-1, self.height, self.stride)[..., : self.width].float()

    def add_step(self, into: Tensor, values: Tensor, scale: float) -> None:
        """Add scale * values T to ``into``, both padded flat."""
        start, stop = self.margin, self.margin + self.size
        out = into[:, start:stop]
        out.addcmul_(self.centre, values[:, start:stop], value=scale)
        for k, shift in enumerate(self.shifts):
            out.addcmul_(self.forward[k], values[:, start + shift : stop + shift], value=scale)
            out.addcmul_(self.backward[k], values[:, start - shift : stop - shift], value=scale)


def _apply_power(bands: _Bands, values: Tensor, num_steps: int) -> Tensor:
    """Return values T^num_steps by the three-term recurrence T_{k+1} = 2 T T_k - T_{k-1}."""
    coefficients = expand_power(num_steps)
    before, now = values, torch.zeros_like(values)
    bands.add_step(now, before, 1.0)
    result = coefficients[0] * before + coefficients[1] * now
    before = before.clone()
    for coefficient in coefficients[2:]:
        before.neg_()
        bands.add_step(before, now, 2.0)
        before, now = now, before
        if coefficient:
            result.add_(now, alpha=coefficient)
    return result.clamp_(min=0)


def expand_power(num_steps: int) -> list[float]:
    """Coefficients c_0.. with x^n = sum c_k T_k(x) on [-1, 1], n >= 1, tail of weight below 1e-10 left out."""
    n = num_steps
    exact = [0.0] * (n + 1)
    for k in range(n % 2, n + 1, 2):
        exact[k] = math.comb(n, (n - k) // 2) / 2 ** (n - 1) / (2 if k == 0 else 1)
    tail, last = 0.0, n
    while last > 1 and tail + exact[last] < CUT:
        tail += exact[last]
        last -= 1
    return exact[: last + 1]
