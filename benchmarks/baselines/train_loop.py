# SPDX-License-Identifier: Apache-2.0
"""Training by hand: one batch that lies on the device, forward, backward, update; nothing is loaded or logged."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


def wait(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train_by_hand(
    loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, device: torch.device, steps: int
) -> float:
    """Seconds of a step; ``loss`` computes that of the batch."""
    start = wait(device)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
    return (wait(device) - start) / steps
