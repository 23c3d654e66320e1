# SPDX-License-Identifier: Apache-2.0
"""Between an image and the coarser grid on which affinities live: sizes, features, labels, the network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE
from wsss_ray.nets.backbone import Backbone

Normalizer = Callable[[np.ndarray], Tensor]
"""(H, W, 3) uint8 RGB -> (3, H, W) float32 as the network wants it."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def compute_grid(size: Sequence[int], stride: int) -> tuple[int, int]:
    """(H, W) divided by ``stride``, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def resize_to_grid(values: Tensor, scale: float, grid: tuple[int, int]) -> Tensor:
    """(B, c, ., .) times ``scale`` (bilinear) and cropped to the grid; stretched to it where that comes out smaller."""
    scaled = values
    if scale != 1:
        scaled = F.interpolate(values, scale_factor=float(scale), mode="bilinear", align_corners=False)
    if scaled.shape[2] < grid[0] or scaled.shape[3] < grid[1]:
        return F.interpolate(values, size=grid, mode="bilinear", align_corners=False)
    return scaled[:, :, : grid[0], : grid[1]]


def describe_taps(backbone: Backbone, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Channels and strides of the named taps; UserError where the backbone lacks one."""
    for name in names:
        if name not in backbone.channels:
            raise UserError(f"no tap {name!r} on this backbone; known: {', '.join(backbone.channels)}")
    return [backbone.channels[name] for name in names], [backbone.strides[name] for name in names]


def normalize_for_imagenet(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32: less ImageNet's mean, over its standard deviation."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def make_network_input(images: Sequence[np.ndarray], network: nn.Module, normalize: Normalizer) -> Tensor:
    """(H, W, 3) uint8 RGB of one size -> (B, 3, H, W), normalised, where the network is."""
    inputs = torch.stack([normalize(image) for image in images])
    return inputs.to(next(network.parameters()).device).contiguous(memory_format=torch.channels_last)


def sample_mask(mask: Tensor, stride: int) -> Tensor:
    """(B, H, W) -> (B, ceil(H / stride), ceil(W / stride)): the pixel just past each cell's centre, PIL's nearest."""
    rows, columns = (
        (torch.arange(num, device=mask.device) * stride + stride // 2).clamp(max=size - 1)
        for num, size in zip(compute_grid(mask.shape[1:], stride), mask.shape[1:], strict=True)
    )
    return mask[:, rows[:, None], columns]


def vote_mask(mask: Tensor, inside: Tensor, stride: int) -> Tensor:
    """(B, H, W) labels and (B, 1, H, W) image area -> (B, h, w): the commonest label of each cell's pixels.

    Unknown pixels vote as unknown, pixels off the image not at all; equal votes go to the smaller label, and a cell
    without votes is unknown (255).
    """
    height, width = mask.shape[1:]
    rows, columns = compute_grid((height, width), stride)
    pad = (0, columns * stride - width, 0, rows * stride - height)
    labels, counts = (
        F.pad(part, pad).reshape(-1, rows, stride, columns, stride).transpose(2, 3).flatten(3)
        for part in (mask, inside[:, 0].to(torch.int32))
    )
    votes = torch.zeros(*labels.shape[:3], IGNORE + 1, dtype=torch.int32, device=mask.device)
    votes.scatter_add_(3, labels, counts)
    votes[..., IGNORE] += votes.sum(dim=3) == 0
    return votes.argmax(dim=3)
