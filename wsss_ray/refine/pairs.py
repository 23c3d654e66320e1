# SPDX-License-Identifier: Apache-2.0
"""Pairs of nearby grid cells: which exist, the path between them, and the loss that teaches their affinity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE

Offset = tuple[int, int]
"""(dy, dx) from a pair's source to its destination, in grid cells; dy >= 0."""
EPSILON = 1e-5


@lru_cache
def list_search_offsets(radius: int) -> tuple[Offset, ...]:
    """Half of the disc of ``radius`` (34 pairs at 5, 152 at 10), row by row: the order of released PSA."""
    right = [(0, dx) for dx in range(1, radius)]
    rows = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dx * dx + dy * dy < radius**2]
    return (*right, *rows)


@lru_cache
def list_path_cells(offset: Offset) -> tuple[Offset, ...]:
    """Cells nearer than one cell to the line from (0, 0) to ``offset``, inside their bounding box.

    Both ends are included, the far one first (released IRN, ``misc/indexing.py``).
    """
    dy, dx = offset
    rows, columns = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    cells = [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]
    return tuple(sorted(cells, key=lambda cell: abs(cell[0]) + abs(cell[1]), reverse=True))


@lru_cache
def list_path_offsets(radius: int) -> tuple[Offset, ...]:
    """The same pairs, by ascending path length: the order of released IRN."""
    return tuple(sorted(list_search_offsets(radius), key=lambda offset: len(list_path_cells(offset))))


def compute_source_grid(grid: tuple[int, int], radius: int) -> tuple[int, int]:
    """(rows, columns) of the sources with every destination on the grid: rows 0..h-r, columns r-1..w-r at radius r."""
    return max(grid[0] - radius + 1, 0), max(grid[1] - 2 * (radius - 1), 0)


def view_windows(values: Tensor, radius: int) -> Tensor:
    """(..., h, w) -> (..., radius, 2 radius - 1, h', w') view: [dy, dx + radius - 1] is that far from the sources.

    Raises UserError where the grid is too small to have sources.
    """
    rows, columns = compute_source_grid((values.shape[-2], values.shape[-1]), radius)
    if rows * columns == 0:
        raise UserError(
            f"a grid of {values.shape[-2]} x {values.shape[-1]} cells has no pairs within radius {radius}: "
            "lower the refiner's training radius or enlarge the training crop"
        )
    tall = values.unfold(-2, rows, 1)
    return tall.unfold(-2, columns, 1)


def take_pairs(values: Tensor, radius: int, offsets: Sequence[Offset]) -> tuple[Tensor, Tensor]:
    """(..., h, w) -> the sources (..., 1, h', w') and their destinations (..., pairs, h', w')."""
    views = view_windows(values, radius)
    dy = torch.tensor([d[0] for d in offsets], device=values.device)
    dx = torch.tensor([d[1] + radius - 1 for d in offsets], device=values.device)
    return views[..., 0:1, radius - 1, :, :], views[..., dy, dx, :, :]


def find_path_maximum(edge: Tensor, radius: int) -> Tensor:
    """(B, h, w) -> (B, pairs, h', w'): the largest edge on the path of every pair (IRN Sec. 4.3).

    Pairs in ``list_path_offsets`` order. Paths are taken together by length. The gradient goes to the first cell that
    attains the maximum: the backward pass keeps one index per pair and source, not the paths.
    """
    batch, height, width = edge.shape
    views = view_windows(edge.detach(), radius)
    rows, columns = views.shape[-2:]
    source = torch.arange(rows, device=edge.device)[:, None] * width + torch.arange(columns, device=edge.device)
    parts = []
    for _, group in groupby(list_path_offsets(radius), key=lambda offset: len(list_path_cells(offset))):
        cells = torch.tensor([list_path_cells(offset) for offset in group], device=edge.device)
        dy, dx = cells[..., 0], cells[..., 1] + radius - 1
        best, which = views[:, dy, dx].max(dim=2)
        if not edge.requires_grad:
            parts.append(best)
            continue
        pair = torch.arange(len(cells), device=edge.device)[None, :, None, None]
        where = (dy * width + dx)[pair, which] + source
        parts.append(edge.reshape(batch, -1).gather(1, where.flatten(1)).view_as(best))
    return torch.cat(parts, dim=1)


class PairLabels(NamedTuple):
    """What a pair's two cells say, each (B, pairs, h', w') bool; pairs with an unknown end are in none."""

    background: Tensor
    """Both are background."""
    foreground: Tensor
    """Both are of the same class."""
    different: Tensor


def label_pairs(mask: Tensor, radius: int, offsets: Sequence[Offset]) -> PairLabels:
    """(B, h, w) mask on the grid (0 background, class + 1, 255 unknown) -> which pairs attract and which repel.

    PSA Sec. 3.2.1 and IRN Sec. 4.1.
    """
    source, target = take_pairs(mask, radius, offsets)
    known = (source != IGNORE) & (target != IGNORE)
    same = known & (source == target)
    return PairLabels(same & (source == 0), same & (source > 0), known & (source != target))


def average_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of ``values`` where the mask holds, over the whole batch; 0 where it holds nowhere."""
    return (values * where).sum() / (where.sum() + EPSILON)


def compute_affinity_losses(affinity: Tensor, labels: PairLabels) -> dict[str, Tensor]:
    """(B, pairs, h', w') affinities in [0, 1] -> a quarter, a quarter and half of their mean losses.

    PSA Sec. 3.2.2 and IRN Sec. 4.3, with the 1e-5 of the released code.
    """
    attract = -torch.log(affinity + EPSILON)
    repel = -torch.log(1 + EPSILON - affinity)
    return {
        "affinity_background": average_where(attract, labels.background) / 4,
        "affinity_foreground": average_where(attract, labels.foreground) / 4,
        "affinity_different": average_where(repel, labels.different) / 2,
    }
