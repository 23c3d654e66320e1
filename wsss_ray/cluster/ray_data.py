# SPDX-License-Identifier: Apache-2.0
"""Ray Data as a command wants it, and afterwards as it was: the session may be somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

LIMITS_SECONDS = 0.2
"""Between two looks of Ray Data at what the cluster has; its own second is too long.

It begins with no cores at all, and runs one task until it looks again: without this, every step on a machine of N cores
loses a second of N - 1 of them."""


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
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = min(before, LIMITS_SECONDS)  # type: ignore[assignment]
    try:
        yield
    finally:
        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = before
