# SPDX-License-Identifier: Apache-2.0
"""The golden files as tests read them: each remembers which of its arrays were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

READ: dict[str, set[str]] = {}
"""Name of a golden file -> its arrays that some test of this process has read."""


class GoldenFile(Mapping[str, np.ndarray]):
    """The arrays of one golden file by name; asking for one counts it as read, asking which there are does not."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self._arrays = {key: arrays[key] for key in arrays.files}
        self._read = READ.setdefault(path.name, set())

    def __getitem__(self, key: str) -> np.ndarray:
        array = self._arrays[key]
        self._read.add(key)
        return array

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
