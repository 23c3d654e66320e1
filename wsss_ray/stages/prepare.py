"""``wsss data prepare``: a source's images are read, checked and written as Parquet shards in one pass over Ray
Data.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
from ray import cloudpickle

from wsss_ray import storage
from wsss_ray.artifacts.store import Step
from wsss_ray.cluster.join import Machines, cluster, machines
from wsss_ray.cluster.progress import Bar, console
from wsss_ray.config import UserError
from wsss_ray.data.checks import Problem, find_problems
from wsss_ray.data.manifest import MANIFEST, DataSet, Manifest, ShardInfo, load_manifest, open_data, write_manifest
from wsss_ray.data.saliency import read_origin
from wsss_ray.data.shards import check, make_manifest, plan_shards, write_shard
from wsss_ray.data.source import Item, Source
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig
from wsss_ray.recipe import Resources
from wsss_ray.stages.run import Steps

VERSION = 1
"""1: as first written."""
_SHOWN = 20


def prepare_source(
    name: str, root: Path | None, options: dict[str, Any], out: str, skip_bad: bool, address: str | None
) -> Manifest:
    """Prepare a source by name; prints what was made. UserError lists every image that cannot be used."""
    source = open_source(name, root, **options)
    if options.get("saliency") is not None and _saliency_folder(source) is None:
        example = next((item.image_id for item in source.items), "<id>")
        raise UserError(f"--saliency {options['saliency']}: no map of any image there; expected {example}.png")
    _quick_look(source, skip_bad)
    with cluster(address):
        manifest = prepare(source, out, machines(Resources()), skip_bad)
    for split, info in manifest.splits.items():
        extras = [word for word, have in (("masks", info.has_masks), ("saliency", info.has_saliency)) if have]
        console.print(f"{split}: {info.num_images} images, {', '.join(extras) or 'no masks'}")
        mapped = sum(shard.num_saliency for shard in manifest.shards_of(split))
        if 0 < mapped < info.num_images:
            without = f"{info.num_images - mapped} of {info.num_images} images of split {split!r}"
            console.print(f"note: {without} have no saliency map, the first is {info.first_without_saliency}")
    console.print(f"{len(manifest.classes)} classes, {len(manifest.shards)} shards in {out}", soft_wrap=True)
    return manifest


@dataclass(frozen=True)
class PrepareStep(Step):
    """What can change the generated images."""

    stage: ClassVar[str] = "data"
    version: ClassVar[int] = VERSION
    toy: dict[str, Any]


def generate_toy(steps: Steps, toy: ToyConfig, layout: Machines) -> DataSet:
    """The generated images, as a step of a run."""

    def compute(folder: str) -> dict[str, Any]:
        start = time.monotonic()
        manifest = prepare(open_source("toy", config=toy), folder, layout, skip_bad=False)
        return {"images_per_second": manifest.num_images / (time.monotonic() - start)}

    return open_data(steps.find_or_compute("data", PrepareStep(toy=toy.model_dump(mode="json")), compute).uri)


def prepare(source: Source, out: str, layout: Machines, skip_bad: bool = False) -> Manifest:
    """Write ``source`` into ``out``: every image is decoded once, checked and stored; the manifest comes last.

    Finished shards of a killed call are kept where the same images go into them. With ``skip_bad`` images that
    cannot be used are
    left out and counted, otherwise they are all listed in one UserError and nothing is left behind.
    """
    if storage.exists(storage.join(out, MANIFEST)):
        raise UserError(f"{out}: holds a prepared data set already; choose another --out or remove it")
    counts: Counter[str] = Counter(item.image_id for item in source.items)
    doubled = [name for name, count in counts.items() if count > 1]
    if doubled:
        raise UserError(f"{source.name}: image id {doubled[0]!r} comes twice; rename one of the two images")
    total = len(counts)
    rows = max(16, min(128, total // 256))
    infos: list[ShardInfo] = []
    bad: list[str] = []
    with Bar("prepare", total) as bar:
        for made in _written(source, plan_shards(source.items, rows), out, layout):
            bad += [str(line) for line in made["bad"]]
            info = ShardInfo.model_validate_json(str(made["info"]))
            infos += [info] if info.num_rows else []
            bar.advance(int(made["items"]))
    if bad and not skip_bad:
        _remove(out)
        raise UserError(_listed(bad) + "; mend them, or leave them out with --skip-bad")
    if bad:
        console.print(
            f"left out {len(bad)} images that cannot be used:\n  " + "\n  ".join(bad[:_SHOWN]), soft_wrap=True
        )
    origin = read_origin(_saliency_folder(source))
    source.options = {
        **source.options,
        **({"skipped": len(bad)} if bad else {}),
        **({"saliency": origin} if origin is not None else {}),
    }
    manifest = make_manifest(source, infos)
    write_manifest(manifest, out)
    return manifest


def _saliency_folder(source: Source) -> Path | None:
    """Where the first saliency map lies; None where no image has a file of its own."""
    maps = (item.saliency for item in source.items if isinstance(item.saliency, str))
    first = next(maps, None)
    return None if first is None else Path(first).parent


def _quick_look(source: Source, skip_bad: bool) -> None:
    """Headers of every image, before anything starts; warnings are shown, errors end the call."""
    problems = find_problems(source, fast=True) if source.name != "toy" else []
    warnings = [problem for problem in problems if problem.level == "warning"]
    for problem in warnings[:_SHOWN]:
        console.print(f"note: {problem}", soft_wrap=True)
    if len(warnings) > _SHOWN:
        console.print(f"note: and {len(warnings) - _SHOWN} more like these")
    errors = [problem for problem in problems if problem.level == "error"]
    if errors and not skip_bad:
        raise UserError(
            _listed([str(problem) for problem in errors]) + "; mend them, or leave them out with --skip-bad"
        )


def _listed(lines: list[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{len(lines)} images cannot be used:\n  " + "\n  ".join(lines[:_SHOWN]) + more


def _written(
    source: Source, plan: Iterable[tuple[str, tuple[str, ...], list[Item]]], out: str, layout: Machines
) -> Iterator[dict[str, Any]]:
    """Write every planned shard on the cluster; yields {"info", "bad", "items"} as they finish."""
    load = cloudpickle.dumps(source.load)
    parts = [{"name": name, "splits": list(splits), "items": cloudpickle.dumps(items)} for name, splits, items in plan]
    if not parts:
        raise UserError(f"{source.name}: no images in any split; check the folder and its lists")
    pipeline = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        _write,  # type: ignore[arg-type]
        fn_args=(load, out),
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=layout.inference_workers),
        num_cpus=1,
    )
    yield from pipeline.iter_rows()


def _write(batch: dict[str, np.ndarray], load: bytes, out: str) -> dict[str, Any]:
    """One shard, in a Ray task; a finished one of the same images is taken as it is."""
    name, items = str(batch["name"][0]), cloudpickle.loads(batch["items"][0])
    where, note = storage.join(out, name), storage.join(out, f"{name}.json")
    stamp = hashlib.sha256(batch["items"][0] + load).hexdigest()
    if storage.exists(where) and storage.exists(note):
        known = storage.read_json(note)
        if known["stamp"] == stamp:
            return {"info": [known["info"]], "bad": [known["bad"]], "items": [len(items)]}
    load_item = cloudpickle.loads(load)
    rows, bad = [], []
    for item in items:
        try:
            rows.append(load_item(item))
        except UserError as error:
            bad.append(str(error))
    info = write_shard(rows, where, [str(split) for split in batch["splits"][0]])
    storage.write_json(note, {"stamp": stamp, "info": info.model_dump_json(), "bad": bad})
    return {"info": [info.model_dump_json()], "bad": [bad], "items": [len(items)]}


def _remove(out: str) -> None:
    filesystem, _ = storage.open_fs(out)
    for name in storage.list_names(out):
        if name.startswith("shard-"):
            filesystem.delete_file(storage.open_fs(storage.join(out, name))[1])


def check_shards(uri: str) -> None:
    """Verify a prepared data set and print what it holds; UserError lists what is wrong."""
    manifest = load_manifest(uri)
    with Bar("check", manifest.num_images) as bar:
        problems: list[Problem] = check(uri, lambda shard: bar.advance(shard.num_rows))
    if problems:
        raise UserError("\n  ".join([f"{uri}: {len(problems)} problems:", *map(str, problems[:_SHOWN])]))
    for split, info in manifest.splits.items():
        console.print(f"{split}: {info.num_images} images, digest {info.digest}")
    console.print(f"{uri}: whole and readable", soft_wrap=True)
