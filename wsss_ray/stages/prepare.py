# SPDX-License-Identifier: Apache-2.0
"""``wsss data prepare``: a source's images are read, checked and written as Parquet shards in one pass over Ray
Data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, TypeAdapter
from ray import cloudpickle

from wsss_ray import storage
from wsss_ray.artifacts.store import Step, digest, lock_folder
from wsss_ray.cluster.join import Machines, join_cluster, plan_machines
from wsss_ray.cluster.parts import DEADLY, pack_items, run_parts, unpack_items
from wsss_ray.cluster.probe import SharedPlaces
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.data.checks import Problem
from wsss_ray.data.files import walk_files
from wsss_ray.data.findings import (
    FIX,
    Counted,
    Findings,
    fold_errors,
    fold_warnings,
    judge_findings,
    load_items,
    recall_guess,
)
from wsss_ray.data.layouts import detect_layout
from wsss_ray.data.manifest import (
    MANIFEST,
    SHARD,
    DataSet,
    Manifest,
    ShardInfo,
    load_manifest,
    open_data,
    write_manifest,
)
from wsss_ray.data.repeats import Repeats
from wsss_ray.data.saliency import read_origin
from wsss_ray.data.shards import check, make_manifest, plan_shards, write_notes, write_shard
from wsss_ray.data.source import Item, Source
from wsss_ray.data.sources import open_source
from wsss_ray.data.survey import survey_source
from wsss_ray.data.tally import Facts, Tally
from wsss_ray.data.toy import ToyConfig
from wsss_ray.recipe import Resources
from wsss_ray.stages.run import Steps

log = logging.getLogger(__name__)
VERSION = 1
"""1: as first written."""
FOLDER_VERSION = 3
"""Of what is made of a user's own folder. 2: stated colours decide over known palettes, ids are file names.
3: channels of 16 bits are read whole, by the range that their files state."""
ASKED = "asked.json"
"""Beside prepared data: the digest of what it was made of."""
_SHOWN = 20
_FACTS = TypeAdapter(list[Facts])
_BAD = TypeAdapter(list[Problem])
_pack: Callable[[Any], bytes] = cloudpickle.dumps
_unpack: Callable[[bytes], Any] = cloudpickle.loads


def prepare_source(
    name: str, root: Path | None, options: Mapping[str, Any], out: str, skip_bad: bool, address: str | None
) -> Manifest:
    """Prepare a source by name; prints what was made. UserError lists every image that cannot be used."""
    out = storage.make_absolute(out)
    _refuse_existing(out)
    source, problems = survey_source(open_source(name, root, **options))
    errors = [problem for problem in problems if problem.level == "error"]
    if errors and not skip_bad:
        raise UserError(fold_errors(errors, sum(1 for _ in source.items)) + FIX + recall_guess(source))
    source.notes = [*source.notes, *fold_warnings([problem for problem in problems if problem.level == "warning"])]
    sources = () if root is None else (str(root.absolute()),)
    with join_cluster(address, SharedPlaces(out, sources)):
        manifest = prepare(source, out, plan_machines(Resources()), skip_bad)
    for split, info in manifest.splits.items():
        num_masks = sum(shard.num_masks for shard in manifest.shards_of(split))
        masks = "masks" if info.has_masks else f"{num_masks} with masks" if num_masks else "no masks"
        log.info(f"{split}: {info.num_images} images, {masks}{', saliency' if info.has_saliency else ''}")
        mapped = sum(shard.num_saliency for shard in manifest.shards_of(split))
        if 0 < mapped < info.num_images:
            without = f"{info.num_images - mapped} of {info.num_images} images of split {split!r}"
            log.info(f"note: {without} have no saliency map, the first is {info.first_without_saliency}")
    log.info(f"{len(manifest.classes)} classes, {len(manifest.shards)} shards in {out}")
    return manifest


def prepare_images(
    root: str | Path, out: str, options: Mapping[str, Any] | None = None, address: str | None = None
) -> str:
    """Where the prepared data of a user's own folder lies, made below ``out`` where it is not there yet.

    The layout is detected and said; a folder whose files or options changed is prepared again, an unchanged one is
    taken as it is, and prepared data is returned untouched.
    """
    given = str(root)
    if storage.exists(storage.join(given, MANIFEST)):
        return given
    _refuse_inside(out, Path(given))
    layout = detect_layout(given)
    chosen = {**layout.options, **(options or {})}
    log.info(f"data: {layout.found}")
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(given).absolute().name).strip("-") or "data"
    where = storage.join(out, "data", f"{name}-{digest_folder(Path(given), layout.source, chosen)}")
    with lock_folder(storage.join(out, "data")):
        if storage.exists(storage.join(where, MANIFEST)):
            log.info(f"data: prepared already, in {where}")
        else:
            prepare_source(layout.source, Path(given), chosen, where, False, address)
    return where


def _refuse_inside(out: str, root: Path) -> None:
    place = storage.find_local(out)
    if place is not None and place.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out}: lies inside {root}, so results would be read as images; give --out a folder outside")


class ShardNote(BaseModel):
    """What is noted beside a shard until the last one is written."""

    stamp: str
    """Of the files that went into it."""
    info: str
    facts: str
    bad: str


@dataclass(frozen=True)
class Asked:
    """What is to be prepared."""

    source: str
    root: Path | None
    """The folder of the images; None for a source without one."""
    options: Mapping[str, Any]
    skip_bad: bool = False

    @property
    def digest(self) -> str:
        """Another one where the files, or how they are read, have changed."""
        options = {**self.options, "skip_bad": self.skip_bad}
        if self.root is not None and self.root.is_dir():
            return digest_folder(self.root, self.source, options)
        return digest([self.source, str(self.root), sorted((key, str(value)) for key, value in options.items())])


def prepare_once(asked: Asked, out: str, address: str | None = None) -> str:
    """Prepare into ``out``, or take what an earlier call made there of the same files and options; its place.

    UserError where ``out`` holds data of other files or options.
    """
    out = storage.make_absolute(out)
    note = storage.join(out, ASKED)
    if storage.exists(storage.join(out, MANIFEST)):
        if storage.exists(note) and storage.read_json(note) == asked.digest:
            return out
        raise UserError(f"{out}: holds data of other files or options; choose another out, or remove this folder")
    if asked.root is not None:
        _refuse_inside(out, asked.root)
    found = asked.digest
    prepare_source(asked.source, asked.root, asked.options, out, asked.skip_bad, address)
    storage.write_json(note, found)
    return out


def digest_folder(root: Path, source: str, options: Mapping[str, Any]) -> str:
    """12 hexadecimal digits over the names, sizes and times of all files and how they are read."""
    hasher = hashlib.sha256(
        repr((FOLDER_VERSION, source, sorted((key, str(value)) for key, value in options.items()))).encode()
    )
    for path in walk_files(root):
        state = path.stat()
        line = f"{path.relative_to(root).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n"
        hasher.update(line.encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()[:12]


@dataclass(frozen=True)
class PrepareStep(Step):
    """What can change the generated images."""

    stage: ClassVar[str] = "data"
    version: ClassVar[int] = VERSION
    toy: dict[str, Any]


def generate_toy(steps: Steps, toy: ToyConfig, layout: Machines) -> DataSet:
    """The generated images, as a step of a run."""

    def compute(folder: str) -> dict[str, Any]:
        start, before = time.monotonic(), storage.list_names(folder)
        # Where the step is computed again, since a shard was damaged, the old manifest is there.
        storage.remove(storage.join(folder, MANIFEST))
        manifest = prepare(open_source("toy", config=toy), folder, layout, skip_bad=False)
        if any(name.endswith(".parquet") for name in before):
            return {}  # some images were there
        return {"images_per_second": manifest.num_images / (time.monotonic() - start)}

    return open_data(steps.find_or_compute("data", PrepareStep(toy=toy.model_dump(mode="json")), compute).uri)


def prepare(source: Source, out: str, layout: Machines, skip_bad: bool = False) -> Manifest:
    """Write ``source`` into ``out``: every image is decoded once, checked and stored; the manifest comes last.

    Finished shards of a killed call are kept where the same files go into them. With ``skip_bad`` images that cannot
    be used are left out and counted, otherwise they are all listed in one UserError; what is wrong with most images is
    refused either way, and nothing is left behind.
    """
    _refuse_existing(out)
    total = _count_ids(source)
    infos: list[ShardInfo] = []
    counted = Counted(Tally(len(source.classes)), total)
    with Bar("prepare", total) as bar:
        for row in _written(source, plan_shards(source.items, max(16, min(128, total // 256))), out, layout):
            infos.append(SHARD.validate_json(str(row["info"])))
            counted.add(_read_findings(row))
            (bar.keep if row["kept"] else bar.advance)(int(row["items"]))
    try:
        source.notes = [*source.notes, *judge_findings(source, counted, _read_facts(out, infos), skip_bad)]
        infos = [info for info in infos if info.num_rows]
        _describe(source, len(counted.bad))
        manifest = make_manifest(source, infos)
    except UserError:
        _remove(out)
        raise
    write_notes(source, out)
    write_manifest(manifest, out)
    _remove(out, ".parquet.json")
    return manifest


def _count_ids(source: Source) -> int:
    """How many items there are; UserError where two have one id."""
    total, ids = 0, Repeats()
    for item in source.items:
        ids.add(item.image_id)
        total += 1
    for image_id in ids:
        raise UserError(f"{source.name}: image id {image_id!r} comes twice; rename one of the two images")
    return total


def _read_findings(row: Mapping[str, Any]) -> Findings:
    return Findings(_FACTS.validate_json(str(row["facts"])), _BAD.validate_json(str(row["bad"])))


def _read_facts(out: str, infos: Iterable[ShardInfo]) -> Iterator[Facts]:
    """What was seen of every image, from what was noted beside the shards."""
    for info in infos:
        yield from _read_findings(storage.read_json(storage.join(out, f"{info.path}.json"))).facts


def _refuse_existing(out: str) -> None:
    if storage.exists(storage.join(out, MANIFEST)):
        raise UserError(f"{out}: holds a prepared data set already; choose another --out or remove it")


def _describe(source: Source, num_bad: int) -> None:
    """Complete the options of a source, and print its notes."""
    origin = read_origin(find_saliency_folder(source))
    source.options = {
        **source.options,
        **({"skipped": num_bad} if num_bad else {}),
        **({"saliency": origin} if origin is not None else {}),
    }
    for note in source.notes[:_SHOWN]:
        log.info(f"note: {note}")
    if len(source.notes) > _SHOWN:
        log.info(f"note: and {len(source.notes) - _SHOWN} more, see 'wsss data show'")


def find_saliency_folder(source: Source) -> Path | None:
    """Where the first saliency map lies; None where no image has a file of its own."""
    maps = (item.saliency for item in source.items if isinstance(item.saliency, str))
    first = next(maps, None)
    return None if first is None else Path(first).parent


def _written(
    source: Source, plan: Iterable[tuple[str, tuple[str, ...], list[Item]]], out: str, layout: Machines
) -> Iterator[dict[str, Any]]:
    """Write every planned shard on the cluster; yields {"info", "facts", "bad", "items", "kept"} as they finish."""
    load = _pack(source.load)
    parts = ({"name": name, "splits": list(splits), "items": pack_items(items)} for name, splits, items in plan)
    first = next(parts, None)
    if first is None:
        raise UserError(f"{source.name}: no images in any split; check the folder and its lists")
    yield from run_parts(_write, chain([first], parts), (load, out), layout, _bury)


def _bury(row: dict[str, Any], dead: list[Item]) -> dict[str, Any]:
    """What is said of a shard without the images that kill whoever reads them."""
    bad = _BAD.validate_json(str(row["bad"]))
    bad += [Problem(item.image if isinstance(item.image, str) else item.image_id, DEADLY) for item in dead]
    return {**row, "bad": _BAD.dump_json(bad).decode(), "items": int(row["items"]) + len(dead)}


def _write(part: Mapping[str, Any], load: bytes, out: str) -> dict[str, Any]:
    """One shard, in a Ray task; a finished one of the same files is taken as it is."""
    name, items = str(part["name"]), unpack_items(part["items"])
    where, note = storage.join(out, name), storage.join(out, f"{name}.json")
    stamp = hashlib.sha256(part["items"] + load + _state_of(items)).hexdigest()
    if storage.exists(where) and storage.exists(note):
        known = _read_note(note)
        if known.get("stamp") == stamp and _is_whole(where, known["info"]):
            return {key: known[key] for key in ("info", "facts", "bad")} | {"items": len(items), "kept": True}
    rows, found = load_items(_unpack(load), items)
    made = {
        "info": SHARD.dump_json(write_shard(rows, where, [str(split) for split in part["splits"]])).decode(),
        "facts": _FACTS.dump_json(found.facts).decode(),
        "bad": _BAD.dump_json(found.bad).decode(),
    }
    storage.write_record(note, {"stamp": stamp, **made})
    return {**made, "items": len(items), "kept": False}


def _read_note(note: str) -> dict[str, Any]:
    """What was noted of a finished shard; nothing where the note is damaged."""
    try:
        return dict(storage.read_record(note, ShardNote, "").model_dump())
    except UserError:
        return {}


def _is_whole(where: str, info: str) -> bool:
    """Whether a shard is still what was written."""
    return hashlib.sha256(storage.read_bytes(where)).hexdigest() == SHARD.validate_json(info).digest


def _state_of(items: list[Item]) -> bytes:
    """Sizes and times of the files of some items, so that a shard of files that changed since is made again."""
    found = []
    for item in items:
        for where in (item.image, item.mask, item.saliency):
            if isinstance(where, str) and "://" not in where and os.path.exists(where):
                state = os.stat(where)
                found.append((state.st_size, state.st_mtime_ns))
    return repr(found).encode()


def _remove(out: str, ending: str = "") -> None:
    """Remove the shards of a preparation, or what was noted beside them, and the folder if nothing else is in it."""
    filesystem, _ = storage.open_fs(out)
    for name in storage.list_names(out):
        if name.startswith("shard-") and name.endswith(ending):
            filesystem.delete_file(storage.open_fs(storage.join(out, name))[1])
    folder = storage.find_local(out)
    if folder is not None and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_shards(uri: str) -> None:
    """Verify a prepared data set and print what it holds; UserError lists what is wrong."""
    manifest = load_manifest(uri)
    with Bar("check", manifest.num_images) as bar:
        problems: list[Problem] = check(uri, lambda shard: bar.advance(shard.num_rows))
    if problems:
        raise UserError("\n  ".join([f"{uri}: {len(problems)} problems:", *map(str, problems[:_SHOWN])]))
    for split, info in manifest.splits.items():
        log.info(f"{split}: {info.num_images} images, digest {info.digest}")
    log.info(f"{uri}: OK, every file verified")
