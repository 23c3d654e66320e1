# SPDX-License-Identifier: Apache-2.0
"""How published recipes shrink: one table per scale of what all papers share, keyed by the step it shrinks.

``paper`` is as published, ``small`` for 2 cores on real images, ``toy`` for a minute on synthetic ones. What one paper
shrinks beyond this stands in its own file, as ``SMALL`` and ``TOY``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wsss_ray.data.augment import AugmentConfig
from wsss_ray.data.colour import NormalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.deeplab import DeepLabV1Config, DeepLabV2Config
from wsss_ray.nets.optim import OptimizerConfig
from wsss_ray.recipe import AffinityConfig, Localization, NetConfig, Recipe, Scale, SegmentConfig, replace_settings
from wsss_ray.refine.crf import PRESETS
from wsss_ray.refine.seeds import QuantileSeedsConfig

from ._steps import DEEPLAB_CRF, WALKERS, Head, Images, Trunk, Walker, build_deeplab

Overrides = Mapping[str, Any]
"""Keys of a recipe -> values, as ``wsss_ray.recipe.replace_settings`` takes them."""

SGD = OptimizerConfig(lr=0.003, momentum=0.9, nesterov=True, weight_decay=5e-4)
"""What localizers of ``small`` train with, from ImageNet weights; heads at the multiples of the papers.

Not Adam, whose steps do not shrink with the gradient: it drives L2G to background everywhere, where softmax and square
leave no gradient to come back by.
"""
LONG_SIDE = 320
"""Longer side of the images of ``small`` where maps and masks are read at scale 1: the largest it trains on."""
PRUNE = 0.05
"""The CRF after a segmentation network leaves out the labels that reach this nowhere: they do not win."""
SEED_STRIDE: dict[Scale, int] = {"paper": 1, "small": 2, "toy": 2}
"""Grid of the maps where seeds alone are scored: full size in the papers."""

SMALL_NET = NetConfig(
    backbone="efficientnet_lite0",
    weights="efficientnet_lite0_imagenet",
    output_stride=16,
    normalize=NormalizeConfig(preset="efficientnet_lite"),
    # The early layers stay as published, as conv1a and b2 of ResNet-38 do; batches of 8 are too few for statistics.
    options={"freeze_through": 3, "batch_norm": "frozen"},
)


def _train_small(epochs: int, optimizer: OptimizerConfig) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=8,
        optimizer=optimizer,
        augment=AugmentConfig(resize="long_side", range=(192, 320), crop=192),
        precision="bf16",
        validate_every=5,
        validate_long_side=LONG_SIDE,
    )


def _adamw(lr: float) -> OptimizerConfig:
    """What ``small`` trains DeepLab, AffinityNet and IRNet with, which learn from masks; and ``toy`` everything."""
    return OptimizerConfig(name="adamw", lr=lr, weight_decay=5e-4)


def _seam_head(rate: int) -> DeepLabV1Config:
    """SEAM's head with its BatchNorms, which a short schedule needs; its momentum is for 20,000 steps, not for 700."""
    return DeepLabV1Config(kind="seam", hidden=256, rate=rate, norm_momentum=0.01, multi_scale_input=False)


SMALL: dict[str, Overrides] = {
    "localizer": {"net": SMALL_NET, "train": _train_small(5, SGD)},
    "localize": {
        "localize.scales": (0.5, 1.0),
        "localize.long_side": LONG_SIDE,
        "localize.stride": 4,
        "localize.precision": "bf16",
    },
    # Crops hold fewer cells than published ones, so that pairs lie closer together.
    "irn": {
        "refine.canvas": None,
        "refine.train_radius": 6,
        # The branch learns at the rate of a new layer.
        "affinity": AffinityConfig(net=SMALL_NET, train=_train_small(3, _adamw(10 * 3e-4))),
    },
    "psa": {
        "refine.radius": 4,
        "affinity": AffinityConfig(net=SMALL_NET, train=_train_small(3, _adamw(3e-4))),
    },
    "deeplab_v1": {
        "segment": SegmentConfig(network=_seam_head(12), net=SMALL_NET, train=_train_small(5, _adamw(3e-4)))
    },
    "deeplab_v2": {"segment": SegmentConfig(network=_seam_head(6), net=SMALL_NET, train=_train_small(5, _adamw(3e-4)))},
    "predict": {
        "predict.scales": (0.75, 1.0, 1.25),
        "predict.flip": True,
        "predict.long_side": LONG_SIDE,
        "predict.precision": "bf16",
    },
    "crf": {"predict.crf.prune": PRUNE},
}
"""EfficientNet-Lite0 on crops of 192; DeepLab keeps its version, not its trunk."""

TOY_NET = NetConfig(backbone="toy", weights="toy_pretrained")


def _train_toy(epochs: int, lr: float = 2e-3) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=8,
        optimizer=_adamw(lr),
        augment=AugmentConfig(resize="scale", range=(0.8, 1.25), crop=112),
    )


TOY_HEAD: dict[str, Any] = {"multi_scale_input": False, "lr_multipliers": (1.0, 1.0, 1.0, 1.0)}
"""AdamW's steps do not shrink with the gradient: ten times the rate stops a head of three layers from learning."""
TOY: dict[str, Overrides] = {
    "localizer": {"net": TOY_NET, "train": _train_toy(15)},
    "localize": {"localize.scales": (0.75, 1.0, 1.5), "localize.stride": 2},
    # The network below IRN's branch is frozen and saw images of another world, so its boundaries are weak.
    "irn": {
        "refine.canvas": None,
        "refine.train_radius": 4,
        "refine.radius": 4,
        # Thresholds that follow the maps, and a walk as long as on IRN's images: 5 points of mIoU.
        "refine.labels": QuantileSeedsConfig(),
        "refine.walk_side": 125,
        "affinity": AffinityConfig(net=TOY_NET, train=_train_toy(4, 10 * 5e-4)),
    },
    "psa": {"refine.radius": 3, "affinity": AffinityConfig(net=TOY_NET, train=_train_toy(4))},
    "deeplab_v1": {
        "segment": SegmentConfig(
            network=DeepLabV1Config(kind="seam", hidden=128, rate=4, norm_momentum=0.01, **TOY_HEAD),
            net=TOY_NET,
            train=_train_toy(10),
        )
    },
    "deeplab_v2": {
        "segment": SegmentConfig(
            network=DeepLabV2Config(rates=(1, 3, 6), **TOY_HEAD), net=TOY_NET, train=_train_toy(10)
        )
    },
    "predict": {"predict.scales": (0.75, 1.0, 1.25), "predict.flip": True},
    "crf": {"predict.crf.prune": PRUNE},
}
"""A small network of its own, from weights that ship with the package, on crops of 112."""

TABLES: dict[Scale, Mapping[str, Overrides]] = {"paper": {}, "small": SMALL, "toy": TOY}


def shrink(published: Recipe, scale: Scale, small: Overrides, toy: Overrides) -> Recipe:
    """A published recipe at a scale: the table above for the steps it has, then the paper's own overrides."""
    if scale == "paper":
        return published
    own = {"small": small, "toy": toy}[scale]
    # Small data may have no augmented training list to score on.
    return replace_settings(
        published, {"scale": scale, "data.score_split": None, **_shared(published, TABLES[scale]), **own}
    )


def _shared(published: Recipe, tables: Mapping[str, Overrides]) -> dict[str, Any]:
    """What a table says of the steps that a recipe has."""

    def localizer(part: Localization) -> Overrides:
        return tables["localizer"] if part.method.single_stage else {**tables["localizer"], **tables["localize"]}

    changes = along_bases(published, localizer)
    steps = ["predict"]
    if published.refine is not None and published.refine.trainable:
        steps.append(published.refine.name)
    if published.segment is not None:
        steps.append(published.segment.network.name)
    if published.predict.crf is not None:
        steps.append("crf")
    for step in steps:
        changes |= tables[step]
    return changes


def along_bases(recipe: Localization, overrides_of: Callable[[Localization], Overrides]) -> dict[str, Any]:
    """Overrides for a localizer and for those it starts from, whose keys begin with ``base.``, ``base.base.`` ..."""
    return {
        "base." * depth + key: value
        for depth, part in enumerate(recipe.chain)
        for key, value in overrides_of(part).items()
    }


def set_method(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of its method."""
    return replace_settings(recipe, {f"method.{key}": value for key, value in settings.items()})


def refine_by(recipe: Recipe, walker: Walker) -> Recipe:
    """The recipe with IRN or PSA as its refiner, at the recipe's own scale."""
    return replace_settings(recipe, {**WALKERS[walker], **TABLES[recipe.scale].get(walker, {})})


def segment_by(recipe: Recipe, head: Head, trunk: Trunk, images: Images = "voc", wrapped: bool = False) -> Recipe:
    """The recipe with a DeepLab of the L2G release and its CRF, ``wrapped`` as released, at the recipe's own scale."""
    tables = TABLES[recipe.scale]
    preset = DEEPLAB_CRF[head, trunk] + ("_wrapped" if wrapped else "")
    made = {"segment": build_deeplab(head, trunk, images), "predict.crf": PRESETS[preset]}
    return replace_settings(recipe, {**made, **tables.get(f"deeplab_{head}", {}), **tables.get("crf", {})})
