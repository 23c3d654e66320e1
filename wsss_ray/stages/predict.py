# SPDX-License-Identifier: Apache-2.0
"""The predict step: images of a shard -> single-scale, multi-scale and CRF masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np

from wsss_ray.artifacts.network import open_predictor
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import PREDICTIONS_SCHEMA
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.cluster.split import Split, SplitWorker
from wsss_ray.config import select
from wsss_ray.contracts import Segments
from wsss_ray.data.image import decode_image, encode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.engine.passes import decode_ahead, group_by_size
from wsss_ray.engine.precision import use_bf16
from wsss_ray.engine.predict import ImageScores, MaskPredictor, PredictConfig, read_masks
from wsss_ray.stages.run import Run

VERSION = 2
"""2: the single-scale mask is gated by its own view alone."""


@dataclass(frozen=True)
class PredictStep(Step):
    """What can change predicted masks."""

    stage: ClassVar[str] = "predict"
    version: ClassVar[int] = VERSION
    predict: dict[str, Any]
    """The test-time protocol."""
    network: str
    data: str
    """The validation split."""


@dataclass(frozen=True)
class ReadImage:
    """One image and what the network says of it."""

    image_id: str
    image: np.ndarray
    """(H, W, 3) uint8."""
    labels: tuple[int, ...]
    scores: ImageScores


class PredictReader:
    """Images of a shard -> their scores."""

    def __init__(self, data: str, network: str, config: PredictConfig, batch_size: int) -> None:
        self.data = data
        trained = open_predictor(network)
        segments = cast(Segments, fuse_network(trained.network, use_bf16(config.precision, trained.device)))
        self.predictor = MaskPredictor(segments, trained.spec.num_classes + 1, config, trained.on(batch_size))

    def read_parts(self, shard: str) -> Iterator[tuple[int, ReadImage]]:
        """(place, image with its scores) of every image."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels", "height", "width"])
        groups = list(group_by_size([(row["height"], row["width"]) for row in rows], self.predictor.on.batch_size))

        def decode(place: int) -> np.ndarray:
            return decode_image(rows[place]["image"], rows[place]["image_id"])

        for places, images in zip(groups, decode_ahead(decode, groups), strict=True):
            for index, scores in self.predictor.score_images(images):
                row = rows[places[index]]
                yield places[index], ReadImage(row["image_id"], images[index], tuple(row["labels"] or ()), scores)


class PredictFinisher:
    """Scores of an image -> single-scale, multi-scale and CRF masks."""

    def __init__(self, data: str, config: PredictConfig) -> None:
        manifest = load_manifest(data)
        self.config, self.num_classes = config, len(manifest.classes)
        self.palette = np.asarray(manifest.palette, dtype=np.uint8)

    def make_row(self, part: ReadImage) -> dict[str, Any]:
        """A row of ``PREDICTIONS_SCHEMA``."""
        labels = np.zeros(self.num_classes, dtype=bool)
        labels[list(part.labels)] = True
        masks = vars(read_masks(self.config, part.image, part.scores, labels))
        encoded = {
            name: None if mask is None else encode_mask(mask.astype(np.uint8), self.palette)
            for name, mask in masks.items()
        }
        return {"image_id": part.image_id, **encoded}


def predict(run: Run, network: Artifact) -> Artifact:
    """Masks of every image of the validation split."""
    recipe = run.recipe
    data = run.split_digest(recipe.data.val_split)
    step = PredictStep(predict=select(recipe.predict, "masks"), network=network.digest, data=data)
    uri, config = run.data.uri, recipe.predict
    make_reader = partial(PredictReader, uri, network.uri, config, recipe.resources.batch_size)
    split = Split(make_reader, partial(PredictFinisher, uri, config), PREDICTIONS_SCHEMA)

    def compute(folder: str) -> dict[str, Any]:
        shards = run.data.shards(recipe.data.val_split)
        job = ShardJob("predict", partial(SplitWorker, split), shards, folder, network=True, split=split, data=uri)
        return asdict(run_shards(job, run.machines))

    return run.steps.find_or_compute("predict", step, compute)
