"""``wsss predict``: any number of images, wherever they lie -> palette PNGs, overlays and one table, resumable.

What was answered is kept as one Parquet part per chunk of images below ``<out>/.answers/<digest of model and
settings>``; an image is answered again when its file has changed, or when the model has.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from wsss_ray import storage
from wsss_ray.artifacts.store import digest
from wsss_ray.artifacts.tables import read_table
from wsss_ray.cluster.join import cluster, machines
from wsss_ray.cluster.progress import console
from wsss_ray.cluster.shards import run_parts
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_image, encode_jpeg, encode_mask
from wsss_ray.data.manifest import MANIFEST, load_manifest
from wsss_ray.data.shards import read_shard_table
from wsss_ray.data.source import read_file
from wsss_ray.recipe import Resources
from wsss_ray.reports.drawing import overlay_mask
from wsss_ray.serve.model import Answer, Answerer, Model, open_model

VERSION = 1
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("where", pa.string()),
        ("stamp", pa.string()),
        ("error", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("shares", pa.list_(pa.float64())),
        ("confidences", pa.list_(pa.float64())),
        ("reduced", pa.bool_()),
    ]
)
_SHOWN = 10


@dataclass(frozen=True)
class Asked:
    """One image to answer."""

    image: str
    """Its name in the table and, with an ending, below ``masks/`` and ``overlays/``."""
    where: str
    """Path or URI of the image, or of the shard that holds it."""
    stamp: str
    """Changes when the file does."""
    row: str | None = None
    """The id inside a shard."""


class AnswerWorker:
    """A chunk of images -> files in ``out`` and one row of ``SCHEMA`` for each."""

    def __init__(self, model: dict[str, Any], plan: str, out: str, overlays: bool, batch_size: int) -> None:
        self.plan, self.out, self.overlays = plan, out, overlays
        self.answerer = Answerer(Model.model_validate(model), batch_size)

    def table(self, shard: str) -> pa.Table:
        """The rows of a chunk; an unreadable image is a row with its error."""
        asked = [Asked(**one) for one in storage.read_json(storage.join(self.plan, f"{shard}.json"))]
        inside = self._shards(asked)
        images: dict[int, np.ndarray] = {}
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(asked):
            rows.append({"image": one.image, "where": one.where, "stamp": one.stamp, "error": None})
            try:
                data = inside[one.where, one.row] if one.row is not None else read_file(one.where, "image")
                images[number] = decode_image(data, one.image if one.row is not None else one.where)
            except UserError as error:
                rows[-1]["error"] = str(error)
        answers = self.answerer.answer(list(images.values()))
        for (number, image), answer in zip(images.items(), answers, strict=True):
            self._write(asked[number].image, image, answer)
            rows[number] |= {
                "classes": [found.index for found in answer.findings],
                "shares": [found.share for found in answer.findings],
                "confidences": [found.confidence for found in answer.findings],
                "reduced": answer.reduced,
            }
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _shards(self, asked: Iterable[Asked]) -> dict[tuple[str, str | None], bytes]:
        found: dict[tuple[str, str | None], bytes] = {}
        wanted = {(one.where, one.row) for one in asked if one.row is not None}
        for where in sorted({where for where, _ in wanted}):
            folder, name = where.rsplit("/", 1)
            for row in read_shard_table(folder, name, ["image_id", "image"]).to_pylist():
                if (where, row["image_id"]) in wanted:
                    found[where, row["image_id"]] = row["image"]
        return found

    def _write(self, name: str, image: np.ndarray, answer: Answer) -> None:
        mask = encode_mask(answer.mask, self.answerer.palette)
        storage.write_bytes(_inside(self.out, f"masks/{name}.png"), mask)
        if self.overlays:
            laid = overlay_mask(image, answer.mask, self.answerer.palette)
            storage.write_bytes(_inside(self.out, f"overlays/{name}.jpg"), encode_jpeg(laid, 88))


def predict(
    model: str,
    places: Sequence[str],
    out: str,
    settings: Sequence[str] = (),
    classes: Path | None = None,
    overlays: bool = True,
    address: str | None = None,
    resources: Resources | None = None,
) -> dict[str, int]:
    """Answer every image of ``places`` (files, folders, URIs, prepared shards) into ``out``.

    Writes ``masks/<image>.png``, ``overlays/<image>.jpg``, ``answers.csv`` and ``skipped.csv``; returns how many
    were "answered" now, "kept" from before and "skipped". Raises UserError where no image could be read at all.
    """
    resources = resources or Resources()
    opened = open_model(model, settings, classes)
    out = _clean(out)
    asked = list_images(places, out)
    weights = hashlib.sha256(storage.read_bytes(storage.join(opened.folder, "model.safetensors"))).hexdigest()
    state = storage.join(out, ".answers", digest({"version": VERSION, "weights": weights, "card": opened.card()}))
    known = answered(state)
    _refuse_other(asked, known, out)
    seen = {(one["image"], one["stamp"]) for one in known.values()}
    todo = [one for one in asked if (one.image, one.stamp) not in seen]
    if len(todo) < len(asked):
        console.print(f"predict: {len(asked) - len(todo)} of {len(asked)} images are answered already")
    if todo:
        chunks = write_plan(todo, storage.join(state, "plan"))
        with cluster(address):
            factory = partial(
                AnswerWorker,
                opened.model_dump(mode="json"),
                storage.join(state, "plan"),
                out,
                overlays,
                resources.batch_size,
            )
            run_parts("predict", factory, chunks, state, machines(resources), network=True)
    known = answered(state, {one.image: one.stamp for one in asked})
    _write_tables(known, opened, out)
    mine = [known[one.image] for one in asked]
    bad = [one for one in mine if one["error"] is not None]
    for one in bad[:_SHOWN]:
        console.print(f"skipped: {one['error']}", soft_wrap=True)
    if len(bad) > _SHOWN:
        console.print(f"and {len(bad) - _SHOWN} more, all in {storage.join(out, 'skipped.csv')}", soft_wrap=True)
    if len(bad) == len(mine):
        raise UserError(f"none of {len(mine)} images could be read; the reasons are in {out}/skipped.csv")
    reduced = sum(bool(one["reduced"]) for one in mine)
    if reduced:
        console.print(f"note: {reduced} very large images were answered at a smaller size and scaled up")
    fresh = {one.image for one in todo}
    return {
        "answered": sum(one["error"] is None and one["image"] in fresh for one in mine),
        "kept": sum(one["error"] is None and one["image"] not in fresh for one in mine),
        "skipped": len(bad),
    }


def list_images(places: Sequence[str], out: str) -> list[Asked]:
    """Every image of files, folders (searched to the bottom), URIs and prepared data sets, but none in ``out``."""
    found: list[Asked] = []
    for place in places:
        uri = _clean(place)
        filesystem, path = storage.open_fs(uri)
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"{place}: no such image or folder; correct the path")
        if info.type == pafs.FileType.File:
            found.append(Asked(Path(path).stem, uri, _stamp(info)))
        elif storage.exists(storage.join(uri, MANIFEST)):
            found += _prepared(uri)
        else:
            found += _below(uri, filesystem, path, out)
    if not found:
        raise UserError(f"{', '.join(places)}: no images there ({', '.join(sorted(SUFFIXES))}); correct the path")
    return _named(found)


def _below(uri: str, filesystem: pafs.FileSystem, path: str, out: str) -> list[Asked]:
    found = []
    for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)):
        inner = info.path[len(path) :].lstrip("/")
        where = _inside(uri, inner)
        hidden = any(part.startswith(".") for part in inner.split("/"))
        if info.is_file and not hidden and Path(inner).suffix.lower() in SUFFIXES and not where.startswith(f"{out}/"):
            found.append(Asked(inner.rpartition(".")[0], where, _stamp(info)))
    return sorted(found, key=lambda one: one.where)


def _prepared(uri: str) -> list[Asked]:
    return [
        Asked(name, storage.join(uri, shard.path), shard.digest[:16], name)
        for shard in load_manifest(uri).shards
        for name in read_shard_table(uri, shard, ["image_id"])["image_id"].to_pylist()
    ]


def _clean(place: str) -> str:
    """An absolute location without a slash at its end or ``..`` in it."""
    where = storage.absolute(place)
    return where.rstrip("/") if "://" in where else os.path.normpath(where)


def _inside(folder: str, name: str) -> str:
    """A location below a folder, whatever letters the name has."""
    return storage.join(folder, quote(name) if "://" in folder else name)


def _stamp(info: pafs.FileInfo) -> str:
    return f"{info.size}-{info.mtime_ns}"


def _named(found: list[Asked]) -> list[Asked]:
    """The same image once; images that share a name keep their ending in it, or are refused."""
    unique = list({(one.where, one.row): one for one in found}.values())
    times: dict[str, int] = {}
    for one in unique:
        times[one.image] = times.get(one.image, 0) + 1
    named: dict[str, Asked] = {}
    for one in unique:
        name = one.image
        if times[name] > 1 and one.row is None:
            name += Path(one.where).suffix.replace(".", "_")
        if name in named:
            raise UserError(
                f"{one.where} and {named[name].where}: both would be named {name!r}; give the folder above them"
            )
        named[name] = Asked(name, one.where, one.stamp, one.row)
    return list(named.values())


def write_plan(todo: Sequence[Asked], folder: str) -> list[tuple[str, int]]:
    """Chunks of images, each a small file; (name, images) of all. Names are digests: no chunk hides another."""
    length = max(4, min(64, len(todo) // 256))
    chunks = []
    for start in range(0, len(todo), length):
        chosen = [vars(one) for one in todo[start : start + length]]
        name = f"chunk-{digest(chosen)}"
        storage.write_json(storage.join(folder, f"{name}.json"), chosen)
        chunks.append((name, len(chosen)))
    return chunks


def answered(state: str, prefer: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Image -> its row; of a file answered in several versions the one whose stamp ``prefer`` gives."""
    known: dict[str, dict[str, Any]] = {}
    for name in storage.list_names(state):
        if name.endswith(".parquet"):
            for row in read_table(storage.join(state, name)).to_pylist():
                wanted = (prefer or {}).get(row["image"])
                if row["image"] not in known or row["stamp"] == wanted:
                    known[row["image"]] = row
    return known


def _refuse_other(asked: Sequence[Asked], known: dict[str, dict[str, Any]], out: str) -> None:
    for one in asked:
        before = known.get(one.image)
        if before is not None and before["where"] != one.where:
            was = f"{one.image!r} there is the answer for {before['where']}"
            raise UserError(f"{out}: {was}, not {one.where}; choose another --out")


def _write_tables(known: dict[str, dict[str, Any]], model: Model, out: str) -> None:
    names = ("background", *model.classes)
    answers: list[list[Any]] = [["image", "class", "share", "confidence"]]
    skipped: list[list[Any]] = [["image", "reason"]]
    for image, row in sorted(known.items()):
        if row["error"] is not None:
            skipped.append([image, row["error"]])
            continue
        for index, share, confidence in zip(row["classes"], row["shares"], row["confidences"], strict=True):
            answers.append([image, names[index], f"{share:.6f}", f"{confidence:.6f}"])
    for name, lines in (("answers.csv", answers), ("skipped.csv", skipped)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        storage.write_bytes(storage.join(out, name), text.getvalue().encode())
