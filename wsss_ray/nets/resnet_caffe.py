# SPDX-License-Identifier: Apache-2.0
"""ResNet-50/101 as in Caffe's DeepLab-v2 (and deeplab-pytorch): stride on the first 1x1, ceil-mode pool, dilations."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone, BatchNormMode, check_output_stride
from wsss_ray.nets.resnet import DILATIONS, NUM_BLOCKS, STRIDES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, if wanted, ReLU."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True):
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(num_in, num_out, kernel, stride, padding, dilation, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers: list[tuple[str, nn.Module]] = [("conv", conv), ("bn", nn.BatchNorm2d(num_out))]
        super().__init__(OrderedDict(layers + ([("relu", nn.ReLU())] if relu else [])))


class Bottleneck(nn.Module):
    """1x1 with the stride, dilated 3x3, 1x1; the shortcut of a stage's first block is strided too."""

    def __init__(self, num_in: int, num_out: int, stride: int, dilation: int, projects: bool):
        super().__init__()
        width = num_out // 4
        self.reduce = ConvNorm(num_in, width, 1, stride)
        self.conv3x3 = ConvNorm(width, width, 3, dilation=dilation)
        self.increase = ConvNorm(width, num_out, 1, relu=False)
        self.shortcut = ConvNorm(num_in, num_out, 1, stride, relu=False) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h', w')."""
        branch: Tensor = self.increase(self.conv3x3(self.reduce(x)))
        skip: Tensor = self.shortcut(x)
        return (branch + skip).relu()


class ResNetCaffe(Backbone):
    """ResNet as in DeepLab v2 (Chen et al. 2018), with deeplab-pytorch's module names (``layer1`` is the stem).

    Its checkpoints load, torchvision's cannot. Taps ``stem``, ``low``, ``conv4``, ``conv5``, ``out`` after the stem and
    each stage. Output stride 8 (default, dilations 1, 1, 2, 4), 16 (1, 1, 1, 2) or 32. Its published weights see BGR in
    0..255 minus a mean: ``input_space`` says what is given, "imagenet" (RGB normalised by the ImageNet mean and
    deviation, converted here) or "caffe" (already in that form). ``batch_norm`` "frozen" as released.
    """

    output_strides = (8, 16, 32)

    def __init__(
        self,
        output_stride: int = 8,
        depth: Literal[50, 101] = 101,
        batch_norm: BatchNormMode = "frozen",
        input_space: Literal["imagenet", "caffe"] = "imagenet",
    ):
        super().__init__()
        check_output_stride(f"resnet{depth}_caffe", output_stride, self.output_strides)
        if input_space not in ("imagenet", "caffe"):
            raise UserError(f"input_space {input_space!r} is unknown; allowed: imagenet, caffe")
        self.input_space = input_space
        pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.layer1 = nn.Sequential(OrderedDict(conv1=ConvNorm(3, 64, 7, 2), pool=pool))
        with torch.no_grad():  # the images it sees are some 60 times larger than normalised ones
            self.layer1.get_parameter("conv1.conv.weight").mul_(1 / 64)
        self.channels, self.strides, num_in, total = {"stem": 64}, {"stem": 4}, 64, 4
        for k, tap in enumerate(("low", "conv4", "conv5", "out")):
            num_out, stride, dilation = 256 * 2**k, STRIDES[output_stride][k], DILATIONS[output_stride][k]
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for b in range(NUM_BLOCKS[depth][k]):
                blocks[f"block{b + 1}"] = Bottleneck(num_in, num_out, stride if b == 0 else 1, dilation, b == 0)
                num_in = num_out
            self.add_module(f"layer{k + 2}", nn.Sequential(blocks))
            total *= stride
            self.channels[tap], self.strides[tap] = num_out, total
        self.freeze([], batch_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the five taps; 321 gives 41 x 41, 512 and 513 give 65 x 65."""
        x = convert_to_caffe(images) if self.input_space == "imagenet" else images
        taps = {}
        for k, tap in enumerate(("stem", "low", "conv4", "conv5", "out")):
            x = taps[tap] = self.get_submodule(f"layer{k + 1}")(x)
        return taps


def convert_to_caffe(images: Tensor) -> Tensor:
    """(B, 3, H, W) RGB normalised by the ImageNet mean and deviation -> BGR in 0..255 minus Caffe's mean colour."""
    std, mean, caffe = (images.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN, CAFFE_MEAN_BGR))
    return (images * std + mean).flip(1) * 255 - caffe
