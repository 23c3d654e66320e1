"""The predict step: images of a shard -> single-scale, multi-scale and CRF masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from wsss_ray.artifacts.network import open_network
from wsss_ray.artifacts.tables import (
    PREDICTIONS_SCHEMA,
)
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.shards import Shards, _summary, run_parts
from wsss_ray.data.image import decode_image, encode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.passes import same_size
from wsss_ray.engine.predict import PredictConfig, class_scores, forward_share, predicted_masks
from wsss_ray.recipe import Resources


class PredictWorker:
    """Images of a shard -> single-scale, multi-scale and CRF masks."""

    def __init__(self, data: str, network: str, config: dict[str, Any], batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.config = PredictConfig.model_validate(config)
        self.network, self.spec, self.device = open_network(network)
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def table(self, shard: str) -> pa.Table:
        """One row of ``PREDICTIONS_SCHEMA`` for every image."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels"])
        images = [decode_image(row["image"], row["image_id"]) for row in rows]
        num_classes = self.spec.num_classes + 1
        share = min((forward_share(num_classes, p.shape[:2], self.batch_size) for p in images), default=1)  # type: ignore[arg-type]
        out: dict[int, dict[str, Any]] = {}
        for indices in same_size(images, share):
            chosen = [images[index] for index in indices]
            single, multi, views = class_scores(self.network, chosen, self.config, self.spec.net.normalize, self.device)
            for place, index in enumerate(indices):
                scores = None if views is None else views[place]
                out[index] = self._masks(rows[index], chosen[place], single[place], multi[place], scores)
        return pa.Table.from_pylist([out[index] for index in range(len(rows))], schema=PREDICTIONS_SCHEMA)

    def _masks(
        self, row: dict[str, Any], image: np.ndarray, single: np.ndarray, multi: np.ndarray, views: np.ndarray | None
    ) -> dict[str, Any]:
        labels = np.zeros(self.spec.num_classes, dtype=bool)
        labels[list(row["labels"] or [])] = True
        encoded = {
            name: None if mask is None else encode_mask(mask.astype(np.uint8), self.palette)
            for name, mask in predicted_masks(self.config, image, labels, single, multi, views).items()
        }
        return {"image_id": row["image_id"], **encoded}


def predict(
    title: str,
    data: str,
    shards: Shards,
    network: str,
    config: PredictConfig,
    out: str,
    machines: Machines,
    resources: Resources,
) -> dict[str, Any]:
    """Predicted masks of every image of ``shards`` into ``out``."""
    factory = partial(PredictWorker, data, network, config.model_dump(mode="json"), resources.batch_size)
    return _summary(run_parts(title, factory, shards, out, machines, network=True))
