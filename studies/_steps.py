# SPDX-License-Identifier: Apache-2.0
"""Published steps that several papers share: IRN and PSA with their networks, DeepLab, and how it is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from wsss_ray.data.augment import AugmentConfig, JitterConfig, NormalizeConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.deeplab import DeepLabV1Config, DeepLabV2Config
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import AffinityConfig, NetConfig, SegmentConfig
from wsss_ray.refine.crf import PRESETS
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.psa import PSAConfig

Walker = Literal["irn", "psa"]
Head = Literal["v1", "v2"]
Trunk = Literal["resnet101", "vgg16"]
Images = Literal["voc", "coco"]

RESNET38 = NetConfig(backbone="resnet38", weights="resnet38_imagenet")
"""WideResNet-38 "A1" from ImageNet weights, the localizer's backbone in most of these papers."""

IRNET = AffinityConfig(
    net=NetConfig(
        backbone="resnet50",
        output_stride=16,
        weights="resnet50_imagenet_19c8e357",
        options={"batch_norm": "frozen", "freeze_through": "layer4"},
    ),
    train=TrainConfig(
        epochs=3,
        batch_size=32,
        optimizer=OptimizerConfig(lr=0.1, momentum=1e-4, weight_decay=1e-4),
        schedule=ScheduleConfig(name="poly", power=0.9),
        augment=AugmentConfig(resize="scale", range=(0.5, 1.5), crop=512),
    ),
)
"""IRN step/train_irn, on a frozen ResNet-50. Its PolyOptimizer hands the weight decay to SGD as momentum."""

AFFINITYNET = AffinityConfig(
    net=RESNET38,
    train=TrainConfig(
        epochs=8,
        batch_size=8,
        optimizer=OptimizerConfig(lr=0.1, momentum=5e-4, weight_decay=5e-4),
        schedule=ScheduleConfig(name="poly", power=0.9),
        augment=AugmentConfig(resize="none", crop=448, crop_before_normalize=True, jitter=JitterConfig()),
    ),
)
"""PSA train_aff, on ResNet-38; momentum as in ``IRNET``."""

WALKERS: dict[Walker, dict[str, Any]] = {
    "irn": {"refine": IRNConfig(canvas=512), "affinity": IRNET},
    "psa": {"refine": PSAConfig(), "affinity": AFFINITYNET},
}
"""Refiner and its network, as settings of a recipe."""


@dataclass(frozen=True)
class Training:
    """What the configurations of one trunk and data set in the L2G release differ in."""

    epochs: int
    """Enough for ``max_steps`` of 10,582 or 82,081 images."""
    max_steps: int
    batch_size: int
    accumulate: int
    choices: tuple[float, ...]
    """Scales of the training images."""
    crop: int
    power: float = 0.9


FIVE = (0.5, 0.75, 1.0, 1.25, 1.5)
TRAININGS: dict[tuple[Trunk, Images], Training] = {
    ("resnet101", "voc"): Training(19, 20_000, 10, 2, FIVE, 321),
    ("vgg16", "voc"): Training(29, 30_000, 10, 2, (*FIVE, 1.75, 2.0), 448),
    ("resnet101", "coco"): Training(13, 50_000, 20, 1, FIVE, 321),
    ("vgg16", "coco"): Training(25, 50_000, 40, 2, FIVE, 321, power=0.85),
}
TRUNKS: dict[tuple[Trunk, Images], NetConfig] = {
    ("resnet101", "voc"): NetConfig(
        backbone="resnet101_caffe",
        weights="deeplab_resnet101_coco",
        normalize=NormalizeConfig(preset="caffe_bgr"),
    ),
    ("resnet101", "coco"): NetConfig(
        backbone="resnet101_caffe",
        weights="deeplab_resnet101_imagenet",
        normalize=NormalizeConfig(preset="caffe_bgr"),
    ),
    ("vgg16", "voc"): NetConfig(backbone="vgg16", weights="vgg16_imagenet"),
    ("vgg16", "coco"): NetConfig(backbone="vgg16", weights="vgg16_imagenet"),
}
"""Released VGG starts from files of its own, here from torchvision's."""

DEEPLAB_CRF: dict[tuple[Head, Trunk], str] = {
    ("v2", "resnet101"): "deeplab_v2",
    ("v1", "resnet101"): "largefov",
    ("v2", "vgg16"): "deeplab_v2_vgg",
    ("v1", "vgg16"): "largefov",
}
"""Preset of the CRF after each DeepLab of the L2G release; with ``_wrapped`` behind it, as released."""


def build_deeplab(head: Head = "v2", trunk: Trunk = "resnet101", images: Images = "voc") -> SegmentConfig:
    """A DeepLab of the L2G release (its deeplab-pytorch/configs); by default deeplab-pytorch's own of VOC."""
    training = TRAININGS[trunk, images]
    hidden = 1024 if trunk == "vgg16" else None
    return SegmentConfig(
        network=DeepLabV1Config() if head == "v1" else DeepLabV2Config(hidden=hidden),
        net=TRUNKS[trunk, images],
        train=TrainConfig(
            epochs=training.epochs,
            max_steps=training.max_steps,
            batch_size=training.batch_size,
            accumulate=training.accumulate,
            optimizer=OptimizerConfig(lr=2.5e-4, momentum=0.9, weight_decay=5e-4),
            schedule=ScheduleConfig(
                name="poly", power=training.power, horizon=training.max_steps, update_every=10, after="zero"
            ),
            augment=AugmentConfig(
                resize="choice",
                choices=training.choices,
                crop=training.crop,
                pad="right_bottom",
                flip_last=True,
                interpolation="linear",
            ),
        ),
    )


def build_protocol(crf: str = "deeplab_v2") -> PredictConfig:
    """How deeplab-pytorch tests: the whole image at its own size, no flip, then a preset of the CRF."""
    return PredictConfig(scales=(1.0,), flip=False, crf=PRESETS[crf])
