# SPDX-License-Identifier: Apache-2.0
"""Files at any URI that pyarrow opens, written so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs as pafs
from pydantic import BaseModel, ValidationError

from wsss_ray.config import UserError

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a text begins that spreadsheets would run."""


OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems where an object is there once it is written whole, and where moving one copies it."""
_QUERY_FIRST = re.compile(r"^(\w+://)\[([^\]]*=[^\]]*)\](.*)$")


def open_fs(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI or local path, and the path inside it."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(_QUERY_FIRST.sub(r"\1\3?\2", uri))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{uri}: cannot open this location ({error}); use a local path or an s3://, gs://, hdfs:// URI"
        ) from error
    return filesystem, path


def make_absolute(uri: str) -> str:
    """A URI with its query first; a local path made absolute, so that workers with another working folder find it.

    ``s3://bucket/a?region=x`` becomes ``s3://[region=x]bucket/a``: what is appended is then always part of the path.
    """
    if "://" not in uri:
        return str(Path(uri).expanduser().absolute())
    plain, mark, query = uri.partition("?")
    if not mark or plain.startswith("file:"):
        return uri
    scheme, _, place = plain.partition("://")
    return f"{scheme}://[{query.replace('/', '%2F').replace(']', '%5D')}]{place}" if query else plain


def join(uri: str, *names: str) -> str:
    """A location below another one."""
    whole = make_absolute(uri) if "://" in uri else uri
    return "/".join([whole.rstrip("/"), *names])


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_fs(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_names(uri: str) -> list[str]:
    """Sorted names of the files directly in a folder, without temporary ones; empty where there is no folder."""
    filesystem, path = open_fs(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.is_file and not info.base_name.startswith(".tmp-"))


def list_sizes(uri: str) -> dict[str, int]:
    """Size in bytes of the files directly in a folder, by name; empty where there is no folder."""
    filesystem, path = open_fs(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return {info.base_name: info.size for info in infos if info.is_file}


def stamp(uri: str) -> str | None:
    """A text that changes when a file does, from its size and time; None where there is none."""
    filesystem, path = open_fs(uri)
    info = filesystem.get_file_info(path)
    return f"{info.size}/{info.mtime_ns}" if info.type == pafs.FileType.File else None


def remove(uri: str) -> None:
    """Remove a file where there is one."""
    filesystem, path = open_fs(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder with all in it where there is one."""
    filesystem, path = open_fs(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(path)


def read_local(path: str | Path, most: int | None = None) -> bytes:
    """A whole file of this machine; OSError for a pipe, socket or device, whose reading might never end, and for a
    file of more than ``most`` bytes.
    """
    if not Path(path).is_file() and os.path.exists(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "not a regular file")
    if most is not None and os.path.isfile(path) and (size := os.path.getsize(path)) > most:
        raise OSError(errno.EFBIG, f"{size / 1e9:.1f} GB, and {most / 1e9:g} GB are the limit")
    return Path(path).read_bytes()


def read_bytes(uri: str) -> bytes:
    """A whole file."""
    filesystem, path = open_fs(uri)
    with filesystem.open_input_stream(path) as stream:
        data: bytes = stream.read()
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """``write_chunks`` of a file that is in memory."""
    write_chunks(uri, (data,))


def write_chunks(uri: str, chunks: Iterable[bytes]) -> None:
    """Write a file under a temporary name, then rename it: it is there whole or not at all.

    Raises UserError where the place is full or read-only, naming it.
    """
    filesystem, path = open_fs(uri)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.tmp-{uuid.uuid4().hex}-{name}"
    try:
        filesystem.create_dir(folder, recursive=True)
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_through(temporary, chunks)
            os.replace(temporary, path)
            return
        if filesystem.type_name in OBJECT_STORES:
            temporary = path
        with filesystem.open_output_stream(temporary) as stream:
            for chunk in chunks:
                stream.write(chunk)
        if temporary != path:
            filesystem.move(temporary, path)
    except BaseException as error:
        if isinstance(filesystem, pafs.LocalFileSystem) and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{uri}: cannot write ({error}); free some space there or choose another --out") from error
        raise


def _write_through(path: str, chunks: Iterable[bytes]) -> None:
    """A file whose bytes are on the disk before it is renamed: a power cut leaves no empty file under its name."""
    with open(path, "wb") as stream:
        stream.writelines(chunks)
        stream.flush()
        os.fsync(stream.fileno())


DISK_FULL = "no space left on the disk; free some there and run the same command to resume"


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, also one that a worker or SQLite reports in words."""
    while error is not None:
        if any(words in str(error) for words in ("No space left on device", "database or disk is full")):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_json(uri: str) -> Any:
    """A JSON file; UserError names the file when it is not JSON, or is a folder."""
    try:
        return json.loads(read_bytes(uri))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not valid JSON ({error}); delete it or restore it") from error


def write_json(uri: str, value: Any) -> None:
    """A JSON file with sorted keys, written atomically and piece by piece; models and dataclasses become objects."""
    pieces = json.JSONEncoder(indent=1, sort_keys=True, default=_dump_model).iterencode(value)
    write_chunks(uri, (piece.encode() for piece in pieces))


def digest_json(value: Any) -> str:
    """SHA-256 of a value as JSON without spaces, keys sorted, taken piece by piece, in hexadecimal."""
    hasher = hashlib.sha256()
    for piece in json.JSONEncoder(separators=(",", ":"), sort_keys=True, default=_dump_model).iterencode(value):
        hasher.update(piece.encode())
    return hasher.hexdigest()


def _dump_model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


CHECKSUM = "checksum"
"""The key of a record's own checksum."""
Record = TypeVar("Record", bound=BaseModel)


def write_record(uri: str, value: Mapping[str, Any]) -> None:
    """A record: a JSON object with the checksum of all else in it, written atomically."""
    # As it will be read: keys are text then.
    plain = json.loads(json.dumps(value))
    write_json(uri, {**plain, CHECKSUM: sum_record(plain)})


def sum_record(value: Mapping[str, Any]) -> str:
    """CRC-32 of a record's canonical JSON without its checksum, 8 hexadecimal digits."""
    plain = {key: entry for key, entry in value.items() if key != CHECKSUM}
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def read_record(uri: str, model: type[Record], fix: str) -> Record:
    """A record of a known form; UserError, ending with ``fix``, where it is damaged or of another version.

    One without a checksum is of the first versions, and taken as it is.
    """
    try:
        value = json.loads(read_bytes(uri))
        found = model.model_validate(value)
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error}); {fix}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"{uri}: damaged or of another version ({key}: {first['msg']}); {fix}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: damaged ({error}); {fix}") from None
    if CHECKSUM in value and value[CHECKSUM] != sum_record(value):
        raise UserError(f"{uri}: checksum mismatch; {fix}")
    return found


def format_csv(lines: Iterable[Sequence[object]]) -> bytes:
    """A CSV file, UTF-8, one line each.

    Spreadsheets run a cell that begins with ``= + - @``, a tab or a line break as a formula, whoever named the file it
    speaks of: an apostrophe before it makes it text. Numbers stay numbers.
    """
    return "".join(_format_line([_as_text(cell) for cell in line]) for line in lines).encode()


def _format_line(cells: Sequence[object]) -> str:
    """Ends in a line feed alone; written with a carriage return first, so that cells with either are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _as_text(cell: object) -> object:
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def find_local(uri: str) -> Path | None:
    """The path of a local location, None for a remote one."""
    filesystem, path = open_fs(uri)
    return Path(path) if isinstance(filesystem, pafs.LocalFileSystem) else None
