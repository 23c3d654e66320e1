# SPDX-License-Identifier: Apache-2.0
"""The random walk as a stencil against the dense matrix, on the same affinities.

    python benchmarks/walk.py --size 320x320 --classes 3

Prints images per second of both, their ratio, and the largest difference between the scores. The dense matrix is
squared eight times as in released IRN and PSA; its memory and time grow with the square and the cube of the grid.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from wsss_ray.refine.pairs import list_path_offsets
from wsss_ray.refine.random_walk import link_within_edges, spread_scores

STRIDE, RADIUS, BETA, EXP_TIMES = 4, 5, 10.0, 8


def dense_walk(scores: Tensor, links: Tensor) -> Tensor:
    """The released formulation in float32: fill the matrix, normalise its columns, square it, multiply."""
    num_scores, height, width = scores.shape
    cells = torch.arange(height * width, device=links.device).view(height, width)
    matrix = torch.eye(height * width, device=links.device)
    for link, (dy, dx) in zip(links, list_path_offsets(RADIUS), strict=True):
        rows, left, right = height - dy, max(-dx, 0), width - max(dx, 0)
        if rows <= 0 or right <= left:
            continue
        source = cells[:rows, left:right].flatten()
        target = cells[dy:, left + dx : right + dx].flatten()
        matrix[source, target] = matrix[target, source] = link[:rows, left:right].flatten()
    matrix = matrix.pow_(BETA)
    matrix /= matrix.sum(dim=0, keepdim=True)
    for _ in range(EXP_TIMES):
        matrix = matrix @ matrix
    return (scores.view(num_scores, -1) @ matrix).view_as(scores)


def smooth_edges(height: int, width: int) -> Tensor:
    """(h, w) in [0, 1]: a few dark curves, like an image's contours."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    rings = torch.stack([(x - a).square() + (y - b).square() - r for a, b, r in ((-0.4, 0, 0.2), (0.5, 0.3, 0.1))])
    return torch.exp(-(rings / 0.05).square()).amax(dim=0) * 0.95 + 0.02


def wait(device: torch.device) -> float:
    """The time, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="320x320", help="height x width of the image in pixels")
    parser.add_argument("--classes", type=int, default=3, help="score planes")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the stencil; the dense matrix runs once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense matrix out")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    height, width = (-(-int(side) // STRIDE) for side in options.size.split("x"))
    links = link_within_edges(smooth_edges(height, width), RADIUS).to(device)
    scores = torch.rand(options.classes, height, width).to(device)
    print(f"{options.size} at stride {STRIDE}: {height} x {width} cells, {options.classes} scores, {device}")

    def stencil() -> Tensor:
        return spread_scores(scores, links, list_path_offsets(RADIUS), BETA, EXP_TIMES)

    found = stencil()
    start = wait(device)
    for _ in range(options.repeats):
        found = stencil()
    fast = options.repeats / (wait(device) - start)
    print(f"stencil  {fast:10.3f} images/s")
    if options.no_dense:
        return
    start = wait(device)
    expected = dense_walk(scores, links)
    slow = 1 / (wait(device) - start)
    print(f"dense    {slow:10.3f} images/s   ({4e-9 * (height * width) ** 2:.2f} GB a matrix)")
    print(f"ratio    {fast / slow:10.1f}")
    print(f"largest difference of a score {(found - expected).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
