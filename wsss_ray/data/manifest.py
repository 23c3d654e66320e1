# SPDX-License-Identifier: Apache-2.0
"""The manifest of a prepared data set: its classes, splits and shards, with counts and digests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, dataclasses

from wsss_ray import storage
from wsss_ray.config import Config, UserError

MANIFEST = "manifest.json"
NOTES = "notes.json"
"""What a person should know about the data: a list of lines."""
FILES = "files.json"
"""Image id -> the user's own file name, relative to the folder of the data."""
VERSION: Literal[1] = 1


@dataclasses.dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ShardInfo:
    """One Parquet file; thousands of them are held in memory, so that it is no ``Config``."""

    path: str
    """Name below the data set's folder."""
    num_rows: int
    digest: str
    """SHA-256 of the file."""
    content: str
    """Sum of the SHA-256 of its rows modulo 2^256, in hexadecimal: adds up over shards, whatever the packing."""
    splits: tuple[str, ...] = ()
    """The splits every one of its images belongs to, sorted."""
    num_masks: int = 0
    num_saliency: int = 0
    first_without_saliency: str | None = None
    """The first image (by id) that has no saliency map."""


SHARD = TypeAdapter(ShardInfo)
"""Reads and writes one as JSON."""


class SplitInfo(Config):
    """A named set of images."""

    num_images: int
    digest: str
    """16 hexadecimal digits over all its rows."""
    has_masks: bool
    """Every image has one; saliency likewise."""
    has_saliency: bool
    first_without_saliency: str | None = None


class Manifest(Config):
    """What a prepared data set holds."""

    version: Literal[1] = VERSION
    source: str
    options: dict[str, Any] = {}
    """Choices of the source: where labels and masks came from, seeds."""
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    splits: dict[str, SplitInfo]
    shards: tuple[ShardInfo, ...]
    num_images: int
    has_masks: bool
    """Every image of every split has one; ``splits`` says it for each."""
    has_saliency: bool
    first_without_saliency: str | None = None

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over everything in the manifest."""
        head = self.model_dump(mode="json", exclude={"shards"})
        return storage.digest_json({**head, "shards": self.shards})[:16]

    def shards_of(self, split: str) -> list[ShardInfo]:
        """The shards whose union is a split; UserError lists the splits there are."""
        if split not in self.splits:
            raise UserError(f"no split {split!r} in this data; it has {', '.join(self.splits)}")
        return [shard for shard in self.shards if split in shard.splits]


@dataclass(frozen=True)
class DataSet:
    """A prepared data set that was opened: where it lies and what it holds."""

    uri: str
    manifest: Manifest

    @property
    def num_classes(self) -> int:
        """Foreground classes; masks hold 0..num_classes."""
        return len(self.manifest.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ...: background first."""
        return ("background", *self.manifest.classes)

    def shards(self, split: str) -> list[tuple[str, int]]:
        """(file name, number of images) of every shard of a split; UserError lists the splits there are."""
        return [(shard.path, shard.num_rows) for shard in self.manifest.shards_of(split)]

    @property
    def notes(self) -> list[str]:
        """What was noted when the data was prepared."""
        where = storage.join(self.uri, NOTES)
        return list(storage.read_json(where)) if storage.exists(where) else []

    def file_names(self) -> dict[str, str]:
        """Image id -> the user's own file name; empty for generated images and data of other makers."""
        where = storage.join(self.uri, FILES)
        return dict(storage.read_json(where)) if storage.exists(where) else {}


def open_data(uri: str) -> DataSet:
    """The prepared data set at a folder or URI; UserError where there is none."""
    where = storage.make_absolute(uri)
    return DataSet(where, load_manifest(where))


def write_manifest(manifest: Manifest, uri: str) -> None:
    """Write it into the data set's folder; last of all, since it says that the data is whole."""
    head = manifest.model_dump(mode="json", exclude={"shards"})
    storage.write_json(storage.join(uri, MANIFEST), {**head, "shards": manifest.shards})


def load_manifest(uri: str) -> Manifest:
    """The manifest of a data set; UserError when the folder holds none or one of another version."""
    where = storage.join(uri, MANIFEST)
    if not storage.exists(where):
        raise UserError(f"{uri}: no {MANIFEST} here; make the data set with 'wsss data prepare' or correct the path")
    value = storage.read_json(where)
    if isinstance(value, dict) and value.get("version") != VERSION:
        raise UserError(
            f"{where}: version {value.get('version')} but this program reads {VERSION}; prepare the data again"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {key}: {first['msg']}; prepare the data again") from None
