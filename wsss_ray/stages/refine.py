# SPDX-License-Identifier: Apache-2.0
"""The refine step: class maps of a shard -> pseudo masks. PSA and IRN first make labels and train their network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.network import AffinitySpec, open_affinity
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import MASKS_SCHEMA, decode_maps, name_part, read_table
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import select
from wsss_ray.data.image import decode_image, encode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.engine.passes import decode_ahead, group_by_size
from wsss_ray.engine.precision import use_bf16
from wsss_ray.recipe import AffinityConfig
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.stages.histogram import count_map_values, read_histogram
from wsss_ray.stages.run import Run
from wsss_ray.stages.train import TrainInputs, train

VERSION = 1
"""1: as first written."""


@dataclass(frozen=True)
class RefineStep(Step):
    """What can change pseudo masks."""

    stage: ClassVar[str] = "refine"
    version: ClassVar[int] = VERSION
    refiner: str
    """Its name."""
    settings: dict[str, Any]
    """The refiner's settings that act where masks are made."""
    maps: str
    network: str | None = None
    """The trained network of a refiner that has one."""


class RefineWorker:
    """Class maps of a shard -> pseudo masks."""

    def __init__(self, data: str, maps: str, refiner: RefinerConfig, network: str | None, batch_size: int = 1) -> None:
        self.data, self.maps, self.refiner, self.batch_size = data, maps, refiner, batch_size
        self.network, self.bf16 = None, False
        if network is not None:
            trained = open_affinity(network)
            self.bf16 = use_bf16(refiner.network_precision, trained.device)
            self.network = fuse_network(trained.network, self.bf16)
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def make_table(self, shard: str) -> pa.Table:
        """One row of ``MASKS_SCHEMA`` for every image."""
        images = {row["image_id"]: row["image"] for row in read_shard(self.data, shard, columns=["image_id", "image"])}
        maps = [decode_maps(row) for row in read_table(storage.join(self.maps, name_part(shard))).to_pylist()]
        groups = list(group_by_size([one.size for one in maps], self.batch_size))

        def decode(place: int) -> np.ndarray:
            return decode_image(images[maps[place].image_id], maps[place].image_id)

        found = {}
        for places, pixels in zip(groups, decode_ahead(decode, groups), strict=True):
            masks = self.refiner.refine_many(pixels, [maps[place] for place in places], self.network, self.bf16)
            for place, mask in zip(places, masks, strict=True):
                found[place] = {"image_id": maps[place].image_id, "mask": encode_mask(mask, self.palette)}
        return pa.Table.from_pylist([found[place] for place in range(len(maps))], schema=MASKS_SCHEMA)


def refine(run: Run, maps: Artifact, refiner: RefinerConfig, affinity: AffinityConfig | None) -> Artifact:
    """Pseudo masks of the training split; ``affinity`` says how a refiner's own network is trained."""
    if not refiner.trainable or affinity is None:
        return refine_maps(run, "refine", maps, refiner)
    labels = refine_maps(run, "refine labels", maps, refiner.training_labels())
    spec = AffinitySpec(num_classes=run.data.num_classes, refiner=refiner, affinity=affinity)
    network = train(run, "refine train", spec, TrainInputs(masks=labels))
    return refine_maps(run, "refine", maps, refiner, network)


def refine_maps(
    run: Run, title: str, maps: Artifact, refiner: RefinerConfig, network: Artifact | None = None
) -> Artifact:
    """One refiner over all class maps.

    What it takes from the values of all of them follows from the maps, so that their digest stands for it.
    """
    histogram = count_map_values(run, maps) if refiner.follows_maps else None
    step = RefineStep(
        refiner=refiner.name,
        settings=select(refiner, "masks"),
        maps=maps.digest,
        network=None if network is None else network.digest,
    )

    def compute(folder: str) -> dict[str, Any]:
        settled = refiner if histogram is None else refiner.settle(read_histogram(histogram))
        where = None if network is None else network.uri
        make_worker = partial(RefineWorker, run.data.uri, maps.uri, settled, where, run.recipe.resources.batch_size)
        shards = run.data.shards(run.recipe.data.train_split)
        job = ShardJob(title, make_worker, shards, folder, network=network is not None, data=run.data.uri)
        followed = {} if histogram is None else {"settled": settled.model_dump(mode="json")}
        return {**followed, **asdict(run_shards(job, run.machines))}

    return run.steps.find_or_compute(title, step, compute)
