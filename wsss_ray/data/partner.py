# SPDX-License-Identifier: Apache-2.0
"""For an image, another one that shares a class with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class PartnerIndex:
    """Images by class. KTSE's rule: one of the anchor's classes at random, then a uniformly random image that
    has it.
    """

    def __init__(self, labels: Sequence[Sequence[int] | None]) -> None:
        self._labels = [sorted(set(classes or ())) for classes in labels]
        members: dict[int, list[int]] = {}
        for index, classes in enumerate(self._labels):
            for label in classes:
                members.setdefault(label, []).append(index)
        self._members = {label: np.array(indices) for label, indices in members.items()}

    def draw(self, index: int, rng: np.random.Generator) -> int:
        """The partner of image ``index``; may be the image itself, and is for one without labels."""
        classes = self._labels[index]
        if not classes:
            return index
        members = self._members[classes[int(rng.integers(len(classes)))]]
        return int(members[int(rng.integers(len(members)))])
