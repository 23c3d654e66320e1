"""The same recipe at three sizes: ``paper`` as published, ``small`` for 2 cores on real images, ``toy`` for a
minute."""

from __future__ import annotations

from typing import Any, Literal

from wsss_ray.data.augment import AugmentConfig, JitterConfig, NormalizeConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.deeplab import DeepLabV1Config, DeepLabV2Config
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import AffinityConfig, NetConfig, Scale, SegmentConfig
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import PRESETS, CRFConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.psa import PSAConfig

ADAMW = OptimizerConfig(name="adamw", lr=3e-4, weight_decay=5e-4)
"""What ``toy`` trains with, from scratch, and at ``small`` what learns from masks: DeepLab, AffinityNet and IRNet."""

SGD = OptimizerConfig(lr=0.003, momentum=0.9, nesterov=True, weight_decay=5e-4)
"""What localizers of ``small`` train with, from ImageNet weights; heads at the multiples of the papers.

Seeds of eight classes of VOC against ``ADAMW``'s: CAM 34.1 and 31.3 mIoU after five epochs (three seeds), EPS 37.3
and 37.2, SSSS 34.3 and 22.7 after three (seed 0, 60 images). Under AdamW, whose steps do not shrink with the
gradient, L2G answers 1.0000 background after 30 of them, where softmax and square leave no gradient to come back by.
"""


LONG_SIDE = 320
"""Longer side of the images of ``small`` where maps and masks are read at scale 1: the largest it trains on."""


PRUNE = 0.05
"""Small scales' CRF after a segmentation network leaves out the labels that reach this nowhere: they do not win."""


def net(scale: Scale, paper: NetConfig) -> NetConfig:
    """The backbone of a scale."""
    if scale == "toy":
        return NetConfig(backbone="toy")
    if scale == "small":
        return NetConfig(
            backbone="squeezenet",
            weights="squeezenet_deep_compression",
            output_stride=8,
            # The early layers stay as published, as conv1a and b2 of ResNet-38 do; it is a third faster.
            options={"freeze_through": 5, "unit_taps": True},
        )
    return paper


def train(
    scale: Scale, paper: TrainConfig, epochs: int | None = None, small_optimizer: OptimizerConfig = SGD
) -> TrainConfig:
    """The schedule of a scale; ``epochs`` is of both small ones, ``small_optimizer`` of ``small`` alone."""
    if scale == "toy":
        return TrainConfig(
            epochs=epochs or 15,
            batch_size=8,
            optimizer=ADAMW.model_copy(update={"lr": 5e-4}),
            augment=AugmentConfig(resize="scale", range=(0.8, 1.25), crop=112),
        )
    if scale == "small":
        return TrainConfig(
            epochs=epochs or 5,
            batch_size=8,
            optimizer=small_optimizer,
            augment=AugmentConfig(resize="long_side", range=(192, 320), crop=192),
            precision="bf16",
            validate_every=5,
            validate_long_side=LONG_SIDE,
        )
    return paper


def localize(scale: Scale, paper: LocalizeConfig) -> LocalizeConfig:
    """Scales and storage of the class maps."""
    if scale == "paper":
        return paper
    if scale == "toy":
        return LocalizeConfig(scales=(0.75, 1.0, 1.5), stride=2)
    # Scales 1.5 and 2 as well cost five times as much, for one point of mIoU (measured on eight classes of VOC).
    return LocalizeConfig(scales=(0.5, 1.0), long_side=LONG_SIDE, stride=4, precision="bf16")


def segment(scale: Scale) -> SegmentConfig:
    """DeepLab-v2 ResNet-101 as deeplab-pytorch trains it (VOC); ``toy`` has its head on the small network."""
    if scale == "paper":
        return SegmentConfig(
            network=DeepLabV2Config(),
            net=NetConfig(
                backbone="resnet101_caffe",
                weights="deeplab_resnet101_coco",
                normalize=NormalizeConfig(preset="caffe_bgr"),
            ),
            train=TrainConfig(
                epochs=19,
                max_steps=20_000,
                batch_size=10,
                accumulate=2,
                optimizer=OptimizerConfig(lr=2.5e-4, momentum=0.9, weight_decay=5e-4),
                schedule=ScheduleConfig(name="poly", power=0.9, horizon=20_000, update_every=10, after="zero"),
                augment=AugmentConfig(
                    resize="choice",
                    choices=(0.5, 0.75, 1.0, 1.25, 1.5),
                    crop=321,
                    pad="right_bottom",
                    flip_last=True,
                    interpolation="linear",
                ),
            ),
        )
    if scale == "toy":
        network: DeepLabV1Config | DeepLabV2Config = DeepLabV2Config(rates=(1, 3, 6), multi_scale_input=False)
        return SegmentConfig(network=network, net=NetConfig(backbone="toy"), train=train(scale, TrainConfig(), 10))
    schedule = train(scale, TrainConfig(), small_optimizer=ADAMW)
    return SegmentConfig(network=normalized_head(6), net=net(scale, NetConfig()), train=schedule)


def normalized_head(rate: int) -> DeepLabV1Config:
    """SEAM's head with its BatchNorms.

    Three epochs on the same masks of eight VOC classes: 20.4 mIoU on val, against 9.8 of the plain ASPP and 11.4 of
    one behind a BatchNorm; measured on a SqueezeNet without ``unit_taps``.
    """
    return DeepLabV1Config(kind="seam", hidden=256, rate=rate, multi_scale_input=False)


def test_crf(scale: Scale, preset: str = "deeplab_v2") -> CRFConfig:
    """The CRF on a segmentation network's probabilities."""
    return PRESETS[preset] if scale == "paper" else PRESETS[preset].model_copy(update={"prune": PRUNE})


def predict(scale: Scale, crf: str = "deeplab_v2") -> PredictConfig:
    """Test-time protocol of the segmentation network, with a preset of the CRF."""
    own = test_crf(scale, crf)
    if scale == "paper":
        return PredictConfig(scales=(1.0,), flip=False, crf=own)
    scales = (0.75, 1.0, 1.25)
    if scale == "toy":
        return PredictConfig(scales=scales, crf=own)
    return PredictConfig(scales=scales, long_side=LONG_SIDE, crf=own, precision="bf16")


Head = Literal["v1", "v2"]
Trunk = Literal["resnet101", "vgg16"]
DEEPLAB_CRF = {
    ("v2", "resnet101"): "deeplab_v2",
    ("v1", "resnet101"): "largefov",
    ("v2", "vgg16"): "deeplab_v2_vgg",
    ("v1", "vgg16"): "largefov",
}
"""Preset of the CRF after each DeepLab of the L2G release; with ``_wrapped`` behind it, as released."""


def deeplab(scale: Scale, head: Head = "v2", trunk: Trunk = "resnet101", coco: bool = False) -> SegmentConfig:
    """The DeepLabs of the L2G release (its deeplab-pytorch/configs); small scales know the head, not the trunk.

    At ``small`` both are SEAM's head, v1 with twice the rate. Released VGG starts from files of its own, here from
    torchvision's.
    """
    plain = segment(scale)
    if scale != "paper":
        toy = DeepLabV1Config(rate=6, hidden=256, multi_scale_input=False)
        small = toy if scale == "toy" else normalized_head(12)
        return plain if head == "v2" else plain.model_copy(update={"network": small})
    vgg = trunk == "vgg16"
    wide = vgg and not coco
    steps = 50_000 if coco else 30_000 if vgg else 20_000
    batch = (40 if vgg else 20) if coco else 10
    accumulate = 2 if vgg or not coco else 1
    power = 0.85 if vgg and coco else 0.9
    sizes = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0) if wide else (0.5, 0.75, 1.0, 1.25, 1.5)
    start = "deeplab_resnet101_imagenet" if coco else "deeplab_resnet101_coco"
    caffe = NetConfig(backbone="resnet101_caffe", weights=start, normalize=NormalizeConfig(preset="caffe_bgr"))
    images = 82_081 if coco else 10_582
    return SegmentConfig(
        network=DeepLabV1Config() if head == "v1" else DeepLabV2Config(hidden=1024 if vgg else None),
        net=NetConfig(backbone="vgg16", weights="vgg16_imagenet") if vgg else caffe,
        train=plain.train.model_copy(
            update={
                "epochs": -(-steps * batch // (images // batch * batch)),
                "max_steps": steps,
                "batch_size": batch,
                "accumulate": accumulate,
                "schedule": plain.train.schedule.model_copy(update={"power": power, "horizon": steps}),
                "augment": plain.train.augment.model_copy(update={"choices": sizes, "crop": 448 if wide else 321}),
            }
        ),
    )


Walker = Literal["irn", "psa"]


def affinity(scale: Scale, kind: Walker = "irn") -> AffinityConfig:
    """IRNet (ResNet-50, frozen) and AffinityNet (ResNet-38) as released, or on the small networks.

    Momentum is that of the released PolyOptimizer, none to speak of. A small IRNet's branch learns at the rate of a new
    layer; at ``toy`` the frozen network below it is untrained, so its boundaries are weak.
    """
    if scale != "paper":
        own = train(scale, TrainConfig(), epochs=4 if scale == "toy" else 3, small_optimizer=ADAMW)
        if kind == "irn":
            own = own.model_copy(update={"optimizer": own.optimizer.model_copy(update={"lr": 10 * own.optimizer.lr})})
        return AffinityConfig(net=net(scale, NetConfig()), train=own)
    if kind == "irn":
        return AffinityConfig(
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
    return AffinityConfig(
        net=NetConfig(backbone="resnet38", weights="resnet38_imagenet"),
        train=TrainConfig(
            epochs=8,
            batch_size=8,
            optimizer=OptimizerConfig(lr=0.1, momentum=5e-4, weight_decay=5e-4),
            schedule=ScheduleConfig(name="poly", power=0.9),
            augment=AugmentConfig(resize="none", crop=448, crop_before_normalize=True, jitter=JitterConfig()),
        ),
    )


def walker(scale: Scale, kind: Walker = "irn", labels: RefinerConfig | None = None) -> IRNConfig | PSAConfig:
    """IRN or PSA with the radii of a scale; ``labels`` makes the training masks, None the refiner's own way.

    Crops of the small scales hold fewer cells, so that pairs lie closer together.
    """
    given: dict[str, Any] = {} if labels is None else {"labels": labels}
    if kind == "irn":
        if scale == "paper":
            return IRNConfig(canvas=512, **given)
        return IRNConfig(train_radius=4 if scale == "toy" else 6, radius=4 if scale == "toy" else 5, **given)
    return PSAConfig(radius={"toy": 3, "small": 4, "paper": 5}[scale], **given)
