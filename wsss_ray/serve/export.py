# SPDX-License-Identifier: Apache-2.0
"""Masks as palette PNGs, as annotations to correct and as the VOC server's archive; networks as models to serve."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from wsss_ray import storage
from wsss_ray.artifacts.network import MODEL, NETWORK
from wsss_ray.artifacts.record import find_artifact, read_record
from wsss_ray.artifacts.tables import name_part, read_table
from wsss_ray.config import Exported, ExportForm, UserError
from wsss_ray.data.image import decode_mask, open_image
from wsss_ray.data.manifest import load_manifest, open_data
from wsss_ray.data.shards import read_shard_table
from wsss_ray.score.names import list_variants
from wsss_ray.serve.annotations import CocoWriter, build_label_studio_config, build_label_studio_task
from wsss_ray.serve.model import CARD, Predictor, open_model
from wsss_ray.serve.onnx_model import export_onnx
from wsss_ray.tracking import save_model

MAX_TOLERANCE = 1000
NAMES = "images.csv"
"""Image id -> the user's own file name, beside masks that are named by ids."""
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the VOC server looks for masks inside the archive (comp6: trained with more than VOC)."""


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and in which form."""

    what: Exported = "masks"
    form: ExportForm = "png"
    voc_server: bool = False
    """png: also ``results.tgz`` for the VOC server."""
    tolerance: float = 1.0
    """polygons: simplification tolerance in pixels; 0 = exact."""
    images: bool = False
    """coco, polygons: also the images, below ``images/``."""

    def __post_init__(self) -> None:
        for key, value, known in (("--what", self.what, get_args(Exported)), ("--as", self.form, get_args(ExportForm))):
            if value not in known:
                raise UserError(f"{key} {value}: choose {', '.join(known[:-1])} or {known[-1]}")
        if not 0 <= self.tolerance <= MAX_TOLERANCE:
            raise UserError(f"--tolerance {self.tolerance:g}: give a number of pixels from 0 to {MAX_TOLERANCE}")
        if self.voc_server and self.form != "png":
            raise UserError("--voc-server goes with --as png; leave one of the two out")


def export_run(run_folder: str, to: Path, options: ExportOptions) -> str:
    """Export a run's masks or network into ``to``; says what was written."""
    if options.form == "png":
        return export_masks(run_folder, to, options)
    if options.form == "mlflow":
        return export_model(run_folder, to)
    if options.form == "onnx":
        return export_onnx(Predictor(open_model(run_folder)), place_inside(to, "model.onnx"))
    return export_annotations(run_folder, to, options)


def read_parts(run_folder: str, what: Exported) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(file name, {image id: palette PNG}) of every part of a run's masks: of predictions the best variant there is."""
    folder = find_artifact(run_folder, what)
    columns = list_variants(what)
    for part in storage.list_names(folder):
        if part.endswith(".parquet"):
            rows = read_table(storage.join(folder, part)).to_pylist()
            yield part, {row["image_id"]: next(row[c] for c in columns if row[c] is not None) for row in rows}


def export_masks(run_folder: str, to: Path, options: ExportOptions) -> str:
    """Write ``<to>/<image id>.png`` for every image, with ``voc_server`` also ``<to>/results.tgz``."""
    read_record(run_folder)
    to.mkdir(parents=True, exist_ok=True)
    count = 0
    with contextlib.ExitStack() as files:
        archive = None
        if options.voc_server:
            archive = files.enter_context(tarfile.open(place_inside(to, "results.tgz"), "w:gz"))
        for _, masks in read_parts(run_folder, options.what):
            for image_id, png in masks.items():
                write_inside(to, f"{image_id}.png", png)
                if archive is not None:
                    entry = tarfile.TarInfo(f"{VOC_FOLDER}/{image_id}.png")
                    entry.size = len(png)
                    archive.addfile(entry, io.BytesIO(png))
                count += 1
    packed = f", and {to / 'results.tgz'} for the VOC server" if options.voc_server else ""
    named = f", their images' own names in {to / NAMES}" if _write_names(run_folder, to) else ""
    return f"{count} masks in {to}{packed}{named}"


def write_inside(folder: Path, name: str, data: bytes) -> None:
    """Write a file below ``folder``; UserError where its name, or a link on its way, leads out of it."""
    path = place_inside(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def place_inside(folder: Path, name: str) -> Path:
    """The place of a file below ``folder``; UserError where its name, or a link on its way, leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        what = "is a link that" if path.is_symlink() else "this name"
        raise UserError(f"{name}: {what} leads out of {folder}; rename or remove it (images: prepare the data again)")
    return path


def _write_names(run_folder: str, to: Path) -> bool:
    """``images.csv`` with the user's own file name of every image, where these are not the ids."""
    names = open_data(read_record(run_folder)["data"]).file_names()
    if all(Path(file).with_suffix("").as_posix() == image_id for image_id, file in names.items()):
        return False
    write_inside(to, NAMES, storage.format_csv([("image_id", "file"), *sorted(names.items())]))
    return True


def export_annotations(run_folder: str, to: Path, options: ExportOptions) -> str:
    """Write ``annotations/instances_default.json`` (COCO; CVAT reads it), with polygons also ``label_studio.json`` and
    ``label_studio.xml``, and with ``images`` the images below ``images/``.
    """
    manifest = load_manifest(read_record(run_folder)["data"])
    as_polygons = options.form == "polygons"
    writer = CocoWriter(manifest.classes, as_polygons, options.tolerance)
    listed: list[dict[str, Any]] = []
    folder = place_inside(to, "images") if options.images else None
    with contextlib.ExitStack() as files:
        path = place_inside(to, "annotations/instances_default.json")
        entries = files.enter_context(_JsonList(path, '{"annotations": '))
        tasks = files.enter_context(_JsonList(place_inside(to, "label_studio.json"))) if as_polygons else None
        for file_name, png in _name_files(run_folder, options.what, folder):
            mask = decode_mask(png, file_name)
            entry, found = writer.add_image(file_name, mask)
            listed.append(entry)
            for one in found:
                entries.add(one)
            if tasks is not None:
                tasks.add(build_label_studio_task(f"images/{file_name}", mask, manifest.classes, options.tolerance))
        info = {"description": f"wsss-ray {options.what}"}
        head = {"images": listed, "categories": writer.categories(), "info": info, "licenses": []}
        entries.ending = ", " + json.dumps(head)[1:]
    if as_polygons:
        text = build_label_studio_config(manifest.classes, manifest.palette)
        write_inside(to, "label_studio.xml", text.encode())
    also = f", {to / 'label_studio.json'} for Label Studio" if as_polygons else ""
    return f"{writer.num_annotations} annotations of {writer.num_images} images in {path}{also}"


class _JsonList:
    """A JSON list written entry by entry, so that it never lies in memory; renamed into place when it is whole."""

    def __init__(self, path: Path, beginning: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.temporary = path, path.with_name(f".tmp-{path.name}")
        self.ending, self._first = "", True
        self.temporary.unlink(missing_ok=True)  # a link would be written through
        self._stream = self.temporary.open("w", encoding="utf-8")
        self._stream.write(beginning + "[")

    def add(self, value: Any) -> None:
        self._stream.write(("" if self._first else ",") + "\n" + json.dumps(value))
        self._first = False

    def __enter__(self) -> _JsonList:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stream.write("\n]" + self.ending)
        self._stream.close()
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink()


def _name_files(run_folder: str, what: Exported, folder: Path | None) -> Iterator[tuple[str, bytes]]:
    """(file name, palette PNG) of every mask: the user's own name, or the id with an ending.

    Images go into ``folder``.
    """
    data = read_record(run_folder)["data"]
    opened = open_data(data)
    own = opened.file_names()
    shards = {name_part(shard.path): shard for shard in opened.manifest.shards}
    for part, masks in read_parts(run_folder, what):
        named: dict[str, str] = {}
        for row in read_shard_table(data, shards[part], ["image_id", "image"]).to_pylist():
            ending = {"JPEG": "jpg", "MPO": "jpg"}.get(found := str(open_image(row["image"]).format), found.lower())
            named[row["image_id"]] = own.get(row["image_id"], f"{row['image_id']}.{ending}")
            if folder is not None and row["image_id"] in masks:
                write_inside(folder, named[row["image_id"]], row["image"])
        for image_id, png in masks.items():
            yield named[image_id], png


def export_model(run_folder: str, to: Path) -> str:
    """The network of a run as an MLflow pyfunc model in ``to``, and logged with the run where MLflow knows it."""
    if to.exists() and any(to.iterdir()):
        raise UserError(f"{to}: is not empty; choose another --to or remove it")
    model = open_model(run_folder)
    run = storage.make_absolute(run_folder).rstrip("/")
    record = storage.join(run, "run.json")
    run_id = read_record(run)["mlflow_run"] or None if storage.exists(record) else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        for name in (NETWORK, MODEL):
            (folder / name).write_bytes(storage.read_bytes(storage.join(model.folder, name)))
        (folder / CARD).write_text(json.dumps(model.card), encoding="utf-8")
        shutil.rmtree(to, ignore_errors=True)
        code = Path(__file__).with_name("mlflow_model.py")
        uri = save_model(folder, code, to, run_id, run.rsplit("/", 2)[0])
    logged = f", logged as {uri}" if uri != str(to) else ""
    return f"model in {to}{logged}: mlflow models serve -m {to} --env-manager local -h 127.0.0.1 -p 5001"
