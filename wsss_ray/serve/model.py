# SPDX-License-Identifier: Apache-2.0
"""A trained network asked about images that belong to no data set: which model, and what it predicts; without Ray.

The same code serves ``wsss predict`` and the MLflow model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import fs as pafs
from pydantic import ValidationError

from wsss_ray import storage
from wsss_ray.artifacts.network import (
    NETWORK,
    LocalizerSpec,
    SegmenterSpec,
    TrainedNetwork,
    check_predicts,
    open_predictor,
    read_spec,
)
from wsss_ray.artifacts.record import RECORD, find_artifact, read_record
from wsss_ray.config import Config, UserError
from wsss_ray.data.grey import GREY, load_grey
from wsss_ray.data.image import list_values, voc_palette
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.text import read_text
from wsss_ray.engine.predict import MAX_SCORES, ImageScores, MaskPredictor, PredictConfig, read_masks
from wsss_ray.recipe import assign_settings, explain, load

CARD = "model_card.json"
"""What a folder with ``network.json`` and ``model.safetensors`` needs besides to predict by itself."""


class Model(Config):
    """Where a network lies and by which protocol it predicts."""

    folder: str
    classes: tuple[str, ...]
    """Foreground classes; background comes first in masks and is not listed."""
    palette: tuple[tuple[int, int, int], ...]
    predict: PredictConfig
    grey: dict[str, Any] = {}
    """How images of more than 8 bits were read in training (``data.grey.dump_grey``)."""

    @property
    def card(self) -> dict[str, Any]:
        """What ``model_card.json`` holds."""
        return self.model_dump(mode="json", include={"classes", "palette", "predict", "grey"})


@dataclass(frozen=True)
class ClassArea:
    """One class in one image."""

    index: int
    """Mask index, 0 is background."""
    name: str
    area_fraction: float
    """Part of the image's pixels in [0, 1]."""
    confidence: float
    """Mean probability the network gave the class on those pixels, in [0, 1]."""


@dataclass(frozen=True)
class Prediction:
    """What the network predicts for one image."""

    mask: np.ndarray
    """(H, W) uint8, the image's own size."""
    classes: tuple[ClassArea, ...]
    """The classes in the mask, ascending."""
    reduced: bool
    """Whether the image was too large and was predicted at a smaller size."""


def open_model(where: str, settings: Sequence[str] = (), classes: Path | None = None) -> Model:
    """The model of a run's folder, of a train artifact, or of a folder with ``model_card.json``.

    A run's own test-time protocol is used, changed by ``settings`` (``scales=[1.0]``, ``crf=null``). ``classes``: a
    text file of names for an artifact no run beside it knows. Raises UserError where nothing there predicts masks.
    """
    where = storage.make_absolute(where).rstrip("/")
    model = _find_model(where)
    spec = check_predicts(read_spec(model.folder), model.folder)
    if classes is not None:
        names = [line.strip() for _, line in read_text(classes).lines()]
        model = model.model_copy(update={"classes": tuple(names)})
    if len(model.classes) != spec.num_classes:
        raise UserError(
            f"{where}: {len(model.classes)} class names, but the network knows {spec.num_classes}; correct --classes"
        )
    protocol = model.predict.model_dump(mode="json")
    assign_settings(protocol, settings, "crf=null")
    model = _check_model({**model.model_dump(mode="json"), "predict": protocol}, "--set")
    if model.predict.gate.classes == "labels":
        raise UserError(
            "this model's protocol reads image labels at test time, and plain images have none: "
            "add --set gate.classes=all (or scores)"
        )
    return model


def _find_model(where: str) -> Model:
    if storage.exists(storage.join(where, CARD)):
        return _check_model({**storage.read_json(storage.join(where, CARD)), "folder": where}, where)
    if storage.exists(storage.join(where, RECORD)):
        return _read_run(where)
    if storage.exists(storage.join(where, NETWORK)):
        run = _find_run_of(where)
        return _read_run(run, where) if run else _describe_bare(where)
    raise UserError(f"{where}: no model here; give a run's folder (below --out/runs) or a train artifact's")


def _check_model(value: dict[str, Any], where: str) -> Model:
    try:
        return Model.model_validate(value)
    except ValidationError as error:
        raise UserError(explain(error, where)) from None


def _read_run(run: str, folder: str | None = None) -> Model:
    """The model of a run; its recipe holds the test-time protocol, wherever the run lies."""
    record = read_record(run)
    if folder is None:
        folder = find_artifact(run, "segmenter" if "segmenter" in record["artifacts"] else "network")
    recipe = storage.join(run, "recipe.yaml")
    predict = load(recipe).predict if storage.exists(recipe) else PredictConfig()
    manifest = load_manifest(record["data"])
    grey = manifest.options.get(GREY, {})
    return Model(folder=folder, classes=manifest.classes, palette=manifest.palette, predict=predict, grey=grey)


def _find_run_of(folder: str) -> str | None:
    """A run in the same store whose record names this artifact."""
    root, stage, uid = folder.rsplit("/", 2)
    filesystem, path = storage.open_fs(storage.join(root, "runs"))
    for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        run = storage.join(root, "runs", info.base_name)
        if storage.exists(storage.join(run, RECORD)):
            made = read_record(run)["artifacts"].values()
            if any(one["stage"] == stage and one["digest"] == uid for one in made):
                return run
    return None


def _describe_bare(folder: str) -> Model:
    """A train artifact that no run knows: numbers instead of names."""
    num_classes = check_predicts(read_spec(folder), folder).num_classes
    names = tuple(f"class {number}" for number in range(1, num_classes + 1))
    palette = [tuple(colour) for colour in voc_palette().tolist()]
    return _check_model({"folder": folder, "classes": names, "palette": palette, "predict": {}}, folder)


class Predictor:
    """A model, loaded: images in, masks and areas out. ``max_scores`` bounds the memory of one image."""

    def __init__(self, model: Model, batch_size: int = 8, max_scores: int = MAX_SCORES) -> None:
        self.model, self.max_scores = model, max_scores
        self.names = ("background", *model.classes)
        self.grey = load_grey(model.grey)
        self.palette = np.asarray(model.palette, dtype=np.uint8)
        self.trained: TrainedNetwork[LocalizerSpec] | TrainedNetwork[SegmenterSpec] = open_predictor(model.folder)
        self.spec: LocalizerSpec | SegmenterSpec = self.trained.spec
        self.batch_size = batch_size
        on = self.trained.on(batch_size)
        self._masks = MaskPredictor(self.trained.segments, len(self.names), model.predict, on, max_scores)

    def predict_images(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """(H, W, 3) uint8 images of any sizes -> their predictions, in order."""
        fitted = [self._fit_image(image) for image in images]
        found: dict[int, Prediction] = {}
        for index, scores in self._masks.score_images(fitted):
            found[index] = self._read_prediction(images[index].shape[:2], fitted[index], scores)
        return [found[index] for index in range(len(images))]

    def _fit_image(self, image: np.ndarray) -> np.ndarray:
        """The image, made smaller where its probabilities would not fit in memory."""
        height, width = image.shape[:2]
        allowed = self.max_scores / len(self.names)
        if height * width <= allowed:
            return image
        ratio = (allowed / (height * width)) ** 0.5
        size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))

    def _read_prediction(self, size: tuple[int, ...], image: np.ndarray, scores: ImageScores) -> Prediction:
        masks = read_masks(self.model.predict, image, scores, labels=None)
        mask = (masks.multi_scale if masks.crf is None else masks.crf).astype(np.uint8)
        classes = []
        for index in list_values(mask):
            inside = mask == index
            confidence = float(scores.multi[index][inside].mean(dtype=np.float64))
            classes.append(ClassArea(index, self.names[index], float(inside.mean()), confidence))
        reduced = mask.shape != tuple(size)
        if reduced:
            enlarged = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
            mask = np.asarray(enlarged)
        return Prediction(mask, tuple(classes), reduced)
