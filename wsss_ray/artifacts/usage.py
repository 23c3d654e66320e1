# SPDX-License-Identifier: Apache-2.0
"""What lies below ``<out>``: its runs with their scores, and the artifacts that no run needs."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from filelock import Timeout
from pyarrow import fs as pafs

from wsss_ray import storage
from wsss_ray.artifacts.files import RECORD
from wsss_ray.artifacts.record import list_finished, open_run
from wsss_ray.artifacts.store import lock_folder
from wsss_ray.config import UserError
from wsss_ray.data.manifest import MANIFEST
from wsss_ray.score.names import STEPS, read_miou

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Letter of an age -> its seconds."""


@dataclass(frozen=True)
class RunSummary:
    """A finished run in one line."""

    name: str
    recipe: str
    scale: str
    seed: int
    data: str
    finished: str
    """Local time, YYYY-MM-DD HH:MM:SS."""
    scores: dict[str, float]
    """Scored step -> mIoU in [0, 1] of its usual variant."""


@dataclass(frozen=True)
class Unused:
    """An artifact that no run names."""

    folder: str
    size: int
    """Bytes."""
    age: float
    """Seconds since its newest file was written."""


def list_runs(out: str) -> list[RunSummary]:
    """The finished runs below ``out``, the newest last; a damaged one is left out."""
    runs = storage.join(storage.make_absolute(out), "runs")
    found = []
    for name in list_finished(runs):
        try:
            found.append(summarize_run(storage.join(runs, name)))
        except UserError:
            continue
    return sorted(found, key=lambda run: run.finished)


def summarize_run(folder: str) -> RunSummary:
    """One finished run; UserError where its record is damaged."""
    run = open_run(folder)
    mious = {step: read_miou(run.record["scores"], step) for step in STEPS}
    return RunSummary(
        name=run.name,
        recipe=run.recipe["name"],
        scale=run.recipe["scale"],
        seed=run.recipe["seed"],
        data=run.record["data"],
        finished=run.record["finished"],
        scores={step: miou for step, miou in mious.items() if miou is not None},
    )


def list_used(out: str) -> set[str]:
    """``stage/folder`` of everything that a finished run below ``out`` made or read. UserError for a damaged record."""
    root = storage.make_absolute(out).rstrip("/")
    runs = storage.join(root, "runs")
    used: set[str] = set()
    for name in list_finished(runs):
        record = open_run(storage.join(runs, name)).record
        for step in [*record["steps"], *record["artifacts"].values()]:
            used.add(f"{step['stage']}/{step['digest']}")
        data = str(record["data"])
        if data.startswith(f"{root}/"):
            used.add(data.removeprefix(f"{root}/"))
    return used


def list_unfinished(out: str) -> list[str]:
    """``recipe.yaml`` of every run below ``out`` that was started and has not ended."""
    runs = storage.join(storage.make_absolute(out), "runs")
    ended = set(list_finished(runs))
    recipes = [storage.join(runs, name, "recipe.yaml") for name in _list_folders(runs) if name not in ended]
    return [recipe for recipe in recipes if storage.exists(recipe)]


def list_artifacts(out: str, stages: Iterable[str]) -> list[str]:
    """Folders of the finished artifacts below ``out``."""
    root = storage.make_absolute(out)
    folders = [storage.join(root, stage, name) for stage in stages for name in _list_folders(storage.join(root, stage))]
    return [folder for folder in folders if storage.exists(storage.join(folder, RECORD))]


def find_unused(out: str, stages: Iterable[str], used: set[str], older_than: float = 0.0) -> list[Unused]:
    """The artifacts below ``out`` of these stages that are not ``used``, and whose newest file is at least
    ``older_than`` seconds old; the largest first. Data that was prepared from files is no artifact.
    """
    root = storage.make_absolute(out)
    found = []
    for stage in stages:
        for name in _list_folders(storage.join(root, stage)):
            folder = storage.join(root, stage, name)
            prepared = storage.exists(storage.join(folder, MANIFEST)) and not storage.exists(
                storage.join(folder, RECORD)
            )
            if f"{stage}/{name}" not in used and not prepared:
                size, age = _measure(folder)
                if age >= older_than:
                    found.append(Unused(folder, size, age))
    return sorted(found, key=lambda one: -one.size)


def remove(unused: Iterable[Unused]) -> list[Unused]:
    """Remove artifacts and return those that are gone; one that a run is computing now is left.

    The record goes first: an artifact whose removal is cut off half-way is no finished one any more.
    """
    gone = []
    for one in unused:
        try:
            with lock_folder(one.folder).acquire(timeout=0):
                storage.remove(storage.join(one.folder, RECORD))
                storage.remove_folder(one.folder)
        except Timeout:
            continue
        gone.append(one)
    return gone


def read_age(text: str) -> float:
    """30m, 12h, 7d or 2w -> seconds; UserError for anything else."""
    match = re.fullmatch(r"(\d+)([mhdw])", text.strip())
    if match is None:
        raise UserError(f"--older-than {text}: give a number and m, h, d or w, for example 7d")
    return float(int(match[1]) * UNITS[match[2]])


def _list_folders(uri: str) -> list[str]:
    filesystem, path = storage.open_fs(uri)
    infos: list[Any] = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def _measure(folder: str) -> tuple[int, float]:
    """Bytes of all files below a folder, and seconds since the newest was written."""
    filesystem, path = storage.open_fs(folder)
    infos = [
        info
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        if info.type == pafs.FileType.File
    ]
    now = datetime.datetime.now(datetime.UTC)
    newest = max((info.mtime for info in infos if info.mtime is not None), default=None)
    return sum(info.size for info in infos), 0.0 if newest is None else (now - newest).total_seconds()
