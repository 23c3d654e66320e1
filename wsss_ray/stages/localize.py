"""The localize step: images of a shard -> fused class maps of their labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from wsss_ray.artifacts.network import open_network
from wsss_ray.artifacts.tables import (
    MAPS_SCHEMA,
    encode_maps,
)
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.shards import Shards, _summary, run_parts
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.image import decode_image
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.localize import LocalizeConfig, class_maps
from wsss_ray.methods import METHODS
from wsss_ray.recipe import Localization, Resources


class LocalizeWorker:
    """Images of a shard -> fused class maps of their labels."""

    def __init__(
        self, data: str, network: str, config: dict[str, Any], batch_size: int, method: dict[str, Any] | None = None
    ) -> None:
        self.data, self.batch_size = data, batch_size
        self.config = LocalizeConfig.model_validate(config)
        read_by = None if method is None else METHODS[method["name"]].model_validate(method)
        self.network, self.spec, self.device = open_network(network, read_by)

    def table(self, shard: str) -> pa.Table:
        """One row of ``MAPS_SCHEMA`` for every image."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels"])
        images = [decode_image(row["image"], row["image_id"]) for row in rows]
        normalize: NormalizeConfig = self.spec.net.normalize
        maps = class_maps(
            self.network,
            [row["image_id"] for row in rows],
            images,
            [row["labels"] or [] for row in rows],
            self.config,
            normalize,
            self.device,
            self.batch_size,
        )
        return pa.Table.from_pylist([encode_maps(one) for one in maps], schema=MAPS_SCHEMA)


def localize(
    title: str,
    data: str,
    shards: Shards,
    network: str,
    localization: Localization,
    out: str,
    machines: Machines,
    resources: Resources,
) -> dict[str, Any]:
    """Class maps of every image of ``shards`` into ``out``."""
    config = localization.localize.model_dump(mode="json")
    method = localization.method.model_dump(mode="json")
    factory = partial(LocalizeWorker, data, network, config, resources.batch_size, method)
    return _summary(run_parts(title, factory, shards, out, machines, network=True))
