"""Masks as palette PNGs, as annotations to correct and as the VOC server's archive; networks as models to serve."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.artifacts.record import artifact_folder, run_record
from wsss_ray.artifacts.tables import part_name, read_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask, open_image
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard_table

KINDS = {"masks": ("masks", ("mask",)), "predictions": ("predictions", ("crf", "multi_scale", "single_scale"))}
"""What can be exported -> (artifact of the run, columns, best first)."""
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the VOC server looks for masks inside the archive (comp6: trained with more than VOC)."""


def parts_of(run_folder: str, what: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(file name, {image id: palette PNG}) of every part of a run's masks."""
    if what not in KINDS:
        raise UserError(f"--what {what}: choose {' or '.join(KINDS)}")
    name, columns = KINDS[what]
    folder = artifact_folder(run_folder, name)
    for part in storage.list_names(folder):
        if part.endswith(".parquet"):
            rows = read_table(storage.join(folder, part)).to_pylist()
            yield part, {row["image_id"]: next(row[c] for c in columns if row[c] is not None) for row in rows}


def masks_of(run_folder: str, what: str) -> Iterator[tuple[str, bytes]]:
    """(image id, palette PNG) of every mask of a run, part by part."""
    for _, masks in parts_of(run_folder, what):
        yield from masks.items()


def export_run(run_folder: str, to: Path, what: str = "masks", voc_server: bool = False) -> str:
    """Write ``<to>/<image id>.png`` for every image, with ``voc_server`` also ``<to>/results.tgz``."""
    run_record(run_folder)
    to.mkdir(parents=True, exist_ok=True)
    count = 0
    archive = tarfile.open(to / "results.tgz", "w:gz") if voc_server else None  # noqa: SIM115
    try:
        for image_id, png in masks_of(run_folder, what):
            path = to / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
            if archive is not None:
                entry = tarfile.TarInfo(f"{VOC_FOLDER}/{image_id}.png")
                entry.size = len(png)
                archive.addfile(entry, io.BytesIO(png))
            count += 1
    finally:
        if archive is not None:
            archive.close()
    packed = f", and {to / 'results.tgz'} for the VOC server" if voc_server else ""
    return f"{count} masks in {to}{packed}"


def export(
    run_folder: str,
    to: Path,
    what: str = "masks",
    kind: str = "png",
    voc_server: bool = False,
    tolerance: float = 1.0,
    images: bool = False,
) -> str:
    """Export in one of the four ways of ``KINDS_OF_EXPORT``; says what was written."""
    if kind not in KINDS_OF_EXPORT:
        raise UserError(f"--as {kind}: choose {', '.join(KINDS_OF_EXPORT)}")
    if voc_server and kind != "png":
        raise UserError("--voc-server goes with --as png; leave one of the two out")
    if kind == "png":
        return export_run(run_folder, to, what, voc_server)
    if kind == "mlflow":
        return export_model(run_folder, to)
    return export_annotations(run_folder, to, what, kind == "polygons", tolerance, images)


KINDS_OF_EXPORT = ("png", "coco", "polygons", "mlflow")


def export_annotations(
    run_folder: str, to: Path, what: str, as_polygons: bool, tolerance: float = 1.0, images: bool = False
) -> str:
    """Write ``annotations/instances_default.json`` (COCO; CVAT reads it), with polygons also ``label_studio.json`` and
    ``label_studio.xml``, and with ``images`` the images below ``images/``."""
    from wsss_ray.serve.annotations import CocoWriter, build_label_studio_config, build_label_studio_task

    manifest = load_manifest(run_record(run_folder)["data"])
    writer = CocoWriter(manifest.classes, as_polygons, tolerance)
    listed: list[dict[str, Any]] = []
    folder = to / "images" if images else None
    with contextlib.ExitStack() as files:
        path = to / "annotations" / "instances_default.json"
        entries = files.enter_context(_JsonList(path, '{"annotations": '))
        tasks = files.enter_context(_JsonList(to / "label_studio.json")) if as_polygons else None
        for file_name, png in _with_files(run_folder, what, folder):
            mask = decode_mask(png, file_name)
            entry, found = writer.add_image(file_name, mask)
            listed.append(entry)
            for one in found:
                entries.add(one)
            if tasks is not None:
                tasks.add(build_label_studio_task(f"images/{file_name}", mask, manifest.classes, tolerance))
        head = {
            "images": listed,
            "categories": writer.categories(),
            "info": {"description": f"wsss-ray {what}"},
        }
        entries.ending = ", " + json.dumps({**head, "licenses": []})[1:]
    if as_polygons:
        text = build_label_studio_config(manifest.classes, manifest.palette)
        (to / "label_studio.xml").write_text(text, encoding="utf-8")
    also = f", {to / 'label_studio.json'} for Label Studio" if as_polygons else ""
    return f"{writer.num_annotations} annotations of {writer.num_images} images in {path}{also}"


class _JsonList:
    """A JSON list written entry by entry, so that it never lies in memory; renamed into place when it is whole."""

    def __init__(self, path: Path, beginning: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.temporary = path, path.with_name(f".tmp-{path.name}")
        self.ending, self._first = "", True
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


def _with_files(run_folder: str, what: str, folder: Path | None) -> Iterator[tuple[str, bytes]]:
    """(file name, palette PNG) of every mask; the ending follows the image's format. Images go into ``folder``."""
    data = run_record(run_folder)["data"]
    shards = {part_name(shard.path): shard for shard in load_manifest(data).shards}
    for part, masks in parts_of(run_folder, what):
        named: dict[str, str] = {}
        for row in read_shard_table(data, shards[part], ["image_id", "image"]).to_pylist():
            ending = {"JPEG": "jpg", "MPO": "jpg"}.get(found := str(open_image(row["image"]).format), found.lower())
            named[row["image_id"]] = f"{row['image_id']}.{ending}"
            if folder is not None and row["image_id"] in masks:
                path = folder / named[row["image_id"]]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(row["image"])
        for image_id, png in masks.items():
            yield named[image_id], png


def export_model(run_folder: str, to: Path) -> str:
    """The network of a run as an MLflow pyfunc model in ``to``, and logged with the run where MLflow knows it."""
    from wsss_ray.artifacts.network import MODEL
    from wsss_ray.serve.model import CARD, open_model
    from wsss_ray.tracking import save_model

    if to.exists() and any(to.iterdir()):
        raise UserError(f"{to}: is not empty; choose another --to or remove it")
    model = open_model(run_folder)
    run = storage.absolute(run_folder).rstrip("/")
    record = storage.join(run, "run.json")
    run_id = storage.read_json(record).get("mlflow_run") if storage.exists(record) else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        for name in ("network.json", MODEL):
            (folder / name).write_bytes(storage.read_bytes(storage.join(model.folder, name)))
        (folder / CARD).write_text(json.dumps(model.card()), encoding="utf-8")
        shutil.rmtree(to, ignore_errors=True)
        uri = save_model(folder, to, run_id, run.rsplit("/", 2)[0])
    logged = f", logged as {uri}" if uri != str(to) else ""
    return f"model in {to}{logged}: mlflow models serve -m {to} --env-manager local -h 127.0.0.1 -p 5001"
