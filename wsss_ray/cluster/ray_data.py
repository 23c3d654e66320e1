# SPDX-License-Identifier: Apache-2.0
"""Ray Data as a command wants it, and afterwards as it was: the session may be somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

FIRST_LOOKS = 0.1
"""Seconds between two looks of Ray Data at what the cluster has, as long as it knows of no core.

It begins every step so, runs one task, and looks again after a second: of N cores N - 1 would be idle for as long. Each
look costs some milliseconds, so that later ones stay as rare as they are."""


@contextlib.contextmanager
def adapt_ray_data() -> Iterator[None]:
    """No bars of its own, and cores that it knows of at once."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        with _look_often():
            yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before


@contextlib.contextmanager
def _look_often() -> Iterator[None]:
    """A number inside Ray, which no setting changes; a Ray without it stays as it is."""
    try:
        from ray.data._internal.execution.resource_manager import ResourceManager

        before = ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S
    except (ImportError, AttributeError):
        yield
        return
    if isinstance(before, property):  # inside another one
        yield
        return

    def choose_seconds(manager: Any) -> float:
        limits = getattr(manager, "_global_limits", None)
        return FIRST_LOOKS if limits is not None and not limits.cpu else before

    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = property(choose_seconds)  # type: ignore[assignment]
    try:
        yield
    finally:
        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = before
