"""SSSS: one network that classifies and segments, taught by its own refined masks (Araslanov & Roth 2020, CVPR).

Published: 59.7 mIoU on VOC val, 62.7 with a CRF (ResNet-38, README of the released code); the paper's text was not at
hand, so both profiles are the released code.
Run: ``wsss run ssss`` (toy), ``wsss run ssss --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from typing import Any

from wsss_ray.studies import _scales as scales

from wsss_ray.data.augment import AugmentConfig, JitterConfig
from wsss_ray.engine.gate import SSSS_GATE, GateConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.ssss.config import SSSSConfig
from wsss_ray.methods.ssss.network import SingleStageConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import NetConfig, Recipe, Scale, replaced
from wsss_ray.score.config import ScoreConfig

SCALES = (1.0, 0.5, 1.5, 2.0)
COCO: dict[str, Any] = {
    "pamr_iterations": 5,
    "penalty_floor": 0.1,
    "threshold_floor": 0.1,
    "ratio_background": 0.8,
}
"""What WS-FCN's released code notes for MS COCO 2014."""


def train(epochs: int = 20) -> TrainConfig:
    """Random-resized crops of 321 with colour jitter, lr 0.001 throughout, batch 16 (configs/voc_resnet38).

    20 epochs made the released weights; the script goes on to 25 and keeps the best by its loss on val.
    """
    return TrainConfig(
        epochs=epochs,
        batch_size=16,
        optimizer=OptimizerConfig(lr=1e-3, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleConfig(name="constant"),
        augment=AugmentConfig(resize="area", area=(0.9, 1.0), crop=321, jitter=JitterConfig()),
    )


def small_settings(scale: Scale) -> dict[str, Any]:
    """What of a single-stage method the small scales change: width, rates, and a warm-up of a third of the epochs."""
    if scale == "paper":
        return {}
    toy = scale == "toy"
    return {
        "width": 64 if toy else 128,
        "skip_channels": 16 if toy else 24,
        "dilations": (2, 4, 6) if toy else (4, 8, 12),
        "pamr_dilations": (1, 2, 4, 8) if toy else (1, 2, 4, 8, 12),
        "warmup_epochs": schedule(scale, TrainConfig()).epochs // 3,
        "multipliers": (1.0, 2.0, 10.0, 20.0),
    }


def schedule(scale: Scale, own: TrainConfig) -> TrainConfig:
    """An epoch more than a classifier alone at ``small``: a third of the epochs only warms up."""
    return scales.train(scale, own, epochs=6 if scale == "small" else None)


def predict(scale: Scale, gate: GateConfig = SSSS_GATE, crf: str = "ssss") -> PredictConfig:
    """Eight views, classes gated by the network's own image scores, and a CRF.

    ``small`` has the six views of its DeepLab: 29.7 mIoU on val and 35.6 with the CRF, where the published eight, up to
    twice the size it trains on, have 28.5 and 33.6 on 2.4 times the pixels (SSSS on eight classes of VOC, seed 0).
    """
    if scale == "small":
        return scales.predict(scale, crf).model_copy(update={"gate": gate})
    return PredictConfig(scales=SCALES, gate=gate, crf=scales.test_crf(scale, crf))


def single_stage(scale: Scale, name: str, method: SingleStageConfig, own: TrainConfig, answer: PredictConfig) -> Recipe:
    """A recipe that ends at the masks the localizer itself predicts."""
    return Recipe(
        name=name,
        scale=scale,
        method=method,
        net=scales.net(scale, NetConfig(backbone="resnet38", weights="resnet38_imagenet")),
        train=schedule(scale, own),
        refine=None,
        segment=None,
        predict=answer,
        score=ScoreConfig(absent="zero"),
    )


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """ResNet-38, atrous pyramid, global cue injection, stochastic gate; background cubed, absent classes count as 0."""
    method = SSSSConfig.model_validate({"profile": profile, **small_settings(scale)})
    return single_stage(scale, "ssss", method, train(), predict(scale))


def variants(made: Recipe) -> dict[str, Recipe]:
    """The same network without and with the CRF, and with the images' labels as class gate ("labels")."""
    told = replaced(made, {"predict.gate.classes": "labels"})
    return {
        "plain": replaced(made, {"predict.crf": None}),
        "crf": made,
        "labels": replaced(told, {"predict.crf": None}),
        "labels crf": told,
    }


def on_train(made: Recipe) -> Recipe:
    """Masks of the training images instead of val's."""
    return replaced(made, {"data.val_split": "train"})


def readme(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """All numbers of the README; training looks at no val images, so that the rows on train share its network."""
    ways = variants(replaced(recipe(scale, profile), {"train.validate_images": 0}))
    given = "image labels used at test time"
    return Study(
        name="ssss.readme",
        title="SSSS on VOC",
        source="README of the released code, PASCAL VOC 2012 val unless said, four scales and flips",
        metric="segmentation",
        rows=(
            Row("SSSS", ways["plain"], {"segmentation": 59.7}, "test 62.7 by the README, 60.5 by the paper"),
            Row("SSSS + CRF", ways["crf"], {"segmentation": 62.7}, "test 64.3"),
            Row("SSSS, labels given", ways["labels"], {"segmentation": 63.4}, given),
            Row("SSSS + CRF, labels given", ways["labels crf"], {"segmentation": 65.3}, given),
            Row("SSSS, labels given, train", on_train(ways["labels"]), {"segmentation": 64.7}, f"train; {given}"),
            Row(
                "SSSS + CRF, labels given, train",
                on_train(ways["labels crf"]),
                {"segmentation": 66.9},
                f"train; {given}",
            ),
            Row("SSSS, third party", None, {"segmentation": 58.5}, "issue 16 of the released code"),
            Row("SSSS + CRF, third party", None, {"segmentation": 60.07}, "issue 16 of the released code"),
            Row("SSSS + CRF, another third party", None, {"segmentation": 58.2}, "issue 16 of the released code"),
            Row("SSSS, retrained for WS-FCN", None, {"segmentation": 58.38}, "WS-FCN Table I: one scale and flip"),
        ),
    )


STUDIES: dict[str, StudyFunction] = {"readme": readme}
