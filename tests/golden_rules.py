# SPDX-License-Identifier: Apache-2.0
"""The two rules by which the golden files' network weights are made from tensor names (set A and set B)."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Shape = Sequence[int]


def _seed(text: str) -> int:
    return zlib.crc32(text.encode())


def set_a(key: str, shape: Shape, salt: str = "", kind: str | None = None, gain: float = 1.0) -> np.ndarray:
    """Set A (files 01-10): one tensor, float32.

    ``key`` is the name the rule is seeded by; ``kind`` says what the tensor is (``weight``, ``gamma``, ``beta``,
    ``mean``, ``var``) and is read off the key where it is None.
    """
    noise = np.random.default_rng(_seed(salt + key)).standard_normal(tuple(shape), dtype=np.float32).astype(np.float64)
    kind = kind or _kind(key)
    if kind == "gamma":
        value = 1 + 0.1 * noise
        if key.startswith("deeplab/") and key.endswith("increase.bn.weight"):
            value = 0.5 * value
    elif kind in ("beta", "mean"):
        value = 0.1 * noise
    elif kind == "var":
        value = np.exp(0.1 * noise)
    else:
        value = gain * noise * math.sqrt(1 / math.prod(shape[1:]))
    return value.astype(np.float32)


def _kind(key: str) -> str:
    last = re.split(r"[._]", key)[-1]
    if last in ("gamma", "beta", "mean", "var"):
        return last
    if last == "bias":
        return "beta"
    return "gamma" if key.endswith("bn.weight") else "weight"


def set_b(key: str, shape: Shape, prefix: str, gain: float = 1.0) -> np.ndarray:
    """Set B (files b01-b15): one tensor, float32; ``prefix`` is the file's ``rule_prefix``."""
    noise = np.random.default_rng(_seed(prefix + key)).standard_normal(tuple(shape))
    if key.endswith("running_mean") or key.endswith("bias"):
        value = 0.1 * noise
    elif key.endswith("running_var"):
        value = 1 + 0.5 * np.abs(noise)
    elif len(shape) == 1:
        value = 1 + 0.1 * noise
    else:
        value = noise * gain / math.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def set_b_input(key: str, shape: Shape, prefix: str, scale: float = 1.0) -> np.ndarray:
    """Set B: an input array ``rule(key, shape, scale)``, float32."""
    noise = np.random.default_rng(_seed(prefix + key)).standard_normal(tuple(int(s) for s in shape))
    return (scale * noise).astype(np.float32)


def mxnet_name(key: str) -> str:
    """ResNet-38 state-dict name -> the MXNet name that set A seeds by (``b3_1.bn_branch2b1.running_mean``)."""
    parts = key.split(".")
    tail = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    if parts[0] == "conv1a":
        return "conv1a_weight"
    if parts[0] == "bn7":
        return f"bn7_{tail[parts[1]]}"
    level, _, further = parts[0][1:].partition("_")
    site = level + (f"b{further}" if further else "a")
    what, _, branch = parts[1].partition("_")
    return f"res{site}_{branch}_weight" if what == "conv" else f"bn{site}_{branch}_{tail[parts[2]]}"


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((k, v) for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked"))


@torch.no_grad()
def fill_resnet38_set_a(trunk: nn.Module, salt: str = "") -> None:
    """Give a ResNet-38 trunk the set-A weights in place."""
    for key, tensor in _tensors(trunk):
        tensor.copy_(torch.from_numpy(set_a(mxnet_name(key), tensor.shape, salt)))


@torch.no_grad()
def fill_set_b(module: nn.Module, prefix: str, gain: float = 1.0, under: str = "", skip: Sequence[str] = ()) -> None:
    """Give every tensor of ``module`` its set-B value in place.

    A tensor's key is ``under`` + its state-dict name; names that hold one of ``skip`` are left alone.
    """
    for key, tensor in _tensors(module):
        if not any(part in key for part in skip):
            tensor.copy_(torch.from_numpy(set_b(under + key, tensor.shape, prefix, gain)))
