# SPDX-License-Identifier: Apache-2.0
"""What a worker process keeps between tasks: Ray hands an idle process to the next task, with all that it imported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from wsss_ray.cluster.memory import keep_freed_memory

Made = TypeVar("Made")
_kept: dict[Hashable, Any] = {}


def keep(key: Hashable, make: Callable[[], Made]) -> Made:
    """What ``make`` gave in this process for ``key``; what was kept under another one goes first."""
    if key not in _kept:
        forget()
        _kept[key] = make()
    found: Made = _kept[key]
    return found


def forget() -> None:
    """Let go of what is kept."""
    _kept.clear()


def begin_work(threads: int) -> None:
    """Make this process as if it were new: so many threads of PyTorch, and a peak of memory that starts here."""
    # oneDNN keeps the code of 1024 layer shapes by itself, which images of many sizes fill. A training step of a ResNet
    # needs more than 64 and took 1.3 times as long with so few; with 256 as long as before.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    with contextlib.suppress(OSError):  # where there is no Linux the peak is the process's own
        Path("/proc/self/clear_refs").write_text("5")
