# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet-38 "A1": the pre-activation backbone of PSA, SEAM, EPS, L2G, SMAF, SSSS, WS-FCN and KTSE."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_ray.nets.backbone import Backbone, BatchNormMode, check_output_stride

LEVELS = {"b2": (64, 128, 128, 3), "b3": (128, 256, 256, 3), "b4": (256, 512, 512, 6), "b5": (512, 512, 1024, 3)}
"""Basic-block levels: input, middle and output channels, number of blocks."""


class BasicBlock(nn.Module):
    """BN-ReLU-conv twice; the projection, where there is one, reads the activated input (Wu et al. 2016, "A1")."""

    def __init__(self, num_in: int, num_mid: int, num_out: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)):
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(num_in)
        self.conv_branch2a = nn.Conv2d(num_in, num_mid, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(num_mid)
        self.conv_branch2b1 = nn.Conv2d(num_mid, num_out, 3, padding=second, dilation=second, bias=False)
        self.projects = num_in != num_out or stride != 1
        if self.projects:
            self.conv_branch1 = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in, h, w) -> (block output, the activated input)."""
        active = self.bn_branch2a(x).relu()
        skip = self.conv_branch1(active) if self.projects else x
        branch = self.conv_branch2b1(self.bn_branch2b1(self.conv_branch2a(active)).relu())
        return skip + branch, active


class Bottleneck(nn.Module):
    """1x1 to a quarter, dilated 3x3 to a half, 1x1 to the full width; channel dropout before the last two."""

    def __init__(self, num_in: int, num_out: int, dilation: int, dropout: float):
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(num_in)
        self.conv_branch1 = nn.Conv2d(num_in, num_out, 1, bias=False)
        self.conv_branch2a = nn.Conv2d(num_in, num_out // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(num_out // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(num_out // 4, num_out // 2, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(num_out // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(num_out // 2, num_out, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, in, h, w) -> (block output, the activated input)."""
        active = self.bn_branch2a(x).relu()
        branch = self.dropout_2b1(self.bn_branch2b1(self.conv_branch2a(active)).relu())
        branch = self.dropout_2b2(self.bn_branch2b2(self.conv_branch2b1(branch)).relu())
        return self.conv_branch1(active) + self.conv_branch2b2(branch), active


class ResNet38(Backbone):
    """Wide ResNet-38 "A1" (Wu et al. 2016): output stride 8, 4096 non-negative channels.

    Module names are those of the PSA family's checkpoints.

    Taps: ``low`` raw output of b3 (signed; SSSS), ``conv4`` / ``conv5`` the activated maps entering b5 / b6 (PSA,
    L2G), ``out`` = conv6. ``dropout`` is the channel dropout of b6 and b7: (0.3, 0.5) everywhere but in KTSE, which
    has (0.2, 0.2).
    BatchNorm is frozen altogether, and so are conv1a and b2 unless ``freeze_early`` is off.
    """

    output_strides = (8,)
    channels = {"low": 256, "conv4": 512, "conv5": 1024, "out": 4096}
    strides = {"low": 4, "conv4": 8, "conv5": 8, "out": 8}

    def __init__(
        self,
        output_stride: int = 8,
        dropout: tuple[float, float] = (0.3, 0.5),
        batch_norm: BatchNormMode = "frozen",
        freeze_early: bool = True,
    ):
        super().__init__()
        check_output_stride("resnet38", output_stride, self.output_strides)
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        for level, (num_in, num_mid, num_out, num_blocks) in LEVELS.items():
            dilated = level == "b5"
            self.add_module(
                level, BasicBlock(num_in, num_mid, num_out, 1 if dilated else 2, (1, 2) if dilated else (1, 1))
            )
            for k in range(1, num_blocks):
                block = BasicBlock(num_out, num_mid, num_out, dilations=(2, 2) if dilated else (1, 1))
                self.add_module(f"{level}_{k}", block)
        self.b6 = Bottleneck(1024, 2048, dilation=4, dropout=dropout[0])
        self.b7 = Bottleneck(2048, 4096, dilation=4, dropout=dropout[1])
        self.bn7 = nn.BatchNorm2d(4096)
        early = [self.conv1a, *self.level("b2")] if freeze_early else []
        self.freeze(early, batch_norm)

    def level(self, name: str) -> list[nn.Module]:
        """The blocks of level ``name``, in order."""
        return [m for key, m in self.named_children() if key == name or key.startswith(name + "_")]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> the four taps; 448 gives 56 x 56, 321 gives 41 x 41."""
        x = self.conv1a(images)
        for block in self.level("b2") + self.level("b3"):
            x, _ = block(x)
        low = x
        for block in self.level("b4"):
            x, _ = block(x)
        x, conv4 = self.get_submodule("b5")(x)
        for block in self.level("b5")[1:]:
            x, _ = block(x)
        x, conv5 = self.b6(x)
        x, _ = self.b7(x)
        return {"low": low, "conv4": conv4, "conv5": conv5, "out": self.bn7(x).relu()}
