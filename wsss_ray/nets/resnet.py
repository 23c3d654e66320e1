# SPDX-License-Identifier: Apache-2.0
"""ResNet-18/50/101 in torchvision's layout (stride in the 3x3): the backbone of IRN, ESOL and BECO."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, BatchNormMode, check_output_stride

Depth = Literal[18, 50, 101]
Part = Literal["none", "stem", "layer1", "layer2", "layer3", "layer4"]
PARTS: tuple[Part, ...] = ("none", "stem", "layer1", "layer2", "layer3", "layer4")
NUM_BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES: dict[int, tuple[int, int, int, int]] = {32: (1, 2, 2, 2), 16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
DILATIONS: dict[int, tuple[int, int, int, int]] = {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, num_in: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = build_shortcut(num_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, width, h', w')."""
        skip = x if self.downsample is None else self.downsample(x)
        branch: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (branch + skip).relu()


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width ("v1.5")."""

    expansion = 4

    def __init__(self, num_in: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = build_shortcut(num_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, 4 width, h', w')."""
        skip = x if self.downsample is None else self.downsample(x)
        middle = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        branch: Tensor = self.bn3(self.conv3(middle))
        return (branch + skip).relu()


def build_shortcut(num_in: int, num_out: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and BatchNorm where the shape changes, else None (identity)."""
    if num_in == num_out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))


class ResNet(Backbone):
    """ResNet (He et al. 2016) as IRN splits it: taps ``stem`` (after the max pool) and layer1 to layer4.

    These four are ``low``, ``conv4``, ``conv5`` and ``out``. Output stride 16 (default) and 8 drop the strides of
    layer4 (and layer3). ``dilated`` None dilates as the published networks do: not at 16 (IRN), by 1, 1, 2, 4 at 8
    (DeepLab, on the 3x3 of every block of the stage). ``freeze_through`` names the last part that never learns: IRN's
    classifier trains layer3 and layer4 only ("layer2": it freezes the stem and detaches there), IRNet nothing
    ("layer4"). ``batch_norm``: IRN "affine" (default), SSSS "frozen", BECO "train".
    """

    output_strides = (16, 8, 32)

    def __init__(
        self,
        output_stride: int = 16,
        depth: Depth = 50,
        dilated: bool | None = None,
        batch_norm: BatchNormMode = "affine",
        freeze_through: Part = "none",
    ):
        super().__init__()
        check_output_stride(f"resnet{depth}", output_stride, self.output_strides)
        if freeze_through not in PARTS:
            raise UserError(
                f"freeze_through {freeze_through!r} is not a part of resnet{depth}; allowed: {', '.join(PARTS)}"
            )
        dilations = DILATIONS[output_stride if (output_stride == 8 if dilated is None else dilated) else 32]
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if depth == 18 else Bottleneck
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        num_in = 64
        self.channels, self.strides, total = {"stem": 64}, {"stem": 4}, 4
        for k, tap in enumerate(("low", "conv4", "conv5", "out")):
            width, stride = 64 * 2**k, STRIDES[output_stride][k]
            blocks = []
            for b in range(NUM_BLOCKS[depth][k]):
                blocks.append(block(num_in, width, stride if b == 0 else 1, dilations[k]))
                num_in = width * block.expansion
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
            total *= stride
            self.channels[tap], self.strides[tap] = num_in, total
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        parts = [self.conv1, self.bn1, *(self.get_submodule(f"layer{k}") for k in range(1, 5))]
        num_still = PARTS.index(freeze_through)
        self.freeze(parts[: num_still + 1] if num_still else [], batch_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the five taps; every stride halves with rounding up."""
        taps = {"stem": self.maxpool(self.bn1(self.conv1(images)).relu())}
        x = taps["stem"]
        for k, tap in enumerate(("low", "conv4", "conv5", "out")):
            x = taps[tap] = self.get_submodule(f"layer{k + 1}")(x)
        return taps
