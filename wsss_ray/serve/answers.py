# SPDX-License-Identifier: Apache-2.0
"""What earlier calls of ``wsss predict`` left in a folder: kept where it still holds, removed where it does not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from pyarrow import fs as pafs

from wsss_ray import storage
from wsss_ray.artifacts.tables import read_table
from wsss_ray.config import UserError
from wsss_ray.serve.listing import ImageRef, place_below, stamp_file

log = logging.getLogger(__name__)
STATES = ".predictions"
"""Folder with one folder of rows for each model and setting, of which one call leaves its own alone."""
Rows = dict[str, dict[str, Any]]
"""Image -> its row of the table of predictions."""


def read_rows(state: str, prefer: dict[str, str] | None = None) -> Rows:
    """Image -> its row; of a file predicted in several versions the one whose stamp ``prefer`` gives."""
    known: Rows = {}
    for name in storage.list_names(state):
        if name.endswith(".parquet"):
            for row in read_table(storage.join(state, name)).to_pylist():
                wanted = (prefer or {}).get(row["image"])
                if row["image"] not in known or row["stamp"] == wanted:
                    known[row["image"]] = row
    return known


def remove_others(out: str, state: str) -> None:
    """Remove the predictions of every other model or setting, which would mix with those of ``state``."""
    filesystem, path = storage.open_fs(storage.join(out, STATES))
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    own = state.rstrip("/").rpartition("/")[2]
    others = [info for info in infos if info.type == pafs.FileType.Directory and info.base_name != own]
    names = {name for info in others for name in read_rows(storage.join(out, STATES, info.base_name))}
    removed = remove_files(out, names)
    for info in others:
        filesystem.delete_dir(info.path)
    if removed:
        log.info(f"predict: removed {removed} predictions of another model or setting from {out}")


def keep_present(known: Rows, images: Sequence[ImageRef], out: str) -> Rows:
    """The rows whose image is asked for or still there unchanged; files of the others are removed, and counted."""
    asked = {one.image for one in images}
    gone = {image for image, row in known.items() if image not in asked and not _is_unchanged(row)}
    removed = remove_files(out, gone)
    if removed:
        log.info(f"predict: removed {removed} predictions of images that are gone or changed")
    return {image: row for image, row in known.items() if image not in gone}


def remove_broken(known: Rows, out: str) -> None:
    """Remove what was predicted for images that cannot be read any more."""
    removed = remove_files(out, [image for image, row in known.items() if row["error"] is not None])
    if removed:
        log.info(f"predict: removed {removed} predictions of images that cannot be read any more")


def remove_files(out: str, names: Iterable[str]) -> int:
    """Remove the mask and the overlay of images; how many images had one."""
    count = 0
    for name in names:
        found = False
        for inner in (f"masks/{name}.png", f"overlays/{name}.jpg"):
            filesystem, path = storage.open_fs(place_below(out, inner))
            if filesystem.get_file_info(path).is_file:
                filesystem.delete_file(path)
                found = True
        count += found
    return count


def _is_unchanged(row: dict[str, Any]) -> bool:
    """Whether the image of a row is where it was; of one inside a shard, whether the shard is there."""
    try:
        filesystem, path = storage.open_fs(row["where"])
        info = filesystem.get_file_info(path)
    except (OSError, UserError):
        return False
    return bool(info.is_file) and ("-" not in row["stamp"] or stamp_file(info) == row["stamp"])
