# SPDX-License-Identifier: Apache-2.0
"""What every saliency detector is: a function of an image, and what made its maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Find = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) uint8 RGB of at least 8 x 8 -> (H, W) float32, soft saliency in [0, 1]; picklable."""


@dataclass(frozen=True)
class Detector:
    """A detector that is ready to be used; picklable, so that it can be sent to workers."""

    find: Find
    made: dict[str, Any]
    """What ``saliency.json`` says of it: ``library`` with its version; a trained one also its ``network`` and whatever
    else changes maps."""


def stretch(values: np.ndarray) -> np.ndarray:
    """Shifted and scaled to [0, 1]; a constant becomes 0."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return scaled
