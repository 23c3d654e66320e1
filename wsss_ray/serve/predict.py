# SPDX-License-Identifier: Apache-2.0
"""``wsss predict``: any number of images, wherever they lie -> palette PNGs, overlays and one table, resumable.

What was predicted is kept as one Parquet part per chunk of images below ``<out>/.predictions/<digest of model and
settings>``; an image is predicted again when its file has changed, or when the model has.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.network import MODEL
from wsss_ray.artifacts.store import digest
from wsss_ray.artifacts.tables import name_part, read_table, write_table
from wsss_ray.cluster.join import join_cluster, plan_machines
from wsss_ray.cluster.parts import DEADLY
from wsss_ray.cluster.probe import list_places
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import UserError
from wsss_ray.data.image import MAX_PIXELS, decode_image, encode_jpeg, encode_mask
from wsss_ray.data.shards import read_shard_table
from wsss_ray.data.source import read_file
from wsss_ray.recipe import Resources
from wsss_ray.reports.drawing import overlay_mask
from wsss_ray.serve.answers import STATES, Rows, keep_present, read_rows, remove_broken, remove_others
from wsss_ray.serve.listing import ImageRef, list_images, make_absolute, place_below
from wsss_ray.serve.model import Model, Prediction, Predictor, open_model

log = logging.getLogger(__name__)
VERSION = 3
"""3: deep grey is read as in training, and whether overlays are drawn is part of it."""
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("where", pa.string()),
        ("stamp", pa.string()),
        ("error", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("area_fractions", pa.list_(pa.float64())),
        ("confidences", pa.list_(pa.float64())),
        ("reduced", pa.bool_()),
    ]
)
_SHOWN = 10


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted, beside the model's own protocol."""

    settings: tuple[str, ...] = ()
    """Changes of the protocol, ``key=value``."""
    classes: Path | None = None
    """A text file of class names, for a model that no run tells them of."""
    overlays: bool = True
    """Whether the mask is also drawn over the image."""
    address: str | None = None
    """Ray cluster to join; None starts a local one."""
    resources: Resources = Resources()
    max_pixels: int = MAX_PIXELS
    """Of an image; what is larger is skipped."""


@dataclass(frozen=True)
class Output:
    """Where the files of a prediction go."""

    out: str
    overlays: bool
    max_pixels: int


class PredictImagesWorker:
    """A chunk of images -> files in ``out`` and one row of ``SCHEMA`` for each."""

    def __init__(self, model: Model, plan: str, output: Output, batch_size: int) -> None:
        self.plan, self.output = plan, output
        self.predictor = Predictor(model, batch_size)

    def make_table(self, shard: str) -> pa.Table:
        """The rows of a chunk; an unreadable image is a row with its error."""
        chunk = [ImageRef(**one) for one in storage.read_json(storage.join(self.plan, f"{shard}.json"))]
        inside = _read_shards(chunk)
        images: dict[int, np.ndarray] = {}
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(chunk):
            rows.append({"image": one.image, "where": one.where, "stamp": one.stamp, "error": None})
            try:
                data = inside[one.where, one.row] if one.row is not None else read_file(one.where, "image")
                where, limit = (one.image, None) if one.row is not None else (one.where, self.output.max_pixels)
                images[number] = decode_image(data, where, self.predictor.grey, limit)
            except UserError as error:
                rows[-1]["error"] = str(error)
        predictions = self.predictor.predict_images(list(images.values()))
        for (number, image), prediction in zip(images.items(), predictions, strict=True):
            self._write_files(chunk[number].image, image, prediction)
            rows[number] |= {
                "classes": [found.index for found in prediction.classes],
                "area_fractions": [found.area_fraction for found in prediction.classes],
                "confidences": [found.confidence for found in prediction.classes],
                "reduced": prediction.reduced,
            }
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _write_files(self, name: str, image: np.ndarray, prediction: Prediction) -> None:
        palette = self.predictor.palette
        storage.write_bytes(place_below(self.output.out, f"masks/{name}.png"), encode_mask(prediction.mask, palette))
        if self.output.overlays:
            laid = overlay_mask(image, prediction.mask, palette)
            storage.write_bytes(place_below(self.output.out, f"overlays/{name}.jpg"), encode_jpeg(laid, 88))


def _read_shards(chunk: Iterable[ImageRef]) -> dict[tuple[str, str | None], bytes]:
    """(shard, image id) -> encoded image, of those that lie in shards."""
    found: dict[tuple[str, str | None], bytes] = {}
    wanted = {(one.where, one.row) for one in chunk if one.row is not None}
    for where in sorted({where for where, _ in wanted}):
        folder, name = where.rsplit("/", 1)
        for row in read_shard_table(folder, name, ["image_id", "image"]).to_pylist():
            if (where, row["image_id"]) in wanted:
                found[where, row["image_id"]] = row["image"]
    return found


@dataclass(frozen=True)
class PredictCounts:
    """How many images a call predicted, found predicted, and skipped."""

    predicted: int
    reused: int
    skipped: int


def predict_images(model: str, places: Sequence[str], out: str, options: PredictOptions) -> PredictCounts:
    """Predict every image of ``places`` (files, folders, URIs, prepared shards) into ``out``.

    Predictions of another model or setting, and of images that are gone or changed, are removed from ``out``.
    Writes ``masks/<image>.png``, ``overlays/<image>.jpg``, ``predictions.csv`` and ``skipped.csv``. Raises UserError
    where no image could be read at all.
    """
    opened = open_model(model, options.settings, options.classes)
    out = make_absolute(out)
    images = list_images(places, out)
    weights = hashlib.sha256(storage.read_bytes(storage.join(opened.folder, MODEL))).hexdigest()
    made = {"version": VERSION, "weights": weights, "card": opened.card, "overlays": options.overlays}
    state = place_below(out, f"{STATES}/{digest(made)}")
    remove_others(out, state)
    known = keep_present(read_rows(state), images, out)
    _refuse_other(images, known, out)
    seen = {(one["image"], one["stamp"]) for one in known.values()}
    waiting = [one for one in images if (one.image, one.stamp) not in seen]
    if len(waiting) < len(images):
        log.info(f"predict: {len(images) - len(waiting)} of {len(images)} images are predicted already")
    if waiting:
        plan = storage.join(state, "plan")
        output = Output(out, options.overlays, options.max_pixels)
        make_worker = partial(PredictImagesWorker, opened, plan, output, options.resources.batch_size)
        chunks = write_plan(waiting, plan)
        job = ShardJob("predict", make_worker, chunks, state, network=True, rescue=partial(leave_deadly, plan, state))
        with join_cluster(options.address, list_places(out)):
            run_shards(job, plan_machines(options.resources))
    known = keep_present(read_rows(state, {one.image: one.stamp for one in images}), images, out)
    remove_broken(known, out)
    _write_tables(known, opened, out)
    return _count(known, images, {one.image for one in waiting}, out)


def _count(known: Rows, images: Sequence[ImageRef], fresh: set[str], out: str) -> PredictCounts:
    """The counts of a call; what was skipped or reduced is said."""
    mine = [known[one.image] for one in images]
    bad = [one for one in mine if one["error"] is not None]
    for one in bad[:_SHOWN]:
        log.warning(f"skipped: {one['error']}")
    if len(bad) > _SHOWN:
        log.warning(f"and {len(bad) - _SHOWN} more, all in {storage.join(out, 'skipped.csv')}")
    if len(bad) == len(mine):
        raise UserError(f"none of {len(mine)} images could be read; the reasons are in {out}/skipped.csv")
    reduced = sum(bool(one["reduced"]) for one in mine)
    if reduced:
        log.info(f"note: {reduced} very large images were predicted at a smaller size and scaled up")
    good = [one["image"] for one in mine if one["error"] is None]
    num_fresh = sum(name in fresh for name in good)
    return PredictCounts(num_fresh, len(good) - num_fresh, len(bad))


def write_plan(waiting: Sequence[ImageRef], folder: str, length: int | None = None) -> list[tuple[str, int]]:
    """Chunks of images, each a small file; (name, images) of all. Names are digests: no chunk hides another."""
    length = length or max(4, min(64, len(waiting) // 256))
    chunks = []
    for start in range(0, len(waiting), length):
        chosen = [asdict(one) for one in waiting[start : start + length]]
        name = f"chunk-{digest(chosen)}"
        storage.write_json(storage.join(folder, f"{name}.json"), chosen)
        chunks.append((name, len(chosen)))
    return chunks


def leave_deadly(plan: str, state: str, shard: str, survives: Callable[[str], bool]) -> None:
    """Write the rows of a chunk that kills its worker: the image it dies of, found by halving it, is one with an error.

    ``survives`` runs a chunk and says whether its worker lived.
    """
    chunk = [ImageRef(**one) for one in storage.read_json(storage.join(plan, f"{shard}.json"))]
    where = storage.join(state, name_part(shard))
    if len(chunk) == 1:
        row = {"image": chunk[0].image, "where": chunk[0].where, "stamp": chunk[0].stamp}
        write_table(pa.Table.from_pylist([{**row, "error": f"{chunk[0].where}: {DEADLY}"}], schema=SCHEMA), where)
        return
    middle = len(chunk) // 2
    halves = [name for half in (chunk[:middle], chunk[middle:]) for name, _ in write_plan(half, plan, len(chunk))]
    for half in halves:
        if not survives(half):
            leave_deadly(plan, state, half, survives)
    parts = [storage.join(state, name_part(half)) for half in halves]
    write_table(pa.concat_tables([read_table(part) for part in parts]), where)
    for part in parts:
        storage.remove(part)


def _refuse_other(images: Sequence[ImageRef], known: Rows, out: str) -> None:
    for one in images:
        before = known.get(one.image)
        if before is not None and before["where"] != one.where:
            was = f"{one.image!r} there is the prediction for {before['where']}"
            raise UserError(f"{out}: {was}, not {one.where}; choose another --out")


def _write_tables(known: Rows, model: Model, out: str) -> None:
    names = ("background", *model.classes)
    predictions: list[list[Any]] = [["image", "class", "area_fraction", "confidence"]]
    skipped: list[list[Any]] = [["image", "reason"]]
    for image, row in sorted(known.items()):
        if row["error"] is not None:
            skipped.append([image, row["error"]])
            continue
        found = zip(row["classes"], row["area_fractions"], row["confidences"], strict=True)
        predictions += [[image, names[index], f"{area:.6f}", f"{sure:.6f}"] for index, area, sure in found]
    for name, lines in (("predictions.csv", predictions), ("skipped.csv", skipped)):
        storage.write_bytes(place_below(out, name), storage.format_csv(lines))
