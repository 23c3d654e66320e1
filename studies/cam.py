"""CAM: multi-label classifier, class activation maps, dense CRF, DeepLab: the baseline of everything else.

Published (ResNet-38, VOC): seeds 47.05 mIoU on train (EPS README, 20k iterations, threshold 0.2), 47.7 (PSA README).
Run: ``wsss run cam`` (toy), ``wsss run cam --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from typing import Literal

from wsss_ray import scales
from wsss_ray.data.augment import Augment
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import LocalizeConfig, NetConfig, Recipe, Scale, TrainConfig
from wsss_ray.refine.crf import PRESETS, CrfRefiner


def recipe(scale: Scale = "toy", profile: Literal["paper", "released"] = "paper") -> Recipe:
    """PSA's classifier on ResNet-38 at paper scale: long side 256-512, crop 448, lr 0.01, batch 8 (EPS-C voc12_cls)."""
    return Recipe(
        name="cam",
        scale=scale,
        method=CAMConfig(profile=profile),
        net=scales.net(scale, NetConfig(backbone="resnet38", weights="resnet38_imagenet")),
        train=scales.train(
            scale,
            TrainConfig(
                epochs=15,
                batch_size=8,
                optimizer=OptimizerConfig(lr=0.01, momentum=0.9 if profile == "paper" else 5e-4, weight_decay=5e-4),
                schedule=ScheduleConfig(name="poly", power=0.9),
                augment=Augment(resize="long_side", range=(256, 512), crop=448),
            ),
        ),
        localize=scales.localize(scale, LocalizeConfig()),
        refine=CrfRefiner(crf=PRESETS["psa"], unary="scores", background="constant", threshold=0.2),
        segment=scales.segment(scale),
        predict=scales.predict(scale),
    )
