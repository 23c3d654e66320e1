# SPDX-License-Identifier: Apache-2.0
"""A prepared data set: Parquet shards and a manifest in one folder, at any URI that pyarrow opens.

A shard holds images of exactly the same splits, so that every split is a union of whole shards. Digests of splits
depend on the images alone, not on how they are packed into shards.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.checks import Problem, plain_reading, validate_row
from wsss_ray.data.findings import Counted, judge_findings, load_items
from wsss_ray.data.manifest import FILES, MANIFEST, NOTES, Manifest, ShardInfo, SplitInfo, load_manifest, write_manifest
from wsss_ray.data.source import SCHEMA, Item, Row, Source
from wsss_ray.data.survey import survey_source
from wsss_ray.data.tally import Facts, Tally

__all__ = [
    "Manifest",
    "Rows",
    "ShardInfo",
    "SplitInfo",
    "check",
    "load_manifest",
    "make_manifest",
    "plan_shards",
    "read_shard",
    "read_shard_table",
    "write_dataset",
    "write_manifest",
    "write_shard",
]
_MODULUS = 1 << 256
AGAIN = "prepare the data again"
LARGE = frozenset({"image", "mask", "saliency", "parts"})
"""Columns of files: who reads one reads most of a shard."""


def row_digest(row: Row) -> int:
    """SHA-256 over the columns of a row as an integer."""
    hasher = hashlib.sha256()
    for name in SCHEMA.names:
        value = row.get(name)
        if value is None:
            data = b"-"
        elif isinstance(value, (bytes, memoryview)):
            data = b"+" + bytes(value)
        else:
            data = b"+" + json.dumps(value).encode()
        hasher.update(f"{name}:{len(data)}:".encode())
        hasher.update(data)
    return int.from_bytes(hasher.digest())


def write_shard(rows: Iterable[Row], uri: str, splits: Iterable[str] = ()) -> ShardInfo:
    """Write rows, sorted by id, as the Parquet file ``uri``, atomically; UserError when an id comes twice."""
    ordered = sorted(rows, key=lambda row: row["image_id"])
    ids = [row["image_id"] for row in ordered]
    _refuse_doubles(ids, uri)
    table = pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in ordered], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    # Images are compressed already, and statistics of encoded bytes help nobody.
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(uri, data)
    content = sum(row_digest(row) for row in ordered) % _MODULUS
    return ShardInfo(
        path=uri.rsplit("/", 1)[-1],
        num_rows=len(ordered),
        digest=hashlib.sha256(data).hexdigest(),
        content=f"{content:064x}",
        splits=tuple(sorted(set(splits))),
        num_masks=sum(row.get("mask") is not None for row in ordered),
        num_saliency=sum(row.get("saliency") is not None for row in ordered),
        first_without_saliency=next((row["image_id"] for row in ordered if row.get("saliency") is None), None),
    )


def _refuse_doubles(ids: Sequence[str], where: str) -> None:
    if len(set(ids)) != len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise UserError(f"{where}: image id {twice!r} comes twice; rename one of the two images")


def plan_shards(items: Iterable[Item], rows_per_shard: int = 32) -> Iterator[tuple[str, tuple[str, ...], list[Item]]]:
    """Pack a stream of items into (file name, splits, items) with one split signature each; holds one open shard per
    signature.

    Items in no split are left out.
    """
    waiting: dict[tuple[str, ...], list[Item]] = {}
    number = 0
    for item in items:
        signature = tuple(sorted(set(item.splits)))
        if not signature:
            continue
        group = waiting.setdefault(signature, [])
        group.append(item)
        if len(group) == rows_per_shard:
            yield f"shard-{number:05d}.parquet", signature, waiting.pop(signature)
            number += 1
    for signature, group in sorted(waiting.items()):
        yield f"shard-{number:05d}.parquet", signature, group
        number += 1


def make_manifest(source: Source, shards: Iterable[ShardInfo]) -> Manifest:
    """The manifest of a source's shards; UserError when there are none or a promised split is empty."""
    ordered = tuple(sorted(shards, key=lambda shard: shard.path))
    names = [*source.splits, *sorted({split for shard in ordered for split in shard.splits} - set(source.splits))]
    splits = {}
    for split in names:
        members = [shard for shard in ordered if split in shard.splits]
        if not any(shard.num_rows for shard in members):
            raise UserError(f"{source.name}: split {split!r} has no images; add some or remove the split")
        splits[split] = SplitInfo(
            num_images=sum(shard.num_rows for shard in members),
            digest=_digest(source, members),
            has_masks=all(shard.num_masks == shard.num_rows for shard in members),
            has_saliency=all(shard.num_saliency == shard.num_rows for shard in members),
            first_without_saliency=_first(members),
        )
    if not splits:
        raise UserError(f"{source.name}: no images in any split; check the folder and its lists")
    return Manifest(
        source=source.name,
        options=source.options,
        classes=tuple(source.classes),
        palette=tuple((red, green, blue) for red, green, blue in source.palette),
        ignore=source.ignore,
        splits=splits,
        shards=ordered,
        num_images=sum(shard.num_rows for shard in ordered),
        has_masks=all(split.has_masks for split in splits.values()),
        has_saliency=all(split.has_saliency for split in splits.values()),
        first_without_saliency=_first(ordered),
    )


def write_notes(source: Source, uri: str) -> None:
    """Write what a person should know beside the shards: the notes, and which file each image id is."""
    if source.notes:
        storage.write_json(storage.join(uri, NOTES), source.notes)
    files = ((item.image_id, item.file) for item in source.items if item.file)
    if first := next(files, None):
        storage.write_chunks(storage.join(uri, FILES), _encode_files(chain([first], files)))


def _encode_files(files: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """{image id: file} as JSON, a line at a time."""
    opening = "{\n "
    for image_id, file in files:
        yield f"{opening}{json.dumps(image_id)}: {json.dumps(file)}".encode()
        opening = ",\n "
    yield b"\n}"


def _digest(source: Source, shards: Iterable[ShardInfo]) -> str:
    total = sum(int(shard.content, 16) for shard in shards) % _MODULUS
    text = json.dumps([list(source.classes), source.ignore, f"{total:064x}"])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first(shards: Iterable[ShardInfo]) -> str | None:
    return min((shard.first_without_saliency for shard in shards if shard.first_without_saliency), default=None)


def write_dataset(source: Source, uri: str, rows_per_shard: int = 32) -> Manifest:
    """Prepare a source in this process: every shard, then the manifest; UserError for what the whole shows."""
    source, _ = survey_source(source)
    seen: list[str] = []
    infos = []
    facts: list[Facts] = []
    counted = Counted(Tally(len(source.classes)), 0)
    for name, splits, items in plan_shards(source.items, rows_per_shard):
        seen += [item.image_id for item in items]
        rows, part = load_items(source.load, items)
        facts += part.facts
        counted.add(part)
        infos.append(write_shard(rows, storage.join(uri, name), splits))
    _refuse_doubles(seen, source.name)
    counted.total = len(seen)
    source.notes = [*source.notes, *judge_findings(source, counted, facts)]
    manifest = make_manifest(source, infos)
    write_notes(source, uri)
    write_manifest(manifest, uri)
    return manifest


def read_shard(uri: str, shard: ShardInfo | str, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of a shard, or some of their columns."""
    rows: list[Row] = read_shard_table(uri, shard, columns).to_pylist()
    return rows


def read_shard_table(uri: str, shard: ShardInfo | str, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard as an Arrow table, after its digest was compared with the manifest's; UserError names a damaged file.

    Without images, masks and saliency maps only the columns wanted are read, whose pages have checksums of their own.
    """
    info = shard if isinstance(shard, ShardInfo) else _find_info(uri, shard)
    name = info.path if info is not None else str(shard)
    where = storage.join(uri, name)
    wanted = list(columns) if columns is not None else None
    try:
        if info is None or (wanted is not None and LARGE.isdisjoint(wanted)):
            filesystem, path = storage.open_fs(where)
            return pq.read_table(path, filesystem=filesystem, columns=wanted, page_checksum_verification=True)
        data = storage.read_bytes(where)
        if hashlib.sha256(data).hexdigest() != info.digest:
            raise UserError(f"{where}: checksum mismatch; {AGAIN}")
        return pq.read_table(pa.BufferReader(data), columns=wanted)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read ({str(error).splitlines()[0]}); {AGAIN}") from error


def _find_info(uri: str, name: str) -> ShardInfo | None:
    """What the manifest says of a shard; None where there is none yet."""
    stamp = storage.stamp(storage.join(uri, MANIFEST))
    return None if stamp is None else _list_infos(uri, stamp).get(name)


@lru_cache(maxsize=8)
def _list_infos(uri: str, stamp: str) -> dict[str, ShardInfo]:
    return {shard.path: shard for shard in load_manifest(uri).shards}


def check(uri: str, on_shard: Callable[[ShardInfo], None] | None = None) -> list[Problem]:
    """Everything wrong with a prepared data set: digests, counts, ids, and every image and mask decoded."""
    manifest = load_manifest(uri)
    problems: list[Problem] = []
    seen: set[str] = set()
    for shard in manifest.shards:
        try:
            rows: list[Row] = read_shard_table(uri, shard).to_pylist()
        except UserError as error:
            problems.append(Problem("", str(error)))
            continue
        ids = [row["image_id"] for row in rows]
        if len(ids) != shard.num_rows:
            problems.append(
                Problem(shard.path, f"holds {len(ids)} images, the manifest says {shard.num_rows}; prepare again")
            )
        if ids != sorted(ids):
            problems.append(Problem(shard.path, "its ids are not sorted; prepare the data again"))
        problems += [Problem(name, "id is used twice; prepare the data again") for name in ids if name in seen]
        seen.update(ids)
        for row in rows:
            found = validate_row(row, plain_reading(len(manifest.classes), manifest.ignore))
            problems += [problem for problem in found if problem.level == "error"]
        if on_shard is not None:
            on_shard(shard)
    for split, info in manifest.splits.items():
        count = sum(shard.num_rows for shard in manifest.shards_of(split))
        if count != info.num_images:
            problems.append(
                Problem(f"split {split!r}", f"says {info.num_images} images, its shards hold {count}; prepare again")
            )
    return problems


def cache_root() -> Path:
    """Where local copies of shards are kept: ``WSSS_CACHE``, by default ``~/.cache/wsss-ray``."""
    return Path(os.environ.get("WSSS_CACHE", Path.home() / ".cache" / "wsss-ray"))


class Rows:
    """Random access to the rows of a split, sorted by id, from memory-mapped local copies of its shards.

    The copies are Arrow files in ``<cache>/<manifest digest>/``, made when first needed, each renamed into place whole,
    so that any number of processes may make them at once. ``columns`` limits what a row holds (training passes those
    without ``mask``). Picklable: it is opened again where it arrives.
    """

    def __init__(
        self, uri: str, split: str, columns: Sequence[str] | None = None, cache: str | Path | None = None
    ) -> None:
        self.uri, self.split, self.cache = storage.make_absolute(uri), split, cache
        self.columns = tuple(SCHEMA.names if columns is None else columns)
        self.manifest = load_manifest(self.uri)
        folder = (Path(cache) if cache is not None else cache_root()) / self.manifest.digest
        self._tables = [_cached(self.uri, shard, folder) for shard in self.manifest.shards_of(split)]
        places = [
            (name, shard, row)
            for shard, table in enumerate(self._tables)
            for row, name in enumerate(table.column("image_id").to_pylist())
        ]
        places.sort()
        self.ids = [name for name, _, _ in places]
        self._places = [(shard, row) for _, shard, row in places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        """A row; binary columns are memoryviews into the file, not copies."""
        shard, row = self._places[index]
        table = self._tables[shard]
        return {name: _value(table.column(name)[row]) for name in self.columns}

    def labels(self) -> list[list[int] | None]:
        """The image-level labels of every row."""
        columns = [table.column("labels").to_pylist() for table in self._tables]
        return [columns[shard][row] for shard, row in self._places]

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.uri, self.split, self.columns, self.cache)


def _value(scalar: Any) -> Any:
    if isinstance(scalar, pa.BinaryScalar) and not isinstance(scalar, pa.StringScalar):
        buffer = scalar.as_buffer()
        return None if buffer is None else memoryview(buffer)
    return scalar.as_py()


def _cached(uri: str, shard: ShardInfo, folder: Path) -> pa.Table:
    """The shard as a memory-mapped Arrow file, made on first use; its name ends with its own checksum."""
    for path in folder.glob(f"{shard.digest[:32]}-*.arrow"):
        found = _open_copy(path)
        if found is not None:
            return found
    table = read_shard_table(uri, shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        os.close(handle)
        try:
            with pa.ipc.new_file(temporary, table.schema) as writer:
                writer.write_table(table)
            path = folder / f"{shard.digest[:32]}-{_sum_file(Path(temporary)):08x}.arrow"
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        return _map_file(path)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep a local copy ({error}); free space or set WSSS_CACHE to another folder"
        ) from error


def _open_copy(path: Path) -> pa.Table | None:
    """A local copy, None where it is damaged: it is removed then, for the shard itself is whole."""
    try:
        if path.stem.rsplit("-", 1)[1] == f"{_sum_file(path):08x}":
            return _map_file(path)
    except (OSError, pa.ArrowException):
        pass
    path.unlink(missing_ok=True)
    return None


def _sum_file(path: Path) -> int:
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return zlib.crc32(held)


def _map_file(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
