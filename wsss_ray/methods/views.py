# SPDX-License-Identifier: Apache-2.0
"""Views of an image: patches drawn from it, the same places on a feature map, and a window slid over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.config import UserError

Sampling = Literal["random", "corners", "uniform"]
Align = Literal["crop", "roi"]


def place_windows(length: int, window: int, stride: int) -> list[int]:
    """Starts of a window slid over ``length``, the last one flush with the end so that every pixel is covered."""
    last = length - window
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def draw_starts(num: int, length: int, size: int) -> Tensor:
    """(num,) int64 uniform in [0, length - size), upper end excluded (L2G, as released); 0 where they are equal."""
    return torch.randint(0, max(length - size, 1), (num,))


def sample_boxes(
    sampling: Sampling, num_images: int, num_views: int, size: int, view: tuple[int, int], stride: int = 64
) -> Tensor:
    """(B, N, 4) int64 boxes (x0, y0, x1, y1), ``size`` pixels a side, in a (H, W) view, by torch's global generator.

    ``random``: N boxes an image (L2G Sec. 3.3). ``corners``: the four corners, then N - 4 random ones (released L2G).
    ``uniform``: a window slid with ``stride``, whose number sets N (L2G Sec. 4.2). Raises UserError where the size
    does not fit the view.
    """
    height, width = view
    if size > min(view):
        raise UserError(
            f"patch_size {size} does not fit the {height}x{width} training crop: "
            f"set method.patch_size to at most {min(view)} or train on larger crops"
        )
    right, bottom = width - size, height - size
    if sampling == "uniform":
        starts = [(x, y) for y in place_windows(height, size, stride) for x in place_windows(width, size, stride)]
        corner = torch.tensor(starts).expand(num_images, -1, -1)
    else:
        total = num_images * num_views
        drawn = torch.stack([draw_starts(total, width, size), draw_starts(total, height, size)], dim=1)
        corner = drawn.view(num_images, num_views, 2)
        if sampling == "corners":
            fixed = torch.tensor([(0, 0), (right, 0), (0, bottom), (right, bottom)])[:num_views]
            corner[:, : len(fixed)] = fixed
    return torch.cat([corner, corner + size], dim=2)


def crop_views(images: Tensor, boxes: Tensor) -> Tensor:
    """(B, c, H, W) and (B, N, 4) boxes of one size -> (B * N, c, p, p) slices, image-major."""
    slices = [
        image[:, y0:y1, x0:x1]
        for image, corners in zip(images, boxes.tolist(), strict=True)
        for x0, y0, x1, y1 in corners
    ]
    return torch.stack(slices)


def sample_cells(features: Tensor, boxes: Tensor, size: tuple[int, int], stride: int, align: Align) -> Tensor:
    """Values of a (B, K, H, W) map under (B, N, 4) pixel boxes -> (B * N, K, h, w), bilinear, differentiable.

    ``crop`` reads cell i of a box at box / stride + i: a plain crop where the box lies on the stride, the identity for
    a box that is the whole view. ``roi`` is RoIAlign without ``aligned``, one sample per bin: half a cell further,
    which is what released L2G does. Two small matrices, no gather: the gradient is deterministic on every device.
    """
    # Half precision cannot hold a pixel coordinate.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    height, width = features.shape[2:]
    edges = boxes.to(features) / stride
    across = _weigh_cells(_locate(edges[..., 0], edges[..., 2], size[1], align), width)
    down = _weigh_cells(_locate(edges[..., 1], edges[..., 3], size[0], align), height)
    rows = torch.einsum("bnyh,bkhw->bnkyw", down, features)
    return torch.einsum("bnkyw,bnxw->bnkyx", rows, across).flatten(0, 1)


def _locate(start: Tensor, end: Tensor, num: int, align: Align) -> Tensor:
    """(B, N) first and last edge of boxes, in cells -> (B, N, num) coordinates along one axis."""
    index = torch.arange(num, device=start.device, dtype=start.dtype)
    if align == "crop":
        return start.unsqueeze(-1) + index
    bins = (end - start).clamp(min=1) / num
    return start.unsqueeze(-1) + (index + 0.5) * bins.unsqueeze(-1)


def _weigh_cells(coordinates: Tensor, length: int) -> Tensor:
    """(..., n) continuous cell coordinates -> (..., n, length) bilinear weights, clamped to the first and last cell."""
    cells = torch.arange(length, device=coordinates.device, dtype=coordinates.dtype)
    inside = coordinates.clamp(0, length - 1)
    return (1 - (inside.unsqueeze(-1) - cells).abs()).clamp(min=0)


def slide_window(network: Callable[[Tensor], Tensor], images: Tensor, window: int, step: int, stride: int) -> Tensor:
    """Mean of ``network``'s maps over a window slid over (B, 3, H, W) -> (B, K, ceil(H / stride), ceil(W / stride)).

    The step is rounded to whole feature cells; the image is padded with the mean colour so that the last window ends
    with it; a window longer than a side is cut to that side. The windows of one row go through the network together.
    L2G Sec. 4.2 and Table 1, row 2.
    """
    height, width = images.shape[2:]
    size = (min(window, height), min(window, width))
    step = max(step // stride, 1) * stride
    pads = [(-(length - part)) % stride for length, part in ((height, size[0]), (width, size[1]))]
    padded = F.pad(images, (0, pads[1], 0, pads[0]))
    tops = place_windows(height + pads[0], size[0], step)
    lefts = place_windows(width + pads[1], size[1], step)
    total = count = images.new_zeros(0)
    for top in tops:
        row = [padded[:, :, top : top + size[0], left : left + size[1]] for left in lefts]
        maps = torch.unflatten(network(torch.cat(row)), 0, (len(lefts), len(images)))
        cells = maps.shape[3:]
        if total.numel() == 0:
            grid = (tops[-1] // stride + cells[0], lefts[-1] // stride + cells[1])
            total, count = maps.new_zeros(len(images), maps.shape[2], *grid), maps.new_zeros(grid)
        y = top // stride
        for part, left in zip(maps, lefts, strict=True):
            x = left // stride
            total[:, :, y : y + cells[0], x : x + cells[1]] += part
            count[y : y + cells[0], x : x + cells[1]] += 1
    fused = total / count.clamp(min=1)
    return fused[:, :, : -(-height // stride), : -(-width // stride)]
