"""``wsss data saliency``: maps for images that come without any, a step of its own that every score names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
from ray import cloudpickle

from wsss_ray import storage
from wsss_ray.cluster.join import Machines, join_cluster, plan_machines
from wsss_ray.cluster.progress import Bar, console
from wsss_ray.config import UserError
from wsss_ray.data import image as pic
from wsss_ray.data.checks import ReadsFiles
from wsss_ray.data.grey import PLAIN, Grey
from wsss_ray.data.saliency import NOTE, describe_detector, detect_saliency
from wsss_ray.data.source import Item, Source, read_file
from wsss_ray.data.survey import survey_source
from wsss_ray.recipe import Resources

_SHOWN = 20
_PER_TASK = 16
_pack: Callable[[Any], bytes] = cloudpickle.dumps


def make_saliency(
    source: Source, out: str, detector: str = "border_cut", skip_bad: bool = False, address: str | None = None
) -> int:
    """Write ``<id>.png`` for every image of a source into ``out``, beside a note of what made them; returns how many
    maps are there.

    Maps that are there already are kept, so that the same call goes on after an interruption. Raises UserError where
    ``out`` holds maps of something else, or images that cannot be read (``skip_bad`` leaves those without a map).
    """
    made = describe_detector(detector)
    name = source.name
    source, problems = survey_source(source)
    faults = [str(problem) for problem in problems if problem.kind == "id"]
    if faults:
        raise UserError(faults[0])
    items = [item for item in source.items if item.image is not None]
    if not items:
        raise UserError(f"{name}: no image files to look at; this step is for folders, voc and coco")
    _claim(out, made)
    with join_cluster(address):
        grey = source.load.reading.grey if isinstance(source.load, ReadsFiles) else PLAIN
        bad = detect_all(items, out, (detector, grey), plan_machines(Resources()))
    if bad and not skip_bad:
        listed = "\n  ".join(bad[:_SHOWN]) + (f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        raise UserError(
            f"{len(bad)} images have no map, the other {len(items) - len(bad)} do:\n  {listed}\n"
            "mend them and call again, or leave them without a map with --skip-bad"
        )
    console.print(f"{len(items) - len(bad)} saliency maps by {detector} in {out}", soft_wrap=True)
    console.print(f"next: wsss data prepare {name} ... --saliency {out}", soft_wrap=True)
    return len(items) - len(bad)


def detect_all(items: list[Item], out: str, how: tuple[str, Grey], layout: Machines) -> list[str]:
    """Detect in every image that has no map yet, by a detector in images whose deep grey is read in this way; what went
    wrong, one line an image.
    """
    ready = set(storage.list_names(out))
    todo = [item for item in items if f"{item.image_id}.png" not in ready]
    bad: list[str] = []
    with Bar("saliency", len(items)) as bar:
        bar.at(len(items) - len(todo), "resumed" if len(todo) < len(items) else None)
        for row in _made(todo, out, how, layout) if todo else ():
            bad += [str(line) for line in row["bad"]]
            bar.advance(int(row["items"]))
    return bad


def _claim(out: str, made: dict[str, Any]) -> None:
    """Write the note first, so that maps of two detectors never mix."""
    note = storage.join(out, NOTE)
    if storage.exists(note):
        found = storage.read_json(note)
        if found != made:
            raise UserError(f"{out}: holds maps of {_short(found)}, not of {_short(made)}; choose another --out")
    elif any(name.endswith(".png") for name in storage.list_names(out)):
        raise UserError(f"{out}: holds images that this step did not make; choose another --out")
    else:
        storage.write_json(note, made)


def _short(made: dict[str, Any]) -> str:
    return " ".join(str(made.get(key, "?")) for key in ("detector", "detector_version", "library"))


def _made(todo: list[Item], out: str, how: tuple[str, Grey], layout: Machines) -> Iterator[dict[str, Any]]:
    size = max(1, min(_PER_TASK, -(-len(todo) // layout.inference_workers)))
    light = [(item.image_id, item.image) for item in todo]
    parts = [{"items": _pack(light[start : start + size])} for start in range(0, len(light), size)]
    pipeline = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _detect_part,  # type: ignore[arg-type]
        fn_args=(out, *how),
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=layout.inference_workers),
        num_cpus=1,
    )
    yield from pipeline.iter_rows()


def _detect_part(batch: dict[str, np.ndarray], out: str, detector: str, grey: Grey) -> dict[str, Any]:
    """Some images, in a Ray task; each map is written whole or not at all."""
    items: list[tuple[str, str | bytes]] = cloudpickle.loads(batch["items"][0])
    bad = []
    for image_id, image in items:
        try:
            pixels = pic.decode_image(read_file(image, "image"), image if isinstance(image, str) else image_id, grey)
        except UserError as error:
            bad.append(str(error))
            continue
        storage.write_bytes(storage.join(out, f"{image_id}.png"), pic.encode_grey(detect_saliency(pixels, detector)))
    return {"bad": [bad], "items": [len(items)]}
