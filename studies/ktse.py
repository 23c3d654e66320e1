# SPDX-License-Identifier: Apache-2.0
"""KTSE: knowledge transfer with simulated inter-image erasing (Chen et al. 2024, ECCV).

Published: seeds 67.0, with IRN 73.8 mIoU on VOC train; 73.0 on val with DeepLab-v2 on ResNet-101.
Run: ``wsss run ktse`` (toy), ``wsss run ktse --scale small --data URI`` (EfficientNet-Lite0, 2 cores).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsss_ray.data.augment import AugmentConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.ktse.config import IRN_FUSION, KTSEConfig
from wsss_ray.nets.deeplab import DeepLabV2Config
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import NetConfig, Recipe, Scale, SegmentConfig, replace_settings, take_localizer
from wsss_ray.refine.crf import PRESETS
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.seeds import ConfidentSeedsConfig
from wsss_ray.score.config import ScoreConfig

from . import _scales as scales
from . import cam
from ._numbers_ktse import PUBLISHED
from ._rows import make_rows
from ._steps import IRNET, Images, build_deeplab, build_protocol


def published(profile: Profile) -> Recipe:
    """ResNet-38 with GPP head, maps of four scales and flips, IRN, DeepLab-v2 (Sec. 4.1).

    Training: 40 epochs at lr 0.01 for every layer. Paper: it mentions neither warm-up nor horizon nor this stage's
    momentum; batch 16, 0.9. Released (tools, train scripts): batch 8 in the warm-up of 10 epochs, 16 after, and a
    schedule of 40 epochs at the batch size of the warm-up, so that the rate ends at 0.41 of its start.
    Refinement, released: IRN sees maps fused by ``IRN_FUSION`` and background below 0.10; scored seeds are then of
    those maps (``build_seeds`` has the ones of Tables 6 and 7). A class absent from truth and prediction counts as 0.
    Segmentation: one network and plain cross-entropy, where KTSE takes over the two co-trained ones of BECO, and the
    mean of BECO's scales, where it takes their maximum.
    """
    released = profile == "released"
    return Recipe(
        name="ktse",
        scale="paper",
        method=KTSEConfig(profile=profile),
        net=NetConfig(backbone="resnet38", weights="resnet38_imagenet", options={"dropout": (0.2, 0.2)}),
        train=TrainConfig(
            epochs=40,
            batch_size=8 if released else 16,
            batch_milestones={10: 16} if released else {},
            # The released PolyOptimizer hands its weight decay to SGD as momentum.
            optimizer=OptimizerConfig(lr=0.01, momentum=5e-4 if released else 0.9, weight_decay=5e-4),
            schedule=ScheduleConfig(name="poly", power=0.9, horizon=52_880 if released else None),
            augment=AugmentConfig(resize="long_side", range=(256, 512), crop=320),
        ),
        localize=LocalizeConfig(scales=(0.5, 1.0, 1.5, 2.0), stride=4, fusion=IRN_FUSION if released else None),
        refine=IRNConfig(
            canvas=512, labels=ConfidentSeedsConfig(foreground=0.30, background=0.10 if released else 0.05)
        ),
        affinity=IRNET,
        segment=SegmentConfig(
            network=DeepLabV2Config(multi_scale_input=False, lr_multipliers=(1.0, 1.0, 1.0, 1.0)),
            net=NetConfig(
                backbone="resnet101",
                output_stride=8,
                weights="resnet101_imagenet_v2" if released else "resnet101_imagenet",
                options={"batch_norm": "train"},
            ),
            train=TrainConfig(
                epochs=100 if released else 80,
                batch_size=16,
                optimizer=OptimizerConfig(lr=0.01, momentum=0.9, weight_decay=1e-4),
                schedule=ScheduleConfig(name="poly", power=0.9, floor=1e-3),
                # The released list of scales reaches a crop that reads its first two values as shares of the area.
                augment=AugmentConfig(resize="area", area=(0.5, 0.75), crop=512)
                if released
                else AugmentConfig(resize="choice", choices=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), crop=512),
            ),
        ),
        predict=PredictConfig(scales=(0.75, 1.0, 1.25), flip=False, crf=PRESETS["beco"]),
        score=ScoreConfig(absent="zero" if released else "skip"),
    )


def published_coco(profile: Profile) -> Recipe:
    """COCO: as many epochs, a schedule over the whole run, 40 epochs of segmentation (Sec. 4.1)."""
    changes = {"train.schedule.horizon": None, "segment.train.epochs": 40, "refine.canvas": 640}
    return replace_settings(published(profile), {"name": "ktse-coco", **changes})


WIDTH: dict[Scale, int] = {"paper": 256, "small": 64, "toy": 64}
"""Channels of the head."""
EPOCHS: dict[Scale, tuple[int, int, int]] = {"small": (7, 4, 2), "toy": (10, 5, 4)}
"""Of training, of its warm-up in which pseudo labels get a classifier first, and of the ramp after it."""
LEARNING: scales.Overrides = {
    # An untrained plane loses every background pixel as SSR begins, and pushes the classes down.
    "method.warmup_background": True,
    # In both profiles. A joint mean gives the foreground next to no weight against the background, and signed planes
    # are pushed down for as long as that is their label; on a short schedule the labels follow them.
    "method.ce_mean": "separate",
    "method.rectify_scores": True,
    "localize.stride": 4,
}


def shrink(made: Recipe, scale: Scale, profile: Profile) -> Recipe:
    """A recipe of KTSE at a scale; below ``paper`` its backbone starts from that of a trained CAM."""
    if scale == "paper":
        return made
    epochs, warmup, ramp = EPOCHS[scale]
    own = {
        **LEARNING,
        "base": take_localizer(cam.recipe(scale, profile)),
        "method.hidden": WIDTH[scale],
        "method.warmup_epochs": warmup,
        "method.ramp_epochs": ramp,
        "train.epochs": epochs,
        # Released: the batch grows where the warm-up ends.
        "train.batch_milestones": {warmup: 16} if profile == "released" else {},
    }
    return scales.shrink(made, scale, own, own)


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """KTSE at a scale."""
    return shrink(published(profile), scale, profile)


def recipe_coco(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """KTSE for COCO at a scale."""
    return shrink(published_coco(profile), scale, profile)


def build_seeds(scale: Scale, profile: Profile, **settings: Any) -> Recipe:
    """Seeds alone, at full size, fused as the released evaluation does it; ``settings`` change the method."""
    seeds = {"refine": None, "affinity": None, "segment": None, "localize.stride": scales.SEED_STRIDE[scale]}
    made = replace_settings(recipe(scale, profile), {"localize.fusion": None, **seeds})
    return scales.set_method(made, **settings)


def switch(*names: str, **settings: Any) -> dict[str, Any]:
    """Ablation settings: all parts off but these ("sie", "ssr", "ga", "la")."""
    return {name: name in names for name in ("sie", "ssr", "ga", "la")} | settings


def segment_by_vgg(made: Recipe, images: Images, scale: Scale, profile: Profile) -> Recipe:
    """A published recipe at a scale, under L2G's DeepLab-v2 on VGG-16 and that one's CRF."""
    vgg = {"segment": build_deeplab("v2", "vgg16", images), "predict": build_protocol("deeplab_v2_vgg")}
    return shrink(replace_settings(made, vgg), scale, profile)


def table1(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds and pseudo masks."""
    return Study(
        name="ktse.table1",
        title="KTSE: pseudo masks on VOC",
        source="KTSE Table 1, PASCAL VOC 2012 train; masks refined by IRN",
        metric="masks",
        rows=make_rows(PUBLISHED["table1"], {"KTSE": replace_settings(recipe(scale, profile), {"segment": None})}),
    )


def build_segmentation(key: str, title: str, source: str, made: Recipe) -> Study:
    """A table of segmentation results."""
    return Study(
        name=f"ktse.{key}",
        title=title,
        source=source,
        metric="segmentation",
        rows=make_rows(PUBLISHED[key], {"KTSE": made}),
    )


def table2(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """VGG-16."""
    return build_segmentation(
        "table2",
        "KTSE: segmentation on VOC, VGG-16",
        "KTSE Table 2, PASCAL VOC 2012 val, DeepLab-v2 on VGG-16",
        segment_by_vgg(published(profile), "voc", scale, profile),
    )


def table3(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """ResNet-101."""
    return build_segmentation(
        "table3",
        "KTSE: segmentation on VOC, ResNet",
        "KTSE Table 3, PASCAL VOC 2012 val, DeepLab-v2 on ResNet-101 (BECO)",
        recipe(scale, profile),
    )


def table4(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """COCO, VGG-16."""
    return build_segmentation(
        "table4",
        "KTSE: segmentation on COCO, VGG-16",
        "KTSE Table 4, MS COCO 2014 val; needs COCO shards (--data)",
        segment_by_vgg(published_coco(profile), "coco", scale, profile),
    )


def table5(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """COCO, ResNet-101."""
    return build_segmentation(
        "table5",
        "KTSE: segmentation on COCO, ResNet",
        "KTSE Table 5, MS COCO 2014 val; needs COCO shards (--data)",
        recipe_coco(scale, profile),
    )


def build_ablation(key: str, title: str, scale: Scale, profile: Profile, rows: Mapping[str, dict[str, Any]]) -> Study:
    """Seeds of methods that differ in their settings alone."""
    return Study(
        name=f"ktse.{key}",
        title=title,
        source=f"KTSE {key.replace('table', 'Table ')}, PASCAL VOC 2012 train, best threshold from 0.10 to 0.29; "
        "ours from 0 to 0.99",
        metric="seeds",
        variant="best",
        rows=make_rows(
            PUBLISHED[key], {row: build_seeds(scale, profile, **settings) for row, settings in rows.items()}
        ),
    )


def table6(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """What each part adds."""
    rows = {
        "Base": switch(),
        "Base + SIE": switch("sie"),
        "Base + SSR": switch("ssr"),
        "Base + MGA": switch("ga", "la"),
        "Base + SIE + SSR": switch("sie", "ssr"),
        "Base + SIE + SSR + MGA": switch("sie", "ssr", "ga", "la"),
    }
    return build_ablation("table6", "KTSE: contribution of each part", scale, profile, rows)


def table7(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Ways to align an erased image."""
    rows = {
        "Base": switch(),
        "Rigid classification (ACoL)": switch(rigid_classification=True),
        "Soft GPP feature (AEFT)": switch(soft_gpp_alignment=True),
        "GA": switch("ga"),
        "GA + LA": switch("ga", "la"),
    }
    return build_ablation("table7", "KTSE: ways to align an erased image", scale, profile, rows)


def head(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """The base beside CAM, and beside a CAM that is given the same start and schedule: what start, rate, width and
    pooling are worth.
    """
    plain = cam.recipe(scale, profile)
    base = replace_settings(build_seeds(scale, profile, **switch()), {"base": take_localizer(plain)})
    rows = {
        "CAM": replace_settings(plain, {"refine": None, "segment": None, "localize.stride": base.localize.stride}),
        "CAM from CAM": replace_settings(base, {"method": plain.method}),
        "Base": base,
        "Base, mean pooling": scales.set_method(base, pooling="mean"),
        "Base, head at ten times the rate": scales.set_method(base, new_layer_multiplier=10.0),
        "Base, head four times as wide": scales.set_method(base, hidden=4 * WIDTH[scale]),
        "Base, mean pooling at ten times the rate": scales.set_method(base, pooling="mean", new_layer_multiplier=10.0),
        "Base, published start": replace_settings(base, {"base": None}),
    }
    return Study(
        name="ktse.head",
        title="KTSE: the base beside CAM",
        source="no published counterpart",
        metric="seeds",
        variant="best",
        rows=tuple(Row(name, made) for name, made in rows.items()),
        also=("mean_ap", "precision", "recall", "seeds.fixed", "minutes"),
    )


STUDIES: dict[str, StudyFunction] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "table7": table7,
    "head": head,
}
