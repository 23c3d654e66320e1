# SPDX-License-Identifier: Apache-2.0
"""Splits for images that come without any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt

from wsss_ray.data.options import FileOptions
from wsss_ray.data.source import Item

_ORDER = ("train", "val", "test")


class SplitOptions(FileOptions):
    """Options of a source whose files may say no split."""

    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Part of the images that goes to val where no splits are given."""
    seed: NonNegativeInt = 0
    """Of the draw."""


def split_items(items: Iterable[Item], options: SplitOptions) -> tuple[list[Item], dict[str, Any]]:
    """Items with drawn splits (``draw_splits``), and what a manifest says of them."""
    drawn = draw_splits(list(items), options.val_fraction, options.seed)
    return drawn, {"splits": {"drawn": True, "val_fraction": options.val_fraction, "seed": options.seed}}


def draw_splits(items: list[Item], val_fraction: float, seed: int) -> list[Item]:
    """Items with split ``train`` or ``val``: classes from the rarest on, each gives about ``val_fraction`` of its
    images to ``val``.

    A class with one image keeps it in ``train``. The draw depends on ids, labels and seed, not on the order of the
    items.
    """
    rng = np.random.default_rng(seed)
    ordered = sorted(items, key=lambda item: item.image_id)
    counts = Counter(label for item in ordered for label in item.labels or ())
    side: dict[str, str] = {}
    for label in [*sorted(counts, key=lambda label: (counts[label], label)), None]:
        has = [item for item in ordered if (label in (item.labels or ()) if label is not None else not item.labels)]
        free = [item for item in has if item.image_id not in side]
        target = min(int(val_fraction * len(has) + 0.5), max(len(has) - 1, 0))
        missing = max(0, target - sum(side.get(item.image_id) == "val" for item in has))
        chosen = {free[place].image_id for place in rng.permutation(len(free))[:missing].tolist()}
        side.update({item.image_id: "val" if item.image_id in chosen else "train" for item in free})
    return [replace(item, splits=(side[item.image_id],)) for item in ordered]


def order_splits(items: Iterable[Item]) -> tuple[str, ...]:
    """The splits in use: train, val, test, then others by name."""
    used = {split for item in items for split in item.splits}
    return tuple(sorted(used, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))
