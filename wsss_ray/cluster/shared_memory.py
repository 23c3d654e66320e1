# SPDX-License-Identifier: Apache-2.0
"""Where a local Ray keeps its objects: in /dev/shm, which containers often have little of."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
SHM = Path("/dev/shm")
RAYS_SHARE = 0.3
"""Of all memory is what Ray takes by itself."""
ENOUGH = 256 * 2**20
"""Bytes in /dev/shm with which runs work; names and counts are most of what they put there."""
ON_DISK = 2**30
"""Bytes of the store where it lies on the disk."""
FIX = "in a container, --shm-size=4g"


def read_free() -> int | None:
    """Free bytes in /dev/shm; None on a system without it."""
    return shutil.disk_usage(SHM).free if SHM.is_dir() else None


def choose_store() -> dict[str, Any]:
    """What ``ray.init`` is told of its object store, where /dev/shm has not what it would take.

    With too little of it the store lies on the disk, which is said in a line.
    """
    free = read_free()
    if free is None or free >= RAYS_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return {}
    if free >= ENOUGH:
        return {"object_store_memory": int(0.9 * free)}
    place = tempfile.gettempdir()
    log.warning(f"{SHM} has {free / 2**20:.0f} MB free: Ray keeps its objects in {place}, which is slower; {FIX}")
    return {"object_store_memory": ON_DISK, "_plasma_directory": place}
