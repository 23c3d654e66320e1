# SPDX-License-Identifier: Apache-2.0
"""What the steps of one epoch come to, which a training that is broken off in its middle takes with it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.engine.validate import World

LOOK_SECONDS = 0.5
"""On a GPU, between two looks at the losses: each waits for all steps before it."""


@dataclass
class Epoch:
    """What the steps of an epoch came to."""

    step: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum of every loss part over the steps, float64, on the device."""
    num_images: int = 0
    unseen: list[dict[str, Tensor]] = field(default_factory=list)
    """Loss parts of the last steps, not looked at yet."""
    last_look: float = 0.0
    seconds: float = 0.0
    """Before it was broken off."""
    start: float = field(default_factory=time.monotonic)

    @classmethod
    def resume(cls, saved: dict[str, Any], device: torch.device) -> Epoch:
        """From what ``save`` gave."""
        sums = {name: value.to(device) for name, value in saved["sums"].items()}
        return cls(saved["step"], sums, saved["num_images"], seconds=saved["seconds"])

    def save(self, world: World) -> dict[str, Any]:
        """For ``resume``, on any number of workers: the sums are their means. Every worker must come here."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        if world.size > 1:
            means = mean_over_workers({name: float(value) for name, value in sums.items()}, world)
            sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
        return {"step": self.step, "sums": sums, "num_images": self.num_images, "seconds": self.count_seconds()}

    def count_seconds(self) -> float:
        """Spent on it so far."""
        return self.seconds + time.monotonic() - self.start

    def add(self, parts: dict[str, Tensor], num_images: int) -> None:
        """Count one step, without waiting for it."""
        for name, value in parts.items():
            value = value.double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.unseen.append(parts)
        self.num_images += num_images
        self.step += 1

    def is_due(self, device: torch.device) -> bool:
        """Whether to look at the losses now."""
        return device.type == "cpu" or time.monotonic() - self.last_look > LOOK_SECONDS

    def look(self) -> float:
        """The total loss of the last step; UserError, naming the first of the unseen steps whose loss is not finite."""
        totals = torch.stack([parts["total"] for parts in self.unseen]).tolist()
        for place, total in enumerate(totals):
            if not math.isfinite(total):
                bad = ", ".join(name for name, value in self.unseen[place].items() if not torch.isfinite(value))
                step = self.step - len(totals) + place
                raise UserError(f"train: the loss is not finite at step {step} ({bad}); lower train.optimizer.lr")
        self.unseen.clear()
        self.last_look = time.monotonic()
        return float(totals[-1])


def mean_over_workers(values: dict[str, float], world: World) -> dict[str, float]:
    """The mean of each value over the workers that have it."""
    if world.size == 1:
        return values
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, values)
    return {name: float(np.mean([worker[name] for worker in gathered if name in worker])) for name in values}
