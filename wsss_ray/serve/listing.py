# SPDX-License-Identifier: Apache-2.0
"""Which images ``wsss predict`` is asked about: files, folders, URIs and prepared data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pyarrow import fs as pafs

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.files import is_image, is_system
from wsss_ray.data.manifest import MANIFEST, load_manifest
from wsss_ray.data.shards import read_shard_table


@dataclass(frozen=True)
class ImageRef:
    """One image to predict."""

    image: str
    """Its name in the table and, with an ending, below ``masks/`` and ``overlays/``."""
    where: str
    """Path or URI of the image, or of the shard that holds it."""
    stamp: str
    """Changes when the file does."""
    row: str | None = None
    """The id inside a shard."""


def list_images(places: Sequence[str], out: str) -> list[ImageRef]:
    """Every image of files, folders (searched to the bottom), URIs and prepared data sets, but none in ``out``."""
    found: list[ImageRef] = []
    for place in places:
        uri = make_absolute(place)
        filesystem, path = storage.open_fs(uri)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"{place}: no such image or folder; correct the path")
        if info.type not in (pafs.FileType.File, pafs.FileType.Directory):
            raise UserError(f"{place}: neither a regular file nor a folder; give one of them")
        if info.type == pafs.FileType.File:
            found.append(ImageRef(Path(path).stem, uri, stamp_file(info)))
        elif storage.exists(storage.join(uri, MANIFEST)):
            found += _list_prepared(uri)
        else:
            found += _list_folder(uri, filesystem, path, out)
    if not found:
        raise UserError(f"{', '.join(places)}: no images there that can be read; correct the path")
    return _name_apart(found)


def _list_folder(uri: str, filesystem: pafs.FileSystem, path: str, out: str) -> list[ImageRef]:
    found = []
    for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)):
        inner = info.path[len(path) :].lstrip("/")
        where = place_below(uri, inner)
        hidden = any(is_system(part) for part in inner.split("/"))
        if info.is_file and not hidden and is_image(inner) and not where.startswith(f"{out}/"):
            found.append(ImageRef(inner.rpartition(".")[0], where, stamp_file(info)))
    return sorted(found, key=lambda one: one.where)


def _list_prepared(uri: str) -> list[ImageRef]:
    return [
        ImageRef(name, storage.join(uri, shard.path), shard.digest[:16], name)
        for shard in load_manifest(uri).shards
        for name in read_shard_table(uri, shard, ["image_id"])["image_id"].to_pylist()
    ]


def make_absolute(place: str) -> str:
    """An absolute location without a slash at its end or ``..`` in it."""
    where = storage.make_absolute(place)
    return where.rstrip("/") if "://" in where else os.path.normpath(where)


def place_below(folder: str, name: str) -> str:
    """A location below a folder, whatever letters the name has; UserError where it leads out of it."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UserError(f"{name}: this name leads out of {folder}; rename the image")
    if "://" in folder:
        return storage.join(folder, quote(name))
    if not (Path(folder) / name).resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(f"{name}: a link leads out of {folder}; remove it or choose another folder")
    return storage.join(folder, name)


def stamp_file(info: pafs.FileInfo) -> str:
    """What changes when a file does."""
    return f"{info.size}-{info.mtime_ns}"


def _name_apart(found: list[ImageRef]) -> list[ImageRef]:
    """The same image once; images that share a name keep their ending in it, or are refused."""
    unique = list({(one.where, one.row): one for one in found}.values())
    times: dict[str, int] = {}
    for one in unique:
        times[one.image] = times.get(one.image, 0) + 1
    named: dict[str, ImageRef] = {}
    for one in unique:
        name = one.image
        if times[name] > 1 and one.row is None:
            name += Path(one.where).suffix.replace(".", "_")
        if name in named:
            raise UserError(
                f"{one.where} and {named[name].where}: both would be named {name!r}; pass their parent folder"
            )
        named[name] = ImageRef(name, one.where, one.stamp, one.row)
    return list(named.values())
