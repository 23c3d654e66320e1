# SPDX-License-Identifier: Apache-2.0
"""The predict step: images of a shard -> single-scale, multi-scale and CRF masks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from wsss_ray.artifacts.network import open_predictor
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import PREDICTIONS_SCHEMA
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import select
from wsss_ray.data.image import decode_image, encode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
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


class PredictWorker:
    """Images of a shard -> single-scale, multi-scale and CRF masks."""

    def __init__(self, data: str, network: str, config: PredictConfig, batch_size: int) -> None:
        self.data, self.config = data, config
        trained = open_predictor(network)
        self.num_classes = trained.spec.num_classes
        self.predictor = MaskPredictor(trained.segments, self.num_classes + 1, config, trained.on(batch_size))
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def make_table(self, shard: str) -> pa.Table:
        """One row of ``PREDICTIONS_SCHEMA`` for every image."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels"])
        images = [decode_image(row["image"], row["image_id"]) for row in rows]
        found = {
            index: self._encode_masks(rows[index], images[index], scores)
            for index, scores in self.predictor.score_images(images)
        }
        return pa.Table.from_pylist([found[index] for index in range(len(rows))], schema=PREDICTIONS_SCHEMA)

    def _encode_masks(self, row: dict[str, Any], image: np.ndarray, scores: ImageScores) -> dict[str, Any]:
        labels = np.zeros(self.num_classes, dtype=bool)
        labels[list(row["labels"] or [])] = True
        masks = vars(read_masks(self.config, image, scores, labels))
        encoded = {
            name: None if mask is None else encode_mask(mask.astype(np.uint8), self.palette)
            for name, mask in masks.items()
        }
        return {"image_id": row["image_id"], **encoded}


def predict(run: Run, network: Artifact) -> Artifact:
    """Masks of every image of the validation split."""
    recipe, split = run.recipe, run.recipe.data.val_split
    step = PredictStep(predict=select(recipe.predict, "masks"), network=network.digest, data=run.split_digest(split))
    make_worker = partial(PredictWorker, run.data.uri, network.uri, recipe.predict, recipe.resources.batch_size)

    def compute(folder: str) -> dict[str, Any]:
        job = ShardJob("predict", make_worker, run.data.shards(split), folder, network=True)
        return asdict(run_shards(job, run.machines))

    return run.steps.find_or_compute("predict", step, compute)
