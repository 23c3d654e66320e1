"""The localize, refine and predict steps: what runs in an actor for one shard, and what goes into its output file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from wsss_ray import build, storage
from wsss_ray.build import NetworkSpec
from wsss_ray.data.augment import Normalize
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.picture import decode_picture, encode_mask
from wsss_ray.data.shards import read_shard
from wsss_ray.inference import class_maps, class_scores, forward_share, same_size
from wsss_ray.methods import METHODS, MethodConfig
from wsss_ray.recipe import Localization, LocalizeConfig, PredictConfig, Resources
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import crf_scores
from wsss_ray.refine.gate import gate_classes, read_scores
from wsss_ray.refine.registry import REFINERS
from wsss_ray.stages.cluster import Machines
from wsss_ray.stages.parts import run_parts
from wsss_ray.tables import (
    MAPS_SCHEMA,
    MASKS_SCHEMA,
    PREDICTIONS_SCHEMA,
    decode_maps,
    encode_maps,
    part_name,
    read_table,
)

Shards = Sequence[tuple[str, int]]


def open_network(folder: str, method: MethodConfig | None = None) -> tuple[torch.nn.Module, NetworkSpec, torch.device]:
    """The trained network of a train artifact, on this worker's device; ``method`` says how its maps are read."""
    spec = NetworkSpec.model_validate(storage.read_json(storage.join(folder, "network.json")))
    if method is not None and spec.localization is not None:
        spec = spec.model_copy(update={"localization": spec.localization.model_copy(update={"method": method})})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build.trained(spec, folder, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, spec, device


class LocalizeWorker:
    """Pictures of a shard -> fused class maps of their labels."""

    def __init__(
        self, data: str, network: str, config: dict[str, Any], batch_size: int, method: dict[str, Any] | None = None
    ) -> None:
        self.data, self.batch_size = data, batch_size
        self.config = LocalizeConfig.model_validate(config)
        read_by = None if method is None else METHODS[method["name"]].model_validate(method)
        self.network, self.spec, self.device = open_network(network, read_by)

    def table(self, shard: str) -> pa.Table:
        """One row of ``MAPS_SCHEMA`` for every picture."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels"])
        pictures = [decode_picture(row["image"], row["image_id"]) for row in rows]
        normalize: Normalize = self.spec.net.normalize
        maps = class_maps(
            self.network,
            [row["image_id"] for row in rows],
            pictures,
            [row["labels"] or [] for row in rows],
            self.config,
            normalize,
            self.device,
            self.batch_size,
        )
        return pa.Table.from_pylist([encode_maps(one) for one in maps], schema=MAPS_SCHEMA)


class RefineWorker:
    """Class maps of a shard -> pseudo masks."""

    def __init__(self, data: str, maps: str, refiner: dict[str, Any], network: str | None) -> None:
        self.data, self.maps = data, maps
        self.refiner: RefinerConfig = REFINERS[refiner["name"]].model_validate(refiner)
        self.network = open_network(network)[0] if network else None
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def table(self, shard: str) -> pa.Table:
        """One row of ``MASKS_SCHEMA`` for every picture."""
        pictures = {
            row["image_id"]: row["image"] for row in read_shard(self.data, shard, columns=["image_id", "image"])
        }
        masks = []
        for row in read_table(storage.join(self.maps, part_name(shard))).to_pylist():
            maps = decode_maps(row)
            picture = decode_picture(pictures[maps.image_id], maps.image_id)
            mask = self.refiner.refine(picture, maps, self.network)
            masks.append({"image_id": maps.image_id, "mask": encode_mask(mask, self.palette)})
        return pa.Table.from_pylist(masks, schema=MASKS_SCHEMA)


class PredictWorker:
    """Pictures of a shard -> single-scale, multi-scale and CRF masks."""

    def __init__(self, data: str, network: str, config: dict[str, Any], batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.config = PredictConfig.model_validate(config)
        self.network, self.spec, self.device = open_network(network)
        self.palette = np.asarray(load_manifest(data).palette, dtype=np.uint8)

    def table(self, shard: str) -> pa.Table:
        """One row of ``PREDICTIONS_SCHEMA`` for every picture."""
        rows = read_shard(self.data, shard, columns=["image_id", "image", "labels"])
        pictures = [decode_picture(row["image"], row["image_id"]) for row in rows]
        num_classes = self.spec.num_classes + 1
        share = min((forward_share(num_classes, p.shape[:2], self.batch_size) for p in pictures), default=1)  # type: ignore[arg-type]
        out: dict[int, dict[str, Any]] = {}
        for indices in same_size(pictures, share):
            chosen = [pictures[index] for index in indices]
            single, multi, views = class_scores(self.network, chosen, self.config, self.spec.net.normalize, self.device)
            for place, index in enumerate(indices):
                scores = None if views is None else views[place]
                out[index] = self._masks(rows[index], chosen[place], single[place], multi[place], scores)
        return pa.Table.from_pylist([out[index] for index in range(len(rows))], schema=PREDICTIONS_SCHEMA)

    def _masks(
        self, row: dict[str, Any], picture: np.ndarray, single: np.ndarray, multi: np.ndarray, views: np.ndarray | None
    ) -> dict[str, Any]:
        labels = np.zeros(self.spec.num_classes, dtype=bool)
        labels[list(row["labels"] or [])] = True
        encoded = {
            name: None if mask is None else encode_mask(mask.astype(np.uint8), self.palette)
            for name, mask in predicted_masks(self.config, picture, labels, single, multi, views).items()
        }
        return {"image_id": row["image_id"], **encoded}


def predicted_masks(
    config: PredictConfig,
    picture: np.ndarray,
    labels: np.ndarray,
    single: np.ndarray,
    multi: np.ndarray,
    views: np.ndarray | None,
) -> dict[str, np.ndarray | None]:
    """What ``class_scores`` found in one picture -> (H, W) masks ``single_scale``, ``multi_scale`` and ``crf``.

    The class gate of the single-scale mask reads that view alone, as if there were no others.
    """
    gate = config.gate
    allowed = gate_classes(gate, views, labels)
    alone = gate_classes(gate, None if views is None else views[:1], labels)
    crf = None
    if config.crf is not None:
        crf = crf_scores(picture, read_scores(multi, gate, allowed, for_crf=True), config.crf).argmax(axis=0)
    return {
        "single_scale": read_scores(single, gate, alone).argmax(axis=0),
        "multi_scale": read_scores(multi, gate, allowed).argmax(axis=0),
        "crf": crf,
    }


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
    """Class maps of every picture of ``shards`` into ``out``."""
    config = localization.localize.model_dump(mode="json")
    method = localization.method.model_dump(mode="json")
    factory = partial(LocalizeWorker, data, network, config, resources.batch_size, method)
    return _summary(run_parts(title, factory, shards, out, machines, network=True))


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
    """Pseudo masks of every picture of ``shards`` into ``out``."""
    factory = partial(RefineWorker, data, maps, refiner.model_dump(mode="json"), network)
    return _summary(run_parts(title, factory, shards, out, machines, network=network is not None))


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
    """Predicted masks of every picture of ``shards`` into ``out``."""
    factory = partial(PredictWorker, data, network, config.model_dump(mode="json"), resources.batch_size)
    return _summary(run_parts(title, factory, shards, out, machines, network=True))


def _summary(done: dict[str, float]) -> dict[str, Any]:
    return {"images_per_second": done["images_per_second"], "peak_memory_mb": done["peak_memory_mb"]}
