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


def translate_names(tensors: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the backbone's own names: MXNet names translated, wrappers stripped while none fits."""
    named = {translate_mxnet_name(key): value for key, value in tensors.items()}
    names = set(wanted)
    while not named.keys() & names:
        prefix = next((w for w in WRAPPERS if any(key.startswith(w) for key in named)), None)
        if prefix is None:
            break
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named


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
