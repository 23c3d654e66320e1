# SPDX-License-Identifier: Apache-2.0
"""A small convolutional network for trials and tests, with weights of its own that ship with the package."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, BatchNormMode, check_output_stride


class Toy(Backbone):
    """A stem and four stages of 3x3 convolutions with BatchNorm (Ioffe and Szegedy 2015).

    Taps ``low`` (stride 4), ``conv4``, ``conv5`` and ``out``, all non-negative; ``width`` is the channels of ``low``.
    ``batch_norm`` "affine" (default) and "frozen" use the stored statistics (of new weights: mean 0, deviation 1), so
    that a feature depends on the pixels of its receptive field alone; "train" uses those of the batch. The weights
    ``toy_pretrained`` are of width 32.

    The last convolution with a stride is padded on the other side than those before it, so that cells lie within half a
    pixel of where the image says.
    """

    output_strides = (8, 16)

    def __init__(self, output_stride: int = 8, width: int = 32, batch_norm: BatchNormMode = "affine"):
        super().__init__()
        check_output_stride("toy", output_stride, self.output_strides)
        if width < 8 or width % 8:
            raise UserError(f"toy needs a width that is a positive multiple of 8, not {width}")
        step = output_stride // 8
        self.stem = build_stage(3, width // 2, 2, 1, num_convs=1)
        self.stage1 = build_stage(width // 2, width, 2, 1, num_convs=1)
        self.stage2 = build_stage(width, 2 * width, 2, 1, shifted=step == 1)
        self.stage3 = build_stage(2 * width, 2 * width, step, 2 // step, shifted=step == 2)
        self.stage4 = build_stage(2 * width, 3 * width, 1, 2 // step, num_convs=1)
        self.channels = {"low": width, "conv4": 2 * width, "conv5": 2 * width, "out": 3 * width}
        self.strides = {"low": 4, "conv4": 8, "conv5": output_stride, "out": output_stride}
        self.freeze(batch_norm=batch_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the four taps; every stride halves with rounding up."""
        low = self.stage1(self.stem(images))
        conv4 = self.stage2(low)
        conv5 = self.stage3(conv4)
        return {"low": low, "conv4": conv4, "conv5": conv5, "out": self.stage4(conv5)}


class ShiftedConv2d(nn.Conv2d):
    """A 3x3 convolution whose padding is all at the bottom and on the right: every place is read a pixel further."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, ceil(h / stride), ceil(w / stride))."""
        down, across = (2 * int(reach) for reach in self.padding)
        return F.conv2d(F.pad(x, (0, across, 0, down)), self.weight, self.bias, self.stride, 0, self.dilation)


def build_stage(
    num_in: int, num_out: int, stride: int, dilation: int, num_convs: int = 2, shifted: bool = False
) -> nn.Sequential:
    """``num_convs`` times conv 3x3, BatchNorm, ReLU; the first conv carries the stride.

    At even sides a stride of 2 reads half a pixel up and left of its cell; ``shifted`` half a pixel down and right.
    """
    layers: list[nn.Module] = []
    for k in range(num_convs):
        num_from, step, reach = (num_in, stride, dilation) if k == 0 else (num_out, 1, dilation)
        kind = ShiftedConv2d if shifted and k == 0 else nn.Conv2d
        conv = kind(num_from, num_out, 3, step, padding=reach, dilation=reach, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers)
