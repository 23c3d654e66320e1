# SPDX-License-Identifier: Apache-2.0
"""VGG-16 as in DeepLab (LargeFOV, DeepLab-v2 VGG); convolutions keep torchvision's names and indices."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, check_output_stride

LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions between two pools."""
POOL_STRIDES = {8: (2, 2, 2, 1, 1), 16: (2, 2, 2, 2, 1)}


class VGG16(Backbone):
    """VGG-16 (Simonyan and Zisserman 2015): thirteen 3x3 convolutions with bias, five 3x3 pools.

    At output stride 8 the last level is dilated by 2. Taps ``low`` (pool2), ``conv4`` (pool4), ``conv5`` (last
    convolution, before pool5), ``out`` (pool5). Caffe's original rounds pool sizes up and averages 3x3 after pool5
    (``ceil_pool``, ``avg_pool`` both on); that of L2G's released DeepLab rounds down and has no average (both off, the
    default). The first ``num_frozen_convs`` never learn.
    """

    output_strides = tuple(POOL_STRIDES)
    channels = {"low": 128, "conv4": 512, "conv5": 512, "out": 512}

    def __init__(
        self, output_stride: int = 8, ceil_pool: bool = False, avg_pool: bool = False, num_frozen_convs: int = 0
    ):
        super().__init__()
        check_output_stride("vgg16", output_stride, self.output_strides)
        layers: list[nn.Module] = []
        num_in, self.taps_after = 3, {}
        for level, (width, num_convs) in enumerate(LEVELS):
            dilation = 2 if level == 4 and output_stride == 8 else 1
            for _ in range(num_convs):
                layers += [nn.Conv2d(num_in, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
                num_in = width
            if level == 4:
                self.taps_after[len(layers) - 1] = "conv5"
            layers.append(nn.MaxPool2d(3, POOL_STRIDES[output_stride][level], padding=1, ceil_mode=ceil_pool))
            if level in (1, 3):
                self.taps_after[len(layers) - 1] = "low" if level == 1 else "conv4"
        self.features = nn.Sequential(*layers)
        self.average = nn.AvgPool2d(3, 1, padding=1) if avg_pool else nn.Identity()
        self.strides = {"low": 4, "conv4": output_stride, "conv5": output_stride, "out": output_stride}
        convs = [m for m in self.features if isinstance(m, nn.Conv2d)]
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        if not 0 <= num_frozen_convs <= len(convs):
            raise UserError(f"vgg16 has {len(convs)} convolutions; num_frozen_convs cannot be {num_frozen_convs}")
        self.freeze(convs[:num_frozen_convs])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the four taps; 321 gives 41 x 41."""
        taps, x = {}, images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps_after:
                taps[self.taps_after[index]] = x
        taps["out"] = self.average(x)
        return taps
