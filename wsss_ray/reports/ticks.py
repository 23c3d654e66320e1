# SPDX-License-Identifier: Apache-2.0
"""Where the axes of a chart are divided."""

from __future__ import annotations

import math


def find_ticks(low: float, high: float, count: int = 5, inside: bool = False) -> list[float]:
    """About ``count`` round numbers that enclose [low, high] (or lie within it)."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
    start, stop = (
        first(low / step - 1e-9 if inside else low / step + 1e-9),
        last(high / step + (1e-9 if inside else -1e-9)),
    )
    return [round(place * step, 12) for place in range(start, max(stop, start + (0 if inside else 1)) + 1)]
