# SPDX-License-Identifier: Apache-2.0
"""Convolutions padded as TensorFlow's SAME."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME does: ceil(size / stride) cells for every size.

    At stride 2 and an even size one more zero is on the right and at the bottom than on the left and at the top.
    """

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__(num_in, num_out, kernel, stride, dilation=dilation, groups=groups, bias=False)
        nn.init.normal_(self.weight, std=math.sqrt(2 * groups / (num_out * kernel**2)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        (top, bottom), (left, right) = (self.find_margins(axis, x.shape[2 + axis]) for axis in (0, 1))
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)

    def find_margins(self, axis: int, size: int) -> tuple[int, int]:
        """Cells of zeros before and behind an axis of ``size`` cells."""
        stride, reach = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1)
        total = max((math.ceil(size / stride) - 1) * stride + reach + 1 - size, 0)
        return total // 2, total - total // 2
