# SPDX-License-Identifier: Apache-2.0
"""The files of finished artifacts: what each held when its step ended, and whether it still does."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from wsss_ray import storage
from wsss_ray.config import UserError

RECORD = "artifact.json"
"""Written last: a folder that holds it is finished."""
LOCK = ".lock"
"""The file by which a folder is held."""
MARK = ".damaged"
"""Left where damage was found, by whoever read it: the next run looks at every byte, and makes the step again."""
FIX = "'wsss run' with the same recipe and --out computes it again"
DATA = (".parquet", ".safetensors")
"""Endings of what the content digest covers."""


class FileInfo(BaseModel):
    """Size and CRC-32 of a file."""

    size: int
    crc: int

    @staticmethod
    def of(data: bytes) -> FileInfo:
        """Of these bytes."""
        return FileInfo(size=len(data), crc=zlib.crc32(data))


class ArtifactRecord(BaseModel, extra="allow"):
    """What every ``artifact.json`` holds; a stage adds its own."""

    files: dict[str, FileInfo] = {}
    """Empty for artifacts of the first versions, whose files are taken as they are."""
    seconds: float = 0.0


class DamagedError(UserError):
    """A file is not what was written."""


def describe_files(folder: str) -> dict[str, Any]:
    """``files`` and ``content`` of a record, from all files in a folder, each read once.

    Content digests cover names and bytes of the data files (Parquet, safetensors) alone: equal runs have equal ones.
    """
    hasher, files = hashlib.sha256(), {}
    for name in storage.list_names(folder):
        if name in (RECORD, MARK, LOCK):
            continue
        data = storage.read_bytes(storage.join(folder, name))
        files[name] = FileInfo.of(data).model_dump()
        if name.endswith(DATA):
            hasher.update(name.encode())
            hasher.update(data)
    return {"files": files, "content": hasher.hexdigest()[:16]}


def read_file(folder: str, name: str) -> bytes:
    """A file of an artifact; DamagedError where it is gone, or not what the folder's record says.

    In a folder without a record, whose step is not finished, it is read as it is.
    """
    where = storage.join(folder, name)
    try:
        data = storage.read_bytes(where)
    except OSError as error:
        raise DamagedError(f"{where}: cannot be read ({error}); {FIX}") from None
    expected = _read_files(folder).get(name)
    if expected is not None and FileInfo.of(data) != expected:
        mark_damaged(folder)
        raise DamagedError(f"{where}: checksum mismatch; {FIX}")
    return data


def read_parquet(folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file of an artifact, verified; DamagedError as ``read_file``."""
    return parse_parquet(read_file(folder, name), storage.join(folder, name), columns)


def parse_parquet(data: bytes, where: str, columns: list[str] | None = None) -> pa.Table:
    """Bytes of a Parquet file -> its table; DamagedError where they are none, or a page's checksum is wrong."""
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DamagedError(f"{where}: damaged ({str(error).splitlines()[0]}); {FIX}") from None


def find_damage(folder: str, record: ArtifactRecord, whole: bool = True) -> list[str]:
    """Names of an artifact's files that are gone or changed; without ``whole`` by their sizes alone, unless somebody
    who read them found damage.
    """
    sizes = storage.list_sizes(folder)
    whole = whole or MARK in sizes
    damaged = [name for name, info in record.files.items() if sizes.get(name) != info.size]
    for name in sorted(record.files.keys() - set(damaged)) if whole else ():
        if FileInfo.of(storage.read_bytes(storage.join(folder, name))) != record.files[name]:
            damaged.append(name)
    if MARK in sizes and not damaged:
        storage.remove(storage.join(folder, MARK))
    return damaged


def mark_damaged(folder: str) -> None:
    """Let the next run know of damage that was found in an artifact; not where nothing can be written."""
    with contextlib.suppress(UserError, OSError):
        storage.write_bytes(storage.join(folder, MARK), b"")


def _read_files(folder: str) -> dict[str, FileInfo]:
    where = storage.join(folder, RECORD)
    stamp = storage.stamp(where)
    return {} if stamp is None else _parse_files(where, stamp)


@lru_cache(maxsize=256)
def _parse_files(where: str, stamp: str) -> dict[str, FileInfo]:
    return storage.read_record(where, ArtifactRecord, FIX).files
