# SPDX-License-Identifier: Apache-2.0
"""Where bfloat16 is worth it: a CPU without its instructions emulates it, slower than fp32 and less exact."""

from __future__ import annotations

from functools import lru_cache

import torch

from wsss_ray.config import Precision as Precision


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether networks run under bfloat16 autocast on this device."""
    return precision == "bf16" and has_bf16(device.type)


@lru_cache
def has_bf16(kind: str) -> bool:
    """Whether ``cpu`` or ``cuda`` of this machine computes in bfloat16; True where torch does not tell."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    read = getattr(torch.cpu, "get_capabilities", None)
    if kind != "cpu" or read is None:
        return True
    found = read()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))
