# SPDX-License-Identifier: Apache-2.0
"""``wsss data saliency``: maps for images that come without any, a step of its own that every score names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import ObjectRef

from wsss_ray import storage
from wsss_ray.cluster.join import Machines, join_cluster, plan_machines
from wsss_ray.cluster.parts import DEADLY, pack_items, run_parts, unpack_items
from wsss_ray.cluster.probe import list_places
from wsss_ray.cluster.process import keep
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.data import image as pic
from wsss_ray.data.checks import ReadsFiles
from wsss_ray.data.detector import Detector
from wsss_ray.data.grey import PLAIN, Grey
from wsss_ray.data.saliency import NOTE, detect_saliency, open_detector
from wsss_ray.data.source import Item, Source, read_file
from wsss_ray.data.survey import survey_source
from wsss_ray.recipe import Resources

log = logging.getLogger(__name__)
_SHOWN = 20
_PER_TASK = 16
_READERS = 8
"""Threads that verify what an earlier call left."""


def make_saliency(
    source: Source,
    out: str,
    detector: str = "border_cut",
    options: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    address: str | None = None,
) -> int:
    """Write ``<id>.png`` for every image of a source into ``out``, beside a note of what made them; returns how many
    maps are there.

    Maps that are there already are kept, so that the same call goes on after an interruption. Raises UserError where
    ``out`` holds maps of something else, or images that cannot be read (``skip_bad`` leaves those without a map).
    """
    name, out = source.name, storage.make_absolute(out)
    source, problems = survey_source(source)
    faults = [str(problem) for problem in problems if problem.kind == "id"]
    if faults:
        raise UserError(faults[0])
    items = [item for item in source.items if item.image is not None]
    if not items:
        raise UserError(f"{name}: no image files to look at; this step is for folders, voc and coco")
    opened = open_detector(detector, options)
    _claim(out, opened.made)
    with join_cluster(address, list_places(out)):
        grey = source.load.reading.grey if isinstance(source.load, ReadsFiles) else PLAIN
        bad = detect_all(items, out, (opened, grey), plan_machines(Resources()))
    if bad and not skip_bad:
        listed = "\n  ".join(bad[:_SHOWN]) + (f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        raise UserError(
            f"{len(bad)} images have no map, the other {len(items) - len(bad)} do:\n  {listed}\n"
            "fix them and run the same command, or leave them without a map with --skip-bad"
        )
    log.info(f"{len(items) - len(bad)} saliency maps by {detector} in {out}")
    log.info(f"next: wsss data prepare {name} ... --saliency {out}")
    return len(items) - len(bad)


def detect_all(items: list[Item], out: str, how: tuple[Detector, Grey], layout: Machines) -> list[str]:
    """Detect in every image that has no map yet, by a detector in images whose deep grey is read in this way; what went
    wrong, one line an image.
    """
    there = set(storage.list_names(out))
    ready = _keep_whole(out, [name for item in items if (name := f"{item.image_id}.png") in there])
    todo = [item for item in items if f"{item.image_id}.png" not in ready]
    bad: list[str] = []
    with Bar("saliency", len(items)) as bar:
        bar.keep(len(items) - len(todo))
        for row in _made(todo, out, how, layout) if todo else ():
            bad += [str(line) for line in row["bad"]]
            bar.advance(int(row["items"]))
    return bad


def _keep_whole(out: str, names: list[str]) -> set[str]:
    """The maps that are what was written: a PNG holds the checksums of all its parts."""

    def is_whole(name: str) -> bool:
        return pic.is_whole_png(storage.read_bytes(storage.join(out, name)))

    with ThreadPoolExecutor(_READERS) as pool:
        whole = dict(zip(names, pool.map(is_whole, names), strict=True))
    for name, good in whole.items():
        if not good:
            log.warning(f"{storage.join(out, name)}: damaged, made again")
    return {name for name, good in whole.items() if good}


def _claim(out: str, made: dict[str, Any]) -> None:
    """Write the note first, so that maps of two detectors never mix."""
    note = storage.join(out, NOTE)
    if storage.exists(note):
        found = _read_note(note)
        if found != made:
            there, wanted = _tell_apart(found, made)
            raise UserError(f"{out}: holds maps of {there}, not of {wanted}; choose another --out")
    elif any(name.endswith(".png") for name in storage.list_names(out)):
        raise UserError(f"{out}: holds images that this step did not make; choose another --out")
    else:
        storage.write_json(note, made)


def _read_note(note: str) -> dict[str, Any]:
    """What made the maps beside a note; UserError where it is damaged."""
    try:
        return dict(storage.read_json(note))
    except (UserError, TypeError, ValueError):
        raise UserError(f"{note}: damaged, it no longer says what made these maps; remove the folder") from None


def _tell_apart(found: dict[str, Any], made: dict[str, Any]) -> tuple[str, str]:
    """Two notes in a few words each: what made the maps, and whatever else differs."""
    always = ("detector", "detector_version", "library", "network")
    keys = [*always, *sorted(key for key in made if key not in always and found.get(key) != made[key])]
    first, second = (" ".join(str(note[key]) for key in keys if key in note) for note in (found, made))
    return first, second


def _made(todo: list[Item], out: str, how: tuple[Detector, Grey], layout: Machines) -> Iterator[dict[str, Any]]:
    size = max(1, min(_PER_TASK, -(-len(todo) // layout.cpu_workers)))
    light = [(item.image_id, item.image) for item in todo]
    parts = [{"items": pack_items(light[start : start + size])} for start in range(0, len(light), size)]
    yield from run_parts(_detect_part, parts, (out, ray.put(how[0]), how[1]), layout, _bury)


def _bury(row: dict[str, Any], dead: list[tuple[str, str | bytes]]) -> dict[str, Any]:
    """What is said of some images without those that kill whoever reads them."""
    lines = [f"{image if isinstance(image, str) else image_id}: {DEADLY}" for image_id, image in dead]
    return {"bad": [*row["bad"], *lines], "items": int(row["items"]) + len(dead)}


def _detect_part(part: Mapping[str, Any], out: str, sent: ObjectRef[Detector], grey: Grey) -> dict[str, Any]:
    """Some images, in a Ray task."""
    detector: Detector = keep(sent.hex(), lambda: ray.get(sent))
    items = unpack_items(part["items"])
    return {"bad": write_maps(items, out, detector, grey), "items": len(items)}


def write_maps(items: Iterable[tuple[str, str | bytes]], out: str, detector: Detector, grey: Grey = PLAIN) -> list[str]:
    """Write the maps of images given by id and file, each whole or not at all; what went wrong, one line an image."""
    bad = []
    for image_id, image in items:
        try:
            pixels = pic.decode_image(
                read_file(image, "image"), image if isinstance(image, str) else image_id, grey, pic.MAX_PIXELS
            )
            found = detect_saliency(pixels, detector)
        except UserError as error:
            bad.append(str(error))
            continue
        storage.write_bytes(storage.join(out, f"{image_id}.png"), pic.encode_grey(found))
    return bad
