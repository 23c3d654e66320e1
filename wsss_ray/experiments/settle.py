# SPDX-License-Identifier: Apache-2.0
"""What comes before the first step of a run: its recipe is checked, its data opened, its splits decided."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from wsss_ray import storage
from wsss_ray.artifacts.network import build_localizer, check_backbone
from wsss_ray.cluster.join import Machines
from wsss_ray.config import UserError
from wsss_ray.data.manifest import DataSet, Manifest, load_manifest, open_data
from wsss_ray.nets.shapes import shapes_only
from wsss_ray.nets.weight_store import locate_weights
from wsss_ray.recipe import Localization, Recipe, SettledData, SettledRecipe, take_localizer
from wsss_ray.stages.histogram import HistogramStep
from wsss_ray.stages.localize import LocalizeStep
from wsss_ray.stages.predict import PredictStep
from wsss_ray.stages.prepare import PrepareStep, generate_toy
from wsss_ray.stages.refine import RefineStep
from wsss_ray.stages.run import Run, Steps
from wsss_ray.stages.score import ScoreStep
from wsss_ray.stages.train import TrainStep

STEPS = (PrepareStep, TrainStep, LocalizeStep, HistogramStep, RefineStep, PredictStep, ScoreStep)


def describe_inputs(uri: str | None) -> dict[str, Any]:
    """What results depend on besides their recipe: the versions of the steps and the prepared data, None for toy."""
    versions = {step.stage: step.version for step in STEPS}
    return {"versions": versions, "data": load_manifest(storage.make_absolute(uri)).digest if uri is not None else None}


def check_recipe(recipe: Recipe) -> None:
    """Everything that can be refused without Ray: data, splits, saliency, backbones, weights; each names its fix."""
    if recipe.data.uri is not None:
        settle_recipe(recipe, load_manifest(storage.make_absolute(recipe.data.uri)))
    for net in recipe.nets:
        check_backbone(net)
        if net.weights is not None:
            locate_weights(net.weights)


def open_run(recipe: Recipe, steps: Steps, machines: Machines) -> Run:
    """Generate the toy images or open prepared shards, and settle the recipe by what they have."""
    data = _open_data(recipe, steps, machines)
    return Run(settle_recipe(recipe, data.manifest), data, steps, machines)


def _open_data(recipe: Recipe, steps: Steps, machines: Machines) -> DataSet:
    if recipe.data.uri is None:
        return generate_toy(steps, recipe.data.toy, machines)
    return open_data(recipe.data.uri)


def settle_recipe(recipe: Recipe, manifest: Manifest) -> SettledRecipe:
    """The recipe with its splits decided by what the data has.

    UserError for a split it has not, for missing saliency maps, or for a base that does not fit.
    """
    have = list(manifest.splits)
    train_split = recipe.data.train_split or next((s for s in ("train_aug", "trainaug", "train") if s in have), None)
    score_split = recipe.data.score_split or ("train" if "train" in have else train_split)
    wanted = {"train_split": train_split, "val_split": recipe.data.val_split, "score_split": score_split}
    for key, split in wanted.items():
        if split not in have:
            raise UserError(f"data.{key}: no split {split!r} in {recipe.data.uri}; it has {', '.join(have)}")
    data = SettledData.model_validate({**recipe.data.model_dump(), **wanted})
    _check_saliency(recipe, manifest, data.train_split)
    if recipe.base is not None:
        _check_base(take_localizer(recipe).model_dump_json(), len(manifest.classes))
    return SettledRecipe.model_validate({**dict(recipe), "data": data})


@lru_cache(maxsize=256)
def _check_base(localization: str, num_classes: int) -> None:
    """Refuse a base that does not fit before anything has been trained: the network is built, without its memory."""
    with shapes_only():
        build_localizer(Localization.model_validate_json(localization), num_classes)


def _check_saliency(recipe: Recipe, manifest: Manifest, split: str) -> None:
    for depth, part in enumerate(recipe.chain):
        if "saliency" in part.method.needs and not manifest.splits[split].has_saliency:
            missing = manifest.splits[split].first_without_saliency or "every image"
            raise UserError(
                f"method {part.method.name!r} needs saliency maps and {missing} of split {split!r} has none: "
                "prepare the data with --saliency DIR ('wsss data saliency' makes maps), or run without them by "
                f"--set {'base.' * depth}method.saliency=false"
            )
