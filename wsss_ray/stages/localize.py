# SPDX-License-Identifier: Apache-2.0
"""The localize step: images of a shard -> fused class maps of their labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, cast

import pyarrow as pa

from wsss_ray.artifacts.network import open_localizer
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import MAPS_SCHEMA, encode_maps
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import select
from wsss_ray.contracts import Localizer
from wsss_ray.data.image import decode_image
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.engine.localize import LabelledImage, read_class_maps
from wsss_ray.engine.passes import decode_ahead, group_by_size
from wsss_ray.engine.precision import use_bf16
from wsss_ray.recipe import Localization
from wsss_ray.stages.run import Run

VERSION = 1
"""1: as first written."""


@dataclass(frozen=True)
class LocalizeStep(Step):
    """What can change class maps."""

    stage: ClassVar[str] = "localize"
    version: ClassVar[int] = VERSION
    localize: dict[str, Any]
    """Scales, flips, grid, fusion rule."""
    method: dict[str, Any]
    """The method's settings that act where maps are read."""
    network: str
    """The trained localizer."""
    data: str
    """The training split."""


class LocalizeWorker:
    """Images of a shard -> fused class maps of their labels."""

    def __init__(self, data: str, network: str, localization: Localization, batch_size: int) -> None:
        self.data, self.localization = data, localization
        trained = open_localizer(network, localization.method)
        self.on = trained.on(batch_size)
        bf16 = use_bf16(localization.localize.precision, trained.device)
        self.localizer = cast(Localizer, fuse_network(trained.network, bf16))

    def make_table(self, shard: str) -> pa.Table:
        """One row of ``MAPS_SCHEMA`` for every image."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels", "height", "width"])
        groups = list(group_by_size([(row["height"], row["width"]) for row in rows], self.on.batch_size))

        def decode(place: int) -> LabelledImage:
            row = rows[place]
            return LabelledImage(
                row["image_id"], decode_image(row["image"], row["image_id"]), tuple(row["labels"] or ())
            )

        part, found = self.localization, dict[int, dict[str, Any]]()
        for places, images in zip(groups, decode_ahead(decode, groups), strict=True):
            maps = read_class_maps(self.localizer, images, part.localize, part.fusion, self.on)
            found.update(zip(places, map(encode_maps, maps), strict=True))
        return pa.Table.from_pylist([found[place] for place in range(len(rows))], schema=MAPS_SCHEMA)


def localize(run: Run, title: str, localization: Localization, network: Artifact) -> Artifact:
    """Class maps of every image of the training split."""
    step = LocalizeStep(
        localize=select(localization.localize, "maps"),
        method=select(localization.method, "maps"),
        network=network.digest,
        data=run.train_digest,
    )
    make_worker = partial(LocalizeWorker, run.data.uri, network.uri, localization, run.recipe.resources.batch_size)

    def compute(folder: str) -> dict[str, Any]:
        shards = run.data.shards(run.recipe.data.train_split)
        return asdict(
            run_shards(ShardJob(title, make_worker, shards, folder, network=True, data=run.data.uri), run.machines)
        )

    return run.steps.find_or_compute(title, step, compute)
