"""A trained network asked about images that belong to no data set: which model, and what it says; without Ray.

The same code answers for ``wsss predict`` and for the served MLflow model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from pyarrow import fs as pafs
from pydantic import ValidationError

from wsss_ray import storage
from wsss_ray.artifacts import network as build
from wsss_ray.artifacts.network import NetworkSpec
from wsss_ray.artifacts.record import artifact_folder
from wsss_ray.config import Config, UserError
from wsss_ray.data.image import voc_palette
from wsss_ray.data.manifest import load_manifest
from wsss_ray.engine.gate import gate_classes, read_scores
from wsss_ray.engine.passes import same_size
from wsss_ray.engine.predict import PredictConfig, class_scores, forward_share
from wsss_ray.recipe import _assign, explain, load
from wsss_ray.refine.crf import smooth_scores

CARD = "answer.json"
"""What a folder with ``network.json`` and ``model.safetensors`` needs besides to answer by itself."""
MAX_SCORES = 60_000_000
"""Numbers (classes x pixels) of one image's probabilities at most; a larger one is answered smaller and scaled up."""


class Model(Config):
    """Where a network lies and how it is asked."""

    folder: str
    classes: tuple[str, ...]
    """Foreground classes; background comes first in masks and is not listed."""
    palette: tuple[tuple[int, int, int], ...]
    predict: PredictConfig

    def card(self) -> dict[str, Any]:
        """What ``answer.json`` holds."""
        return self.model_dump(mode="json", include={"classes", "palette", "predict"})


@dataclass(frozen=True)
class Finding:
    """One class in one image."""

    index: int
    """Mask index, 0 is background."""
    name: str
    share: float
    """Part of the image's pixels in [0, 1]."""
    confidence: float
    """Mean probability the network gave the class on those pixels, in [0, 1]."""


@dataclass(frozen=True)
class Answer:
    """What the network says about one image."""

    mask: np.ndarray
    """(H, W) uint8, the image's own size."""
    findings: tuple[Finding, ...]
    """The classes in the mask, ascending."""
    reduced: bool
    """Whether the image was too large and was answered at a smaller size."""


def open_model(where: str, settings: Sequence[str] = (), classes: Path | None = None) -> Model:
    """The model of a run's folder, of a train artifact, or of a folder with ``answer.json``.

    A run's own test-time protocol is used, changed by ``settings`` (``scales=[1.0]``, ``crf=null``). ``classes``: a
    text file of names for an artifact no run beside it knows. Raises UserError where nothing there answers per pixel.
    """
    where = storage.absolute(where).rstrip("/")
    if storage.exists(storage.join(where, CARD)):
        card = storage.read_json(storage.join(where, CARD))
        model = _checked({**card, "folder": where}, where)
    elif storage.exists(storage.join(where, "run.json")):
        model = _of_run(where)
    elif storage.exists(storage.join(where, "network.json")):
        run = _run_beside(where)
        model = _of_run(run, where) if run else _bare(where)
    else:
        raise UserError(f"{where}: no model here; give a run's folder (below --out/runs) or a train artifact's")
    spec = _spec(model.folder)
    if classes is not None:
        names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        model = model.model_copy(update={"classes": tuple(names)})
    if len(model.classes) != spec.num_classes:
        raise UserError(
            f"{where}: {len(model.classes)} class names, but the network knows {spec.num_classes}; correct --classes"
        )
    value = model.predict.model_dump(mode="json")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write key=value, for example --set crf=null")
        _assign(value, key.strip(), yaml.safe_load(text))
    model = _checked({**model.model_dump(mode="json"), "predict": value}, "--set")
    if model.predict.gate.classes == "labels":
        raise UserError("this model's protocol reads image labels at test time, and plain images have none: "
                        "add --set gate.classes=all (or scores)")  # fmt: skip
    return model


def _checked(value: dict[str, Any], where: str) -> Model:
    try:
        return Model.model_validate(value)
    except ValidationError as error:
        raise UserError(explain(error, where)) from None


def _spec(folder: str) -> NetworkSpec:
    spec = NetworkSpec.model_validate(storage.read_json(storage.join(folder, "network.json")))
    single = spec.localization is not None and spec.localization.method.single_stage
    if spec.kind != "segmenter" and not single:
        raise UserError(
            f"{folder}: holds a {spec.kind}, which does not answer per pixel; give a run that trained a segmenter"
        )
    return spec


def _of_run(run: str, folder: str | None = None) -> Model:
    record = storage.read_json(storage.join(run, "run.json"))
    if folder is None:
        folder = artifact_folder(run, "segmenter" if "segmenter" in record["artifacts"] else "network")
    local = storage.local_path(storage.join(run, "recipe.yaml"))
    predict = load(local).predict if local is not None and local.is_file() else PredictConfig()
    manifest = load_manifest(record["data"])
    return Model(folder=folder, classes=manifest.classes, palette=manifest.palette, predict=predict)


def _run_beside(folder: str) -> str | None:
    """A run in the same store whose record names this artifact."""
    root, stage, uid = folder.rsplit("/", 2)
    filesystem, path = storage.open_fs(storage.join(root, "runs"))
    for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        run = storage.join(root, "runs", info.base_name)
        if storage.exists(storage.join(run, "run.json")):
            made = storage.read_json(storage.join(run, "run.json"))["artifacts"].values()
            if any(one["stage"] == stage and one["digest"] == uid for one in made):
                return run
    return None


def _bare(folder: str) -> Model:
    num_classes = _spec(folder).num_classes
    names = tuple(f"class {number}" for number in range(1, num_classes + 1))
    palette = [tuple(colour) for colour in voc_palette().tolist()]
    return _checked({"folder": folder, "classes": names, "palette": palette, "predict": {}}, folder)


class Answerer:
    """A model, loaded: images in, masks and shares out. ``max_scores`` bounds the memory of one image."""

    def __init__(self, model: Model, batch_size: int = 8, max_scores: int = MAX_SCORES) -> None:
        self.model, self.batch_size, self.max_scores = model, batch_size, max_scores
        self.spec = _spec(model.folder)
        self.names = ("background", *model.classes)
        self.palette = np.asarray(model.palette, dtype=np.uint8)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = build.trained(self.spec, model.folder, self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def answer(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """(H, W, 3) uint8 images of any sizes -> their answers, in order."""
        fitted = [self._fit(image) for image in images]
        num_scores = self.spec.num_classes + 1
        answers: dict[int, Answer] = {}
        for indices in same_size(fitted, self.batch_size):
            size = fitted[indices[0]].shape[:2]
            share = forward_share(num_scores, (size[0], size[1]), self.batch_size, self.max_scores)
            for start in range(0, len(indices), share):
                chosen = indices[start : start + share]
                _, multi, views = class_scores(
                    self.network,
                    [fitted[index] for index in chosen],
                    self.model.predict,
                    self.spec.net.normalize,
                    self.device,
                )
                for place, index in enumerate(chosen):
                    view = None if views is None else views[place]
                    answers[index] = self._read(images[index].shape[:2], fitted[index], multi[place], view)
        return [answers[index] for index in range(len(images))]

    def _fit(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        allowed = self.max_scores / (self.spec.num_classes + 1)
        if height * width <= allowed:
            return image
        ratio = (allowed / (height * width)) ** 0.5
        size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _read(
        self, size: tuple[int, ...], image: np.ndarray, probabilities: np.ndarray, views: np.ndarray | None
    ) -> Answer:
        config = self.model.predict
        allowed = gate_classes(config.gate, views, None)
        if config.crf is None:
            scores = read_scores(probabilities, config.gate, allowed)
        else:
            scores = smooth_scores(image, read_scores(probabilities, config.gate, allowed, for_crf=True), config.crf)
        mask = scores.argmax(axis=0).astype(np.uint8)
        findings = []
        for index in np.unique(mask).tolist():
            inside = mask == index
            confidence = float(probabilities[index][inside].mean(dtype=np.float64))
            findings.append(Finding(index, self.names[index], float(inside.mean()), confidence))
        reduced = mask.shape != tuple(size)
        if reduced:
            enlarged = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
            mask = np.asarray(enlarged)
        return Answer(mask, tuple(findings), reduced)
