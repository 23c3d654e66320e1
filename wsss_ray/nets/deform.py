# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution v1 in plain torch: a kernel whose taps are read at learned places (Dai 2017; ESOL Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.config import UserError

Backend = Literal["auto", "torch", "torchvision"]
"""``auto``: torchvision's operator where it can be imported, else this file's."""


@dataclass(frozen=True)
class Geometry:
    """Where the taps of a convolution lie; every pair is (rows, columns)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


PLAIN = Geometry()


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    geometry: Geometry = PLAIN,
    backend: Backend = "auto",
) -> Tensor:
    """sum_n w(p_n) x(p + p_n + dp_n), bilinear, zero outside (ESOL Eq. 4): (B, C, H, W) -> (B, O, h, w).

    ``offset`` (B, 2 * kh * kw, h, w) holds (dy, dx) for each kernel point in row-major order, as in torchvision, in
    cells of ``x``; ``weight`` (O, C, kh, kw). One tap is gathered at a time: while the weights are frozen, the memory
    for features does not grow with the kernel. A place exactly on a cell has the slope towards larger coordinates, as
    in torchvision. Errors: ValueError on shapes that do not fit, ``UserError`` where torchvision is asked for and
    missing.
    """
    operator = None if backend == "torch" else find_torchvision_operator()
    if operator is not None:
        return operator(x, offset.to(x.dtype), weight, bias, geometry.stride, geometry.padding, geometry.dilation)
    if backend == "torchvision":
        raise UserError(
            "torchvision's deformable convolution cannot be imported: use backend 'torch', or install it with "
            "pip install 'wsss-ray[deform]'"
        )
    num, channels = x.shape[:2]
    kernel = (weight.shape[2], weight.shape[3])
    if weight.shape[1] != channels:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit an input of {channels} channels")
    if offset.shape[:2] != (num, 2 * kernel[0] * kernel[1]):
        raise ValueError(f"offset {tuple(offset.shape)} is not (B={num}, 2 * {kernel[0]} * {kernel[1]}, h, w)")
    parts = _apply_taps(x, offset, weight, geometry)
    total = next(parts)
    for part in parts:
        total = total + part
    if bias is not None:
        total = total + bias
    return total.view(num, *offset.shape[2:], -1).permute(0, 3, 1, 2)


def _apply_taps(x: Tensor, offset: Tensor, weight: Tensor, geometry: Geometry) -> Iterator[Tensor]:
    """What every kernel point adds to the output, in turn: (B * h * w, O)."""
    channels, height, width = x.shape[1:]
    # Places need more digits than half precision has, so the gather is done in single precision or better.
    working = torch.promote_types(torch.promote_types(x.dtype, offset.dtype), torch.float32)
    rows = x.to(working).permute(0, 2, 3, 1).reshape(-1, channels)
    down, across = sample_places(offset.to(working), (weight.shape[2], weight.shape[3]), geometry)
    for tap, y, place in zip(weight.flatten(2).unbind(2), down.unbind(1), across.unbind(1), strict=True):
        yield _gather(rows, y, place, height, width) @ tap.t().to(working)


def sample_places(offset: Tensor, kernel: tuple[int, int], geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Where every tap reads: (B, 2 * kh * kw, h, w) -> rows and columns, both (B, kh * kw, h, w), in input cells."""
    moved = _split_offset(offset)

    def list_steps(axis: int) -> tuple[Tensor, Tensor]:
        cells = torch.arange(offset.shape[2 + axis], device=offset.device, dtype=offset.dtype)
        points = torch.arange(kernel[axis], device=offset.device, dtype=offset.dtype)
        return cells * geometry.stride[axis] - geometry.padding[axis], points * geometry.dilation[axis]

    (starts_y, taps_y), (starts_x, taps_x) = list_steps(0), list_steps(1)
    down = moved[:, :, 0] + taps_y.repeat_interleave(kernel[1])[:, None, None] + starts_y[:, None]
    across = moved[:, :, 1] + taps_x.repeat(kernel[0])[:, None, None] + starts_x
    return down, across


def _split_offset(offset: Tensor) -> Tensor:
    """(B, 2 * taps, h, w) -> (B, taps, 2, h, w)."""
    num, _, height, width = offset.shape
    return offset.reshape(num, -1, 2, height, width)


def _gather(rows: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear values of (B * H * W, C) rows at (B, h, w) places -> (B * h * w, C).

    A weighted bag of the four rows around a place, and not ``grid_sample``: its normalised coordinates round, some
    places meant to be on a cell land before it, and these have the slope of the other side. Zero-initialised offsets
    learn from nothing but slopes on cells at first.
    """
    # A NaN offset must reach the loss, where the trainer reports it, and not the index.
    top, left = (torch.nan_to_num(place.detach().floor()) for place in (y, x))
    low, right = y - top, x - left
    weights = torch.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right], dim=-1)
    ys = torch.stack([top, top, top + 1, top + 1], dim=-1)
    xs = torch.stack([left, left + 1, left, left + 1], dim=-1)
    inside = (ys >= 0) & (ys < height) & (xs >= 0) & (xs < width)
    first = torch.arange(len(y), device=y.device).view(-1, 1, 1, 1) * (height * width)
    index = first + ys.clamp(0, height - 1).long() * width + xs.clamp(0, width - 1).long()
    return F.embedding_bag(index.view(-1, 4), rows, mode="sum", per_sample_weights=(weights * inside).view(-1, 4))


@cache
def find_torchvision_operator() -> Callable[..., Tensor] | None:
    """The ``deform_conv2d`` of torchvision, or None where that is missing or does not fit the installed torch."""
    try:
        from torchvision import ops
    except Exception:  # a wheel built for another torch fails with whatever its loader raises
        return None
    operator: Callable[..., Tensor] = ops.deform_conv2d
    return operator


class DeformConv2d(nn.Module):
    """An ordinary convolution, taken over with its weights, and a zero-initialised 3x3 branch that moves its taps.

    Until the branch learns, the output is the ordinary one. ``regular`` must keep the size of its input, its stride
    apart (ValueError).
    """

    def __init__(self, regular: nn.Conv2d, backend: Backend = "auto") -> None:
        super().__init__()
        kernel, stride, dilation = (_pair(v) for v in (regular.kernel_size, regular.stride, regular.dilation))
        same = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        if regular.groups != 1 or any(side % 2 == 0 for side in kernel) or regular.padding != same:
            raise ValueError(f"cannot deform {regular}: needs groups 1, an odd kernel and padding {same}")
        self.regular = regular
        self.kernel = kernel
        self.geometry = Geometry(stride, same, dilation)
        self.backend = backend
        self.offset = nn.Conv2d(regular.in_channels, 2 * kernel[0] * kernel[1], 3, stride, padding=1)
        self.offset.to(regular.weight.device, regular.weight.dtype)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w)."""
        return self.sample(x, self.offset(x))

    def sample(self, x: Tensor, offset: Tensor) -> Tensor:
        """The convolution with given offsets (B, 2 * kh * kw, h, w)."""
        return deform_conv2d(x, offset, self.regular.weight, self.regular.bias, self.geometry, self.backend)

    @torch.no_grad()
    def measure_offsets(self, offset: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Mean Euclidean |dp| in cells of the (H, W) input, and the share in [0, 1] of taps that left the map.

        That is, of the taps whose ordinary place is on the map, those that now read beyond its outermost cells. Taps
        count by the norm of their weights: where all but one are 0, that one alone says how far samples are.
        """
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        now, before = (
            _lie_within(*sample_places(moved, self.kernel, self.geometry), size)
            for moved in (offset, torch.zeros_like(offset[:1]))
        )
        weight = self.regular.weight.float().norm(dim=(0, 1)).view(-1, 1, 1)
        weight = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        left = (weight * (before & ~now)).sum() / (weight * before.expand_as(now)).sum().clamp(min=1e-12)
        length = _split_offset(offset).norm(dim=2)
        return (weight * length).sum(dim=1).mean(), left


def _lie_within(down: Tensor, across: Tensor, size: tuple[int, int]) -> Tensor:
    """Which places lie on the map's cells, each half a cell wide to either side."""
    return (down >= -0.5) & (down <= size[0] - 0.5) & (across >= -0.5) & (across <= size[1] - 0.5)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = value
    return rows, columns
