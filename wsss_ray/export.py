"""Pseudo masks or predictions as palette PNGs, and the VOC server's archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.tables import read_table

KINDS = {"masks": ("masks", ("mask",)), "predictions": ("predictions", ("crf", "multi_scale", "single_scale"))}
"""What can be exported -> (artifact of the run, columns, best first)."""
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the VOC server looks for masks inside the archive (comp6: trained with more than VOC)."""


def artifact_folder(run_folder: str, name: str) -> str:
    """The folder of one of a run's artifacts; UserError where the run has none of this name."""
    record = storage.join(storage.absolute(run_folder), "run.json")
    if not storage.exists(record):
        raise UserError(f"{run_folder}: no finished run here; give a folder below --out/runs")
    run: dict[str, Any] = storage.read_json(record)
    if name not in run["artifacts"]:
        raise UserError(f"{run_folder}: this run made no {name}; it made {', '.join(sorted(run['artifacts']))}")
    root = storage.absolute(run_folder).rstrip("/").rsplit("/", 2)[0]
    entry = run["artifacts"][name]
    return storage.join(root, entry["stage"], entry["digest"])


def masks_of(run_folder: str, what: str) -> Iterator[tuple[str, bytes]]:
    """(image id, palette PNG) of every mask of a run, part by part."""
    if what not in KINDS:
        raise UserError(f"--what {what}: choose {' or '.join(KINDS)}")
    name, columns = KINDS[what]
    folder = artifact_folder(run_folder, name)
    for part in storage.list_names(folder):
        if part.endswith(".parquet"):
            for row in read_table(storage.join(folder, part)).to_pylist():
                yield row["image_id"], next(row[column] for column in columns if row[column] is not None)


def export_run(run_folder: str, to: Path, what: str = "masks", voc_server: bool = False) -> str:
    """Write ``<to>/<image id>.png`` for every picture, and with ``voc_server`` also ``<to>/results.tgz``; says what was written."""
    to.mkdir(parents=True, exist_ok=True)
    count = 0
    archive = tarfile.open(to / "results.tgz", "w:gz") if voc_server else None
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
