"""Published weights: the one loader, which maps names, counts what matched and refuses what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.weight_files import read_weights
from wsss_ray.nets.weight_store import WEIGHTS, Weights, check, default_folder, fetch, locate, weights_digest

__all__ = [
    "WEIGHTS",
    "LoadReport",
    "Weights",
    "check",
    "default_folder",
    "fetch",
    "load_weights",
    "locate",
    "to_native",
    "weights_digest",
]

WRAPPERS = ("module.", "scale.", "base.", "backbone.", "encoder.", "model.", "net.", "resnet50.", "resnet101.")
"""Prefixes that checkpoints put before a trunk's own names (DataParallel, deeplab-pytorch's container, IRN)."""
MXNET_TAILS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
MXNET_NAME = re.compile(r"(res|bn)([2-7])(?:a|b(\d+))_(branch1|branch2a|branch2b1|branch2b2)_(weight|[a-z_]+)")
NUM_NAMED = 3
"""How many offending tensors an error names."""


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` did."""

    source: str
    path: Path
    digest: str
    """sha256 of the file, for the run's record."""
    num_matched: int
    leftovers: tuple[str, ...]
    """Names in the file that the backbone has no place for: classifiers and other heads."""

    def __str__(self) -> str:
        left = f"; not used: {', '.join(self.leftovers)}" if self.leftovers else ""
        return f"{self.source}: {self.num_matched} tensors matched{left}"


def load_weights(backbone: Backbone, source: str, folder: Path | None = None) -> LoadReport:
    """Fill every tensor of ``backbone`` from ``source``, a registry name (see ``WEIGHTS``) or a path.

    ``folder`` is where registry files lie (default: ``default_folder()``). Errors: ``UserError`` where the file is
    absent or damaged, a tensor of the backbone is missing or of another shape, or the stride sits elsewhere
    (torchvision's ResNet in the Caffe variant); the backbone is unchanged then.
    """
    path = locate(source, folder)
    state = check(source, folder)
    if state.verdict == "damaged":
        raise UserError(state.message)
    wanted = {key: value for key, value in backbone.state_dict().items() if not _counter(key)}
    found = to_native(read_weights(path), wanted)
    refuse_other_stride(found, wanted, source)
    kind = type(backbone).__name__
    missing = [key for key in wanted if key not in found]
    if missing:
        named = ", ".join(missing[:NUM_NAMED])
        raise UserError(
            f"{source}: lacks {len(missing)} of the {len(wanted)} tensors of {kind}, first {named}; "
            "use weights made for this backbone"
        )
    wrong = [key for key in wanted if found[key].shape != wanted[key].shape]
    if wrong:
        named = ", ".join(f"{k} {tuple(found[k].shape)} not {tuple(wanted[k].shape)}" for k in wrong[:NUM_NAMED])
        raise UserError(f"{source}: {len(wrong)} tensors do not fit {kind}, first {named}; use weights made for it")
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(found[key])
    leftovers = tuple(key for key in found if key not in wanted and not _counter(key))
    return LoadReport(source, path, weights_digest(path), len(wanted), leftovers)


def to_native(tensors: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the backbone's own names: MXNet names translated, wrappers stripped while none fits."""
    named = {mxnet_to_native(key): value for key, value in tensors.items()}
    names = set(wanted)
    while not named.keys() & names:
        prefix = next((w for w in WRAPPERS if any(key.startswith(w) for key in named)), None)
        if prefix is None:
            break
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named


def mxnet_to_native(key: str) -> str:
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


def refuse_other_stride(found: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Refuse a ResNet whose stride sits elsewhere: renamed, it would load and be quietly worse."""
    here, there = _stride_style(set(wanted)), _stride_style(set(found))
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


def _stride_style(names: set[str]) -> str:
    """Where a bottleneck ResNet's names say that its stride sits; empty for other networks."""
    if any(name.endswith("layer1.0.conv1.weight") for name in names):
        return "torchvision"
    return "caffe" if any(name.endswith("layer2.block1.reduce.conv.weight") for name in names) else ""


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
