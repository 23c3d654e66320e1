# SPDX-License-Identifier: Apache-2.0
"""The random walk as a stencil against the dense matrix of released IRN and PSA, on the same affinities."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.baselines.dense_walk import spread_densely
from benchmarks.claim import CPU, Claim, Given, Goal, Pair, timed
from wsss_ray.refine.pairs import list_path_offsets
from wsss_ray.refine.random_walk import link_within_edges, spread_scores

STRIDE, RADIUS, BETA, EXP_TIMES, NUM_SCORES = 4, 5, 10.0, 8, 3


def draw_edges(height: int, width: int) -> Tensor:
    """(h, w) in [0, 1]: a few dark curves, like an image's contours."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    rings = torch.stack([(x - a).square() + (y - b).square() - r for a, b, r in ((-0.4, 0, 0.2), (0.5, 0.3, 0.1))])
    return torch.exp(-(rings / 0.05).square()).amax(dim=0) * 0.95 + 0.02


def measure(given: Given) -> Iterator[Pair]:
    """One pair for every size of image."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    offsets = list_path_offsets(RADIUS)
    for size in ((160, 160),) if given.quick else ((160, 160), (240, 320), (320, 320)):
        height, width = (-(-side // STRIDE) for side in size)
        links = link_within_edges(draw_edges(height, width), RADIUS)
        scores = torch.rand(NUM_SCORES, height, width)
        found: dict[str, Tensor] = {}

        def densely(links: Tensor = links, scores: Tensor = scores, found: dict[str, Tensor] = found) -> None:
            found["dense"] = spread_densely(scores, links, offsets, BETA, EXP_TIMES)

        def as_stencil(links: Tensor = links, scores: Tensor = scores, found: dict[str, Tensor] = found) -> None:
            found["stencil"] = spread_scores(scores, links, offsets, BETA, EXP_TIMES)

        def describe(found: dict[str, Tensor] = found) -> str:
            return f"scores differ by at most {(found['dense'] - found['stencil']).abs().max().item():.1e}"

        yield Pair(
            f"{size[0]} x {size[1]}",
            top=timed(densely),
            bottom=timed(as_stencil),
            goals={CPU: Goal(at_least=10)},
            rounds=3,
            warm=size == (160, 160),
            describe=describe,
        )


CLAIM = Claim(
    says="the random walk of IRN and PSA as a stencil needs neither the memory nor the time of a dense matrix",
    ratio="dense matrix / stencil",
    measure=measure,
    seconds=10,
)
