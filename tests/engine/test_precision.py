# SPDX-License-Identifier: Apache-2.0
"""bfloat16 is used only where the device computes in it."""

from __future__ import annotations

import pytest
import torch

from wsss_ray.engine import precision
from wsss_ray.engine.precision import has_bf16, use_bf16


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_a_cpu_is_asked(monkeypatch: pytest.MonkeyPatch, found: dict[str, object], expected: bool) -> None:
    has_bf16.cache_clear()
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert use_bf16("bf16", torch.device("cpu")) is expected
    assert not use_bf16("fp32", torch.device("cpu"))
    has_bf16.cache_clear()
