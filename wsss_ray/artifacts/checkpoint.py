# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of a training that is not finished: its last files, and a record written after them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import BaseModel

from wsss_ray import storage
from wsss_ray.artifacts.files import FileInfo
from wsss_ray.config import UserError

log = logging.getLogger(__name__)
FOLDER = "checkpoints"
RECORD = "checkpoint.json"


class CheckpointRecord(BaseModel):
    """Which files belong together."""

    epoch: int
    """Their number."""
    files: dict[str, FileInfo]


def has_checkpoint(out: str) -> bool:
    """Whether a training below ``out`` got as far as its first one."""
    return storage.exists(storage.join(out, FOLDER, RECORD))


def write_checkpoint(out: str, number: int, files: Mapping[str, bytes]) -> None:
    """Keep files below ``out``, and no longer those of the checkpoint before; each has a number of its own."""
    folder = storage.join(out, FOLDER)
    before = storage.list_names(folder)
    names = {name: _name_file(number, name) for name in files}
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, names[name]), data)
    infos = {name: FileInfo.of(data).model_dump() for name, data in files.items()}
    storage.write_record(storage.join(folder, RECORD), {"epoch": number, "files": infos})
    for old in set(before) - {RECORD, *names.values()}:
        storage.remove(storage.join(folder, old))


def read_checkpoint(out: str) -> dict[str, bytes] | None:
    """The last files by name; None where there are none, or damaged ones: training begins anew then."""
    folder = storage.join(out, FOLDER)
    where = storage.join(folder, RECORD)
    if not storage.exists(where):
        return None
    try:
        record = storage.read_record(where, CheckpointRecord, "training begins anew")
        return {name: _read(folder, _name_file(record.epoch, name), info) for name, info in record.files.items()}
    except UserError as error:
        log.warning("%s", error)
        return None


def remove_checkpoints(out: str) -> None:
    """Remove what a finished training no longer needs."""
    storage.remove_folder(storage.join(out, FOLDER))


def _name_file(number: int, name: str) -> str:
    return f"{number:05d}-{name}"


def _read(folder: str, name: str, info: FileInfo) -> bytes:
    where = storage.join(folder, name)
    try:
        data = storage.read_bytes(where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error}); training begins anew") from None
    if FileInfo.of(data) != info:
        raise UserError(f"{where}: damaged, training begins anew")
    return data
