"""The walk from images to scores: which step runs after which, and what it loads instead of computing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from wsss_ray import storage
from wsss_ray.artifacts import network as build
from wsss_ray.artifacts.network import NetworkSpec
from wsss_ray.artifacts.store import Artifact, Store, content_digest, digest
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.progress import console
from wsss_ray.config import UserError
from wsss_ray.data.manifest import Manifest, load_manifest
from wsss_ray.methods.base import MethodConfig
from wsss_ray.nets.weights import locate, weights_digest
from wsss_ray.recipe import Localization, Recipe, localizer_of
from wsss_ray.stages import localize as infer
from wsss_ray.stages import train
from wsss_ray.stages.prepare import prepare_toy

VERSIONS = {"data": 1, "train": 2, "localize": 1, "refine": 1, "predict": 2, "score": 2}
"""Raised when a step's code changes its result, so that old artifacts are not mistaken for new ones."""


def made_with(uri: str | None) -> dict[str, Any]:
    """What results hang on besides their recipe: the versions of the steps and the prepared data, None for toy."""
    return {"versions": VERSIONS, "data": load_manifest(storage.absolute(uri)).digest if uri is not None else None}


@dataclass
class Walk:
    """One run on its way: where artifacts are, what the data is, and every step taken so far."""

    recipe: Recipe
    store: Store
    machines: Machines
    data: str = ""
    manifest: Manifest | None = None
    steps: list[tuple[str, Artifact]] = field(default_factory=list)
    """(title, artifact) in order."""
    on_step: Callable[[str, Artifact], None] = lambda title, artifact: None
    on_epoch: Callable[[str, dict[str, Any]], None] = lambda title, epoch: None
    """Hears every epoch of every training, at once of one that is loaded."""

    @property
    def num_classes(self) -> int:
        """C of the data."""
        assert self.manifest is not None
        return len(self.manifest.classes)

    def shards(self, split: str) -> list[tuple[str, int]]:
        """(name, images) of every shard of a split."""
        assert self.manifest is not None
        return [(info.path, info.num_rows) for info in self.manifest.shards_of(split)]

    def stage(
        self, stage: str, title: str, config: Any, inputs: Mapping[str, str], compute: Callable[[str], dict[str, Any]]
    ) -> Artifact:
        """Load the step's artifact, or compute it under its lock; ``compute`` fills the folder it is given."""
        uid = digest({"stage": stage, "version": VERSIONS[stage], "config": config, "inputs": dict(inputs)})
        artifact = self.store.find(stage, uid)
        if artifact is None:
            with self.store.lock(stage, uid):
                artifact = self.store.find(stage, uid)
                if artifact is None:
                    start = time.monotonic()
                    folder = self.store.folder(stage, uid)
                    try:
                        result = compute(folder)
                    except Exception as error:
                        if storage.is_disk_full(error):
                            raise UserError(f"{folder}: {title}: {storage.DISK_FULL}") from None
                        raise
                    record = {"config": config, "inputs": dict(inputs), "seconds": time.monotonic() - start, **result}
                    artifact = self.store.finish(stage, uid, {**record, "content": content_digest(folder)})
        if artifact.reused:
            console.print(f"{title}: reused {stage}/{uid}")
            for epoch in artifact.record.get("history", []):
                self.on_epoch(title, epoch)
        self.steps.append((title, artifact))
        self.on_step(title, artifact)
        return artifact


def open_data(walk: Walk) -> None:
    """Generate the toy images or open prepared shards, and settle which splits are used."""
    recipe = walk.recipe
    if recipe.data.uri is None:
        toy = recipe.data.toy
        made = walk.stage(
            "data", "data", toy.model_dump(mode="json"), {}, lambda folder: prepare_toy(toy, folder, walk.machines)
        )
        walk.data = made.uri
    else:
        walk.data = storage.absolute(recipe.data.uri)
    walk.manifest = load_manifest(walk.data)
    walk.recipe = settle(recipe, walk.manifest)


def settle(recipe: Recipe, manifest: Manifest) -> Recipe:
    """The recipe with its splits decided by what the data has; UserError for one it has not, for missing
    saliency, or for a base that does not fit."""
    have = list(manifest.splits)
    train_split = recipe.data.train_split or next((s for s in ("train_aug", "trainaug", "train") if s in have), None)
    score_split = recipe.data.score_split or ("train" if "train" in have else train_split)
    for key, split in (
        ("train_split", train_split),
        ("val_split", recipe.data.val_split),
        ("score_split", score_split),
    ):
        if split not in have:
            raise UserError(f"data.{key}: no split {split!r} in {recipe.data.uri}; it has {', '.join(have)}")
    needing: Localization | None = recipe
    key = "method"
    while needing is not None:
        if "saliency" in needing.method.needs and not manifest.splits[str(train_split)].has_saliency:
            missing = manifest.splits[str(train_split)].first_without_saliency or "every image"
            raise UserError(
                f"method {needing.method.name!r} needs saliency maps and {missing} of split {train_split!r} has none: "
                "prepare the data with --saliency DIR ('wsss data saliency' makes maps), or run without them by "
                f"--set {key}.saliency=false"
            )
        needing, key = needing.base, f"base.{key}"
    if recipe.base is not None:
        # Without memory: a base that does not fit is refused before anything has been trained.
        with torch.device("meta"):
            build.localizer(localizer_of(recipe), len(manifest.classes))
    data = recipe.data.model_copy(update={"train_split": train_split, "score_split": score_split})
    return recipe.model_copy(update={"data": data})


def train_network(walk: Walk, title: str, spec: NetworkSpec, inputs: dict[str, Artifact]) -> Artifact:
    """Train one network on the training split; ``inputs`` may hold "base", "maps" and "masks"."""
    assert walk.manifest is not None
    recipe = walk.recipe
    split, val_split = str(recipe.data.train_split), recipe.data.val_split
    config = {"spec": own_part(spec), "seed": recipe.seed}
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    digests["data"] = walk.manifest.splits[split].digest
    if spec.kind == "localizer" and (spec.train.validate_images or spec.train.validate_seeds):
        digests["val"] = walk.manifest.splits[val_split].digest
    if spec.net.weights is not None and "base" not in inputs:
        digests["weights"] = weights_digest(locate(spec.net.weights))
    job = train.TrainJob(
        spec=spec,
        data=walk.data,
        split=split,
        val_split=val_split,
        seed=recipe.seed,
        threads=recipe.resources.loader_threads,
        **{name: artifact.uri for name, artifact in inputs.items()},
    )
    return walk.stage(
        "train",
        title,
        config,
        digests,
        lambda folder: train.run_training(title, job, folder, walk.machines, walk.on_epoch),
    )


def own_part(spec: NetworkSpec) -> dict[str, Any]:
    """What of a spec can change its own training: not how maps or masks are made later, nor its inputs."""
    part: dict[str, Any] = spec.model_dump(mode="json")
    own = next(part[key] for key in ("localization", "affinity", "segment") if part[key] is not None)
    own["net"].pop("weights")
    if not own["train"]["validate_seeds"]:
        own["train"].pop("validate_seeds")
    if part["localization"] is not None:
        for key in ("localize", "base"):
            part["localization"].pop(key)
        method = spec.localization.method  # type: ignore[union-attr]
        for key in method.map_fields | method.label_fields:
            part["localization"]["method"].pop(key)
    if spec.refiner is not None:
        for key in {"labels"} | spec.refiner.mask_fields:
            part["refiner"].pop(key, None)
    return part


def localize(walk: Walk, title: str, localization: Localization, network: Artifact) -> Artifact:
    """Class maps of the training split."""
    assert walk.manifest is not None
    config = {
        "localize": localization.localize.model_dump(mode="json"),
        "normalize": localization.net.normalize.model_dump(mode="json"),
        "method": localization.method.model_dump(mode="json", include=set(localization.method.map_fields)),
    }
    split = str(walk.recipe.data.train_split)
    inputs = {"network": network.digest, "data": walk.manifest.splits[split].digest}
    return walk.stage(
        "localize",
        title,
        config,
        inputs,
        lambda folder: infer.localize(
            title,
            walk.data,
            walk.shards(split),
            network.uri,
            localization,
            folder,
            walk.machines,
            walk.recipe.resources,
        ),
    )


def localizer(walk: Walk, localization: Localization, prefix: str = "") -> Artifact:
    """Train a localizer, after the one it starts from and that one's maps where it learns from them."""
    inputs: dict[str, Artifact] = {}
    base = localization.base
    if base is not None:
        inputs["base"] = localizer(walk, base, prefix + "base ")
        if "maps" in localization.method.needs:
            inputs["maps"] = localize(walk, f"{prefix}base localize", base, inputs["base"])
    spec = NetworkSpec(kind="localizer", num_classes=walk.num_classes, localization=localizer_of(localization))
    trained = train_network(walk, f"{prefix}train", spec, inputs)
    warning = warning_of(localization.method, trained.record.get("history", []))
    if warning is not None:
        console.print(f"{prefix}train: {warning}", style="bold yellow", markup=False, soft_wrap=True)
    return trained


def warning_of(method: MethodConfig, history: Sequence[Mapping[str, Any]]) -> str | None:
    """What the records of a training's epochs warn of; ``recall`` joins the loss parts where seeds were scored."""
    recalls = [{"recall": epoch["seed_recall"]} if "seed_recall" in epoch else {} for epoch in history]
    return method.warning([{**epoch["losses"], **own} for epoch, own in zip(history, recalls, strict=True)])
