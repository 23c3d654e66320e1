"""The refine step: class maps of a shard -> pseudo masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.network import open_network
from wsss_ray.artifacts.tables import (
    MASKS_SCHEMA,
    decode_maps,
    part_name,
    read_table,
)
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.shards import Shards, _summary, run_parts
from wsss_ray.data.image import decode_image, encode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.registry import REFINERS


class RefineWorker:
    """Class maps of a shard -> pseudo masks."""

    def __init__(self, data: str, maps: str, refiner: dict[str, Any], network: str | None) -> None:
        self.data, self.maps = data, maps
        self.refiner: RefinerConfig = REFINERS[refiner["name"]].model_validate(refiner)
        self.network = open_network(network)[0] if network else None
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def table(self, shard: str) -> pa.Table:
        """One row of ``MASKS_SCHEMA`` for every image."""
        images = {row["image_id"]: row["image"] for row in read_shard(self.data, shard, columns=["image_id", "image"])}
        masks = []
        for row in read_table(storage.join(self.maps, part_name(shard))).to_pylist():
            maps = decode_maps(row)
            image = decode_image(images[maps.image_id], maps.image_id)
            mask = self.refiner.refine(image, maps, self.network)
            masks.append({"image_id": maps.image_id, "mask": encode_mask(mask, self.palette)})
        return pa.Table.from_pylist(masks, schema=MASKS_SCHEMA)


def refine(
    title: str,
    data: str,
    shards: Shards,
    maps: str,
    refiner: RefinerConfig,
    network: str | None,
    out: str,
    machines: Machines,
) -> dict[str, Any]:
    """Pseudo masks of every image of ``shards`` into ``out``."""
    factory = partial(RefineWorker, data, maps, refiner.model_dump(mode="json"), network)
    return _summary(run_parts(title, factory, shards, out, machines, network=network is not None))
