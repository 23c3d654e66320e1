# SPDX-License-Identifier: Apache-2.0
"""A folder of images and labels, large enough for a command on it to be met in its middle."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, number: int = 96, size: tuple[int, int] = (640, 480)) -> None:
    """Blurred noise of that width and height, with labels of two classes and two splits."""
    root.mkdir()
    generator = np.random.default_rng(0)
    lines = [("image", "labels", "split")]
    for place in range(number):
        small = generator.integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize(size).save(root / f"{place:03d}.jpg")
        lines.append((f"{place:03d}.jpg", "cat" if place % 2 else "dog", "val" if place % 4 == 3 else "train"))
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)
