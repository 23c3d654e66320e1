# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet 1.0, small enough to fine-tune on two CPU cores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, check_output_stride

FIRES = {3: (96, 16, 64), 4: (128, 16, 64), 5: (128, 32, 128), 7: (256, 32, 128), 8: (256, 48, 192)}
FIRES |= {9: (384, 48, 192), 10: (384, 64, 256), 12: (512, 64, 256)}
"""Index in ``features`` -> input, squeeze and (each) expand channels; 3 is the paper's fire2, 12 its fire9."""
DEVIATION = {"low": 240.0, "conv4": 190.0, "conv5": 54.0, "out": 45.0}
"""Standard deviation of the published network's taps over VOC photographs."""


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expand side by side, ReLU after each."""

    def __init__(self, num_in: int, num_squeeze: int, num_expand: int, dilation: int = 1):
        super().__init__()
        self.squeeze = nn.Conv2d(num_in, num_squeeze, 1)
        self.expand1x1 = nn.Conv2d(num_squeeze, num_expand, 1)
        self.expand3x3 = nn.Conv2d(num_squeeze, num_expand, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, 2 expand, h, w), non-negative."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


class SqueezeNet(Backbone):
    """SqueezeNet 1.0 (Iandola et al. 2016); module names are torchvision's.

    Taps ``low`` (fire4, stride 4), ``conv4`` (fire6), ``conv5`` (fire8), ``out`` (fire9). Output stride 16 as
    published; 8 gives the last pool stride 1 and dilates fire9 by 2. The published network pads neither its first
    convolution nor its pools, which shrinks maps and shifts them against the image by some pixels; ``padded`` (default)
    pads both so that cells line up with the image as in the other backbones. ``freeze_through`` is the number of the
    last fire that never learns (1 = the first convolution only, 0 = everything learns). ``unit_taps`` divides every tap
    by its ``DEVIATION``, for heads that expect features of order 1: there is no BatchNorm, and features are large.
    """

    output_strides = (16, 8)
    channels = {"low": 256, "conv4": 384, "conv5": 512, "out": 512}
    taps_after = {5: "low", 8: "conv4", 10: "conv5", 12: "out"}

    def __init__(self, output_stride: int = 16, padded: bool = True, freeze_through: int = 0, unit_taps: bool = False):
        super().__init__()
        check_output_stride("squeezenet", output_stride, self.output_strides)
        self.divisors = DEVIATION if unit_taps else dict.fromkeys(DEVIATION, 1.0)
        dense = output_stride == 8
        layers: list[nn.Module] = [nn.Conv2d(3, 96, 7, 2, padding=3 if padded else 0), nn.ReLU()]
        for index in range(2, 13):
            if index in FIRES:
                layers.append(Fire(*FIRES[index], dilation=2 if dense and index == 12 else 1))
            elif padded:
                layers.append(nn.MaxPool2d(3, 1 if dense and index == 11 else 2, padding=1))
            else:
                # the dense pool is padded all the same: it must keep the size
                stays = dense and index == 11
                layers.append(nn.MaxPool2d(3, 1 if stays else 2, padding=int(stays), ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.strides = {"low": 4, "conv4": 8, "conv5": 8, "out": output_stride}
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        if not 0 <= freeze_through <= 9:
            raise UserError(f"squeezenet has fires 2 to 9; freeze_through cannot be {freeze_through}")
        early = [layers[0], *(layers[index] for index in FIRES)]
        self.freeze(early[:freeze_through])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the four taps; padded: every stride halves with rounding up."""
        taps, x = {}, images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps_after:
                name = self.taps_after[index]
                taps[name] = x / self.divisors[name]
        return taps
