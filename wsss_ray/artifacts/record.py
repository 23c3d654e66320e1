# SPDX-License-Identifier: Apache-2.0
"""Finished runs as they lie below ``<out>/runs``: found by name, read without Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from pyarrow import fs as pafs
from pydantic import BaseModel, ValidationError

from wsss_ray import storage
from wsss_ray.artifacts.store import Artifact
from wsss_ray.artifacts.tables import read_counts
from wsss_ray.config import UserError
from wsss_ray.data.manifest import DataSet, load_manifest
from wsss_ray.recipe import SettledRecipe
from wsss_ray.score.names import STEPS, take_scored

RECORD = "run.json"
FIX = "'wsss run' with the recipe.yaml beside it writes it again"


AGAIN = "'wsss run' with the same recipe and --out writes it again"


class MadeRecord(BaseModel, extra="allow"):
    """An artifact as a run's record names it."""

    stage: str
    digest: str


class StepRecord(MadeRecord):
    """A step of a run, in order."""

    title: str


class RunRecord(BaseModel, extra="allow"):
    """What every ``run.json`` holds."""

    scores: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, MadeRecord]
    data: str
    history: dict[str, list[dict[str, Any]]] = {}
    steps: list[StepRecord] = []
    classes: list[str] = []
    splits: dict[str, str | None] = {}
    mlflow_run: str = ""
    finished: str = ""


@dataclass(frozen=True)
class RunFolder:
    """What a finished run left behind."""

    folder: str
    record: dict[str, Any]
    """``run.json``: scores, history, steps, artifacts, data, classes."""
    recipe: dict[str, Any]
    """``recipe.yaml`` as plain values."""

    @property
    def name(self) -> str:
        """The folder's own name, e.g. ``cam-1f758300``."""
        return self.folder.rstrip("/").rsplit("/", 1)[-1]

    @property
    def out(self) -> str:
        """The folder all artifacts lie below."""
        return self.folder.rstrip("/").rsplit("/", 2)[0]

    @property
    def labels(self) -> list[str]:
        """The K label names, background first."""
        classes = self.record.get("classes")
        if classes:
            return ["background", *classes]
        return ["background", *load_manifest(self.record["data"]).classes]

    def artifact(self, name: str) -> str | None:
        """The folder of one of the run's artifacts, None where it made none of this name."""
        entry = self.record["artifacts"].get(name)
        return None if entry is None else storage.join(self.out, entry["stage"], entry["digest"])

    def scored(self, step: str) -> dict[str, dict[str, Any]]:
        """Variant -> numbers with their protocol, of one step; empty where it was not scored."""
        return take_scored(step, self.record["scores"].get(step, {}))

    def counts(self, step: str) -> dict[str, tuple[list[str], np.ndarray]]:
        """Variant -> (image ids, (N, 3, K) counts) of one step; empty where its artifact is gone."""
        folder = self.artifact(f"score {step}")
        return {} if folder is None else read_counts(folder, len(self.labels))


def open_run(name: str, out: str = "results") -> RunFolder:
    """A run by its folder, or by (the beginning of) its name below ``out``; UserError lists the runs there are."""
    folder = storage.make_absolute(name)
    if not storage.exists(storage.join(folder, RECORD)):
        runs = storage.join(storage.make_absolute(out), "runs")
        there = list_finished(runs)
        if "://" in name or "/" in name:
            raise UserError(f"{name}: no finished run here; give a folder below --out/runs{_listed(there)}")
        fitting = [entry for entry in there if entry == name] or [entry for entry in there if entry.startswith(name)]
        if len(fitting) != 1:
            what = "no run" if not fitting else f"{len(fitting)} runs"
            raise UserError(f"{what} {name!r} in {runs}: give a folder or a name{_listed(fitting or there)}")
        folder = storage.join(runs, fitting[0])
    return RunFolder(folder, read_record(folder), read_recipe(folder))


def read_recipe(folder: str) -> dict[str, Any]:
    """A run's ``recipe.yaml`` as plain values; UserError where it is damaged."""
    where = storage.join(folder, "recipe.yaml")
    try:
        recipe = yaml.safe_load(storage.read_bytes(where))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({str(error).splitlines()[0]}); {AGAIN}") from None
    if not isinstance(recipe, dict) or not {"name", "scale", "seed"} <= recipe.keys():
        raise UserError(f"{where}: damaged, it is no recipe; {AGAIN}")
    try:
        _Parts.model_validate(recipe)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{where}: damaged ({key}: {error.errors()[0]['msg']}); {AGAIN}") from None
    return recipe


class _Named(BaseModel):
    name: str


class _Backbone(BaseModel):
    backbone: str


class _Location(BaseModel):
    uri: str | None


class _Parts(BaseModel):
    """What pages and tables read of a recipe, whatever else a later version of it holds."""

    name: str
    scale: str
    seed: int
    method: _Named
    net: _Backbone
    data: _Location
    score: dict[str, Any] = {}


def list_finished(runs: str) -> list[str]:
    """Names of the finished runs in a folder, sorted."""
    filesystem, path = storage.open_fs(runs)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    folders = sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)
    return [name for name in folders if storage.exists(storage.join(runs, name, RECORD))]


def _listed(names: list[str], limit: int = 8) -> str:
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"; there are: {', '.join(names[:limit])}{more}"


@dataclass(frozen=True)
class FinishedRun:
    """A run whose last step is done."""

    folder: str
    recipe: SettledRecipe
    data: DataSet
    artifacts: dict[str, Artifact]
    """network, maps, masks, segmenter, predictions, and ``score NAME`` of what was scored."""
    steps: tuple[tuple[str, Artifact], ...]
    """(title, artifact) in order."""
    mlflow_run: str

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Scored step -> what its score artifact reports."""
        found = {name: self.artifacts.get(f"score {name}") for name in STEPS}
        return {name: artifact.record["scores"] for name, artifact in found.items() if artifact is not None}

    @property
    def history(self) -> dict[str, list[dict[str, Any]]]:
        """Title of a training -> the records of its epochs."""
        return {title: artifact.record["history"] for title, artifact in self.steps if "history" in artifact.record}

    @property
    def train_seconds(self) -> float:
        """What the steps of all its trainings took when they were computed, those before a break among them."""
        return sum(_count_seconds(artifact.record) for _, artifact in self.steps if artifact.stage == "train")

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` holds."""
        return {
            "scores": self.scores,
            "history": self.history,
            "artifacts": {
                name: {**_name_artifact(artifact), "content": artifact.record.get("content")}
                for name, artifact in self.artifacts.items()
            },
            "steps": [
                {"title": title, **_name_artifact(artifact), "reused": artifact.reused, **_measure(artifact)}
                for title, artifact in self.steps
            ],
            "data": self.data.uri,
            "classes": list(self.data.manifest.classes),
            "splits": {"score": self.recipe.data.score_split, "val": self.recipe.data.val_split},
            "mlflow_run": self.mlflow_run,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    def write(self) -> None:
        """Write ``run.json``, which says that the run is finished."""
        storage.write_record(storage.join(self.folder, RECORD), self.record)

    def open(self) -> RunFolder:
        """The run as it is read from its folder."""
        return RunFolder(self.folder, self.record, self.recipe.model_dump(mode="json"))


def _count_seconds(record: Mapping[str, Any]) -> float:
    """Of a training's steps; of one of the first versions, of all it did since it was last begun."""
    epochs = [epoch.get("seconds") for epoch in record["history"]]
    return float(record.get("seconds", 0.0) if None in epochs else sum(epochs))


def _name_artifact(artifact: Artifact) -> dict[str, Any]:
    return {"stage": artifact.stage, "digest": artifact.digest, "seconds": artifact.record.get("seconds")}


def _measure(artifact: Artifact) -> dict[str, Any]:
    return {key: artifact.record.get(key) for key in ("resumed", "images_per_second", "peak_memory_mb")}


def read_record(run_folder: str) -> dict[str, Any]:
    """What a run wrote down about itself; UserError where there is no finished run."""
    record = storage.join(storage.make_absolute(run_folder), RECORD)
    if not storage.exists(record):
        raise UserError(f"{run_folder}: no finished run here; give a folder below --out/runs")
    return storage.read_record(record, RunRecord, FIX).model_dump()


def find_artifact(run_folder: str, name: str) -> str:
    """The folder of one of a run's artifacts; UserError where the run has none of this name."""
    run = read_record(run_folder)
    if name not in run["artifacts"]:
        raise UserError(f"{run_folder}: run has no {name}; available: {', '.join(sorted(run['artifacts']))}")
    root = storage.make_absolute(run_folder).rstrip("/").rsplit("/", 2)[0]
    entry = run["artifacts"][name]
    return storage.join(root, entry["stage"], entry["digest"])
