# SPDX-License-Identifier: Apache-2.0
"""The random walk as released IRN and PSA write it: a dense matrix over all pairs of cells, squared eight times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spread_densely(
    scores: Tensor, links: Tensor, offsets: Sequence[tuple[int, int]], beta: float, exp_times: int
) -> Tensor:
    """(C, h, w) scores and (O, h, w) affinities to the cell at each (dy, dx) -> (C, h, w) spread scores.

    Memory and time grow with the square and the cube of the number of cells.
    """
    num_scores, height, width = scores.shape
    cells = torch.arange(height * width, device=links.device).view(height, width)
    matrix = torch.eye(height * width, device=links.device)
    for link, (dy, dx) in zip(links, offsets, strict=True):
        rows, left, right = height - dy, max(-dx, 0), width - max(dx, 0)
        if rows <= 0 or right <= left:
            continue
        source = cells[:rows, left:right].flatten()
        target = cells[dy:, left + dx : right + dx].flatten()
        matrix[source, target] = matrix[target, source] = link[:rows, left:right].flatten()
    matrix = matrix.pow_(beta)
    matrix /= matrix.sum(dim=0, keepdim=True)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    return (scores.view(num_scores, -1) @ matrix).view_as(scores)
