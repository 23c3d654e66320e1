# SPDX-License-Identifier: Apache-2.0
"""The stencil walk against the dense matrix, the released walk, and what any random walk must do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_ray.refine.pairs import list_path_cells, list_path_offsets, list_search_offsets
from wsss_ray.refine.random_walk import (
    expand_power,
    link_within_edges,
    scale_exp_times,
    spread_scores,
    spread_within_edges,
)


def dense_affinity(links: Tensor, offsets: tuple[tuple[int, int], ...]) -> Tensor:
    """(pairs, h, w) -> (N, N) float64 symmetric, diagonal 1, cell by cell."""
    _, height, width = links.shape
    matrix = torch.eye(height * width, dtype=torch.float64)
    for k, (dy, dx) in enumerate(offsets):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[i, j] = matrix[j, i] = float(links[k, y, x])
    return matrix


def dense_edge_links(edge: np.ndarray, radius: int) -> Tensor:
    """Affinities straight from the definition: 1 - the largest edge on the path, 0 for pairs that leave the grid."""
    height, width = edge.shape
    links = torch.zeros(len(list_path_offsets(radius)), height, width, dtype=torch.float64)
    for k, (dy, dx) in enumerate(list_path_offsets(radius)):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                links[k, y, x] = 1 - max(edge[y + cy, x + cx] for cy, cx in list_path_cells((dy, dx)))
    return links


def dense_walk(scores: Tensor, affinity: Tensor, beta: float, exp_times: int) -> Tensor:
    """The released formulation in float64: repeated squaring of the column-normalised matrix."""
    transition = affinity**beta
    transition = transition / transition.sum(dim=0)
    for _ in range(exp_times):
        transition = transition @ transition
    return (scores.double().flatten(1) @ transition).view(scores.shape)


@pytest.mark.parametrize(
    ("size", "radius", "beta", "exp_times"),
    [((12, 9), 5, 10, 8), ((7, 16), 5, 8, 4), ((3, 4), 5, 10, 8), ((1, 1), 5, 10, 8), ((8, 11), 3, 1.5, 1)],
)
def test_equals_the_dense_matrix(size, radius, beta, exp_times):
    torch.manual_seed(0)
    edge, scores = torch.rand(size) * 0.8, torch.rand(3, *size)
    expected_links = dense_edge_links(edge.double().numpy(), radius)
    assert (link_within_edges(edge, radius) - expected_links).abs().max() < 1e-6
    matrix = dense_affinity(expected_links, list_path_offsets(radius))
    expected = dense_walk(scores * (1 - edge), matrix, beta, exp_times)
    assert (spread_within_edges(scores, edge, radius, beta, exp_times) - expected).abs().max() < 2e-5


def test_small_walk_by_hand():
    """Two cells, affinity 1/2, beta 1: T = [[2/3, 1/3], [1/3, 2/3]], T^2 = [[5/9, 4/9], [4/9, 5/9]]."""
    links = torch.tensor([0.5, 0.0]).view(1, 1, 2)
    scores = torch.tensor([9.0, 0.0]).view(1, 1, 2)
    assert spread_scores(scores, links, ((0, 1),), 1.0, 0).flatten().tolist() == pytest.approx([6, 3])
    assert spread_scores(scores, links, ((0, 1),), 1.0, 1).flatten().tolist() == pytest.approx([5, 4])
    assert spread_scores(scores, links, ((0, 1),), 1.0, 8).flatten().tolist() == pytest.approx([4.5, 4.5])


def test_columns_not_rows_are_normalised():
    """A row of three cells linked to their neighbours: the middle cell averages three, the ends two."""
    links = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 3)
    scores = torch.tensor([6.0, 0.0, 0.0]).view(1, 1, 3)
    assert spread_scores(scores, links, ((0, 1),), 1.0, 0).flatten().tolist() == pytest.approx([3, 2, 0])


def test_chebyshev_coefficients():
    assert expand_power(1) == [0.0, 1.0]
    assert expand_power(2) == [0.5, 0.0, 0.5]
    assert expand_power(4) == [3 / 8, 0.0, 0.5, 0.0, 1 / 8]
    coefficients = expand_power(256)
    assert len(coefficients) == 103
    assert sum(coefficients) == pytest.approx(1, abs=1e-9)
    angle = 0.3
    found = sum(c * np.cos(k * angle) for k, c in enumerate(coefficients))
    assert found == pytest.approx(np.cos(angle) ** 256, abs=1e-9)


def test_no_edges_spread_evenly():
    scores = torch.zeros(2, 10, 13)
    scores[0, 2, 3], scores[1, 9, 12] = 1, 3
    walked = spread_within_edges(scores, torch.zeros(10, 13), exp_times=8)
    spread = walked.amax(dim=(1, 2)) / walked.amin(dim=(1, 2))
    assert (walked > 0).all()
    assert (spread < 1.02).all()
    longer = spread_within_edges(scores, torch.zeros(10, 13), exp_times=11)
    assert (longer.amax(dim=(1, 2)) / longer.amin(dim=(1, 2)) < 1.0001).all()


def test_a_wall_is_never_crossed():
    edge = torch.zeros(9, 15)
    edge[:, 7] = 1
    scores = torch.zeros(1, 9, 15)
    scores[0, 4, 2] = 1
    walked = spread_within_edges(scores, edge, exp_times=10)[0]
    assert (walked[:, 7:] == 0).all()
    seeded = walked[:, :7]
    assert seeded.min() > 0
    assert seeded.max() / seeded.min() < 1.001


def test_constant_scores_stay():
    """Columns of the transition matrix sum to 1, so 1 walks to 1 and nothing leaves the range of its start."""
    torch.manual_seed(1)
    links = link_within_edges(torch.rand(20, 17), 5)
    ones = spread_scores(torch.ones(1, 20, 17), links, list_path_offsets(5), 10, 8)
    assert (ones - 1).abs().max() < 1e-4
    scores = torch.rand(2, 20, 17)
    walked = spread_scores(scores, links, list_path_offsets(5), 10, 8)
    assert walked.min() >= 0
    assert walked.max() <= scores.max() * 1.0001


def test_equivariant_to_flips():
    torch.manual_seed(2)
    edge, scores = torch.rand(14, 11), torch.rand(2, 14, 11)
    straight = spread_within_edges(scores, edge)
    assert (spread_within_edges(scores.flip(2), edge.flip(1)).flip(2) - straight).abs().max() < 1e-5
    assert (spread_within_edges(scores.flip(1), edge.flip(0)).flip(1) - straight).abs().max() < 1e-5


def test_offsets_are_half_a_disc():
    for radius, num in ((5, 34), (10, 152), (2, 4)):
        offsets = list_search_offsets(radius)
        assert len(offsets) == len(set(offsets)) == num == len(list_path_offsets(radius))
        assert not set(offsets) & {(-dy, -dx) for dy, dx in offsets}
    assert list_path_offsets(3) != list_search_offsets(3)
    assert set(list_path_offsets(3)) == set(list_search_offsets(3))


def test_matches_the_released_walk(golden):
    arrays = golden("b06_irn_random_walk.npz")
    edge, maps = torch.from_numpy(arrays["edge"])[0], torch.from_numpy(arrays["cams"])
    names = [name for name in arrays if name.startswith("rw_beta")]
    assert names
    for name in names:
        beta, exp_times = (int(part) for part in name.removeprefix("rw_beta").split("_times"))
        found = spread_within_edges(maps, edge, 5, beta, exp_times).numpy()
        if exp_times < 5:
            assert np.abs(found - arrays[name]).max() < 5e-6, name
        else:
            assert np.abs(found / arrays[name] - 1).max() < 2e-4, name
    height, width = edge.shape
    matrix = dense_affinity(link_within_edges(edge, 5), list_path_offsets(5))
    assert np.abs(matrix[:, arrays["cols"]].numpy() - arrays["aff_cols"]).max() < 1e-6
    # row i of T^256, walked from a unit score at i, read at the golden columns
    for i in (0, height * width // 2, height * width - 1):
        unit = torch.zeros(1, height * width)
        unit[0, i] = 1
        row = spread_scores(
            unit.view(1, height, width), link_within_edges(edge, 5), list_path_offsets(5), 10, 8
        ).flatten()
        assert np.abs(row[arrays["cols"]].numpy() - arrays["trans256_cols"][i]).max() < 1e-4


PEAK = """
import resource, torch
from wsss_ray.refine.pairs import list_path_offsets
from wsss_ray.refine.random_walk import link_within_edges, spread_scores

torch.manual_seed(0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
links, scores = link_within_edges(torch.rand(160, 160), 5), torch.rand(3, 160, 160)
spread_scores(scores[:, :8, :8], links[:, :8, :8] * 0, list_path_offsets(5), 10, 8)
before = peak()
spread_scores(scores, links, list_path_offsets(5), 10, 8)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_of_an_image_of_640_pixels() -> None:
    """The stated (3 pairs + 6 P) h (w + radius) numbers, and 16 MB of the allocator's: 41 MB, not 2.6 GB."""
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    grown = 1024 * int(told.stdout)
    assert grown < 8 * (3 * 34 + 6 * 3) * 160 * (160 + 5) + 16e6


def test_walks_of_another_grid_get_as_far_in_the_image():
    assert scale_exp_times(8, (21, 34), None) == 8
    assert scale_exp_times(8, (125, 125), 125) == scale_exp_times(8, (100, 156), 125) == 8
    assert scale_exp_times(8, (32, 32), 128) == 4
    assert scale_exp_times(8, (1, 1), 125) == 0
    assert scale_exp_times(3, (64, 64), 32) == 5

    def reach(side: int) -> float:
        """Standard deviation of a walk from the middle, in sides of the grid."""
        start = torch.zeros(1, side, side)
        start[0, side // 2, side // 2] = 1
        walked = spread_within_edges(start, torch.zeros(side, side), 5, 10, scale_exp_times(4, (side, side), 80))[0]
        rows = torch.arange(side) - side // 2
        return float((walked.sum(1) / walked.sum() * rows**2).sum().sqrt()) / side

    assert reach(40) == pytest.approx(reach(80), rel=0.15)
    assert reach(40) == pytest.approx(reach(160), rel=0.15)
