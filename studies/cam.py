# SPDX-License-Identifier: Apache-2.0
"""CAM: multi-label classifier, class activation maps, dense CRF, DeepLab: the baseline of everything else.

Published (ResNet-38, VOC): seeds 47.05 mIoU on train (EPS README, 20k iterations, threshold 0.2), 47.7 (PSA README).
Run: ``wsss run cam`` (toy), ``wsss run cam --scale small --data URI`` (EfficientNet-Lite0, 2 cores).
"""

from __future__ import annotations

from wsss_ray.data.augment import AugmentConfig, JitterConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import Recipe, Scale, replace_settings
from wsss_ray.refine.crf import PRESETS, CRFRefinerConfig
from wsss_ray.refine.pamr import PAMRConfig
from wsss_ray.refine.psa import LABELS_NOTE
from wsss_ray.refine.seeds import ThresholdSeedsConfig

from . import _scales as scales
from ._rows import Table, make_rows
from ._steps import RESNET38, build_deeplab, build_protocol


def published(profile: Profile) -> Recipe:
    """PSA's classifier and CRF on ResNet-38, at the rate and batch of EPS's baseline (script/voc12_cls.sh)."""
    released = profile == "released"
    return Recipe(
        name="cam",
        scale="paper",
        method=CAMConfig(profile=profile),
        net=RESNET38,
        train=TrainConfig(
            epochs=15,
            batch_size=8,
            # The released PolyOptimizer hands its weight decay to SGD as momentum.
            optimizer=OptimizerConfig(lr=0.01, momentum=5e-4 if released else 0.9, weight_decay=5e-4),
            schedule=ScheduleConfig(name="poly", power=0.9),
            augment=AugmentConfig(resize="long_side", range=(256, 512), crop=448, jitter=JitterConfig()),
        ),
        localize=LocalizeConfig(scales=(0.5, 1.0, 1.5, 2.0), stride=4),
        refine=CRFRefinerConfig(crf=PRESETS["psa"], unary="scores", background="constant", threshold=0.2),
        segment=build_deeplab(),
        predict=build_protocol(),
    )


CLASSIFIER: scales.Overrides = {"method.dropout": 0.0}
"""Small networks on a short schedule under-fit with half their features dropped."""
SMALL: scales.Overrides = {
    **CLASSIFIER,
    # Its maps on real images are low: 0.2 as a score beside them wins nearly everywhere once the CRF has spread it.
    "refine.crf": PRESETS["irn"],
    "refine.unary": "labels",
    # And 0.2 is under most of their background, which the CRF then takes for an object.
    "refine.threshold": "otsu",
}
TOY = CLASSIFIER


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """CAM at a scale."""
    return scales.shrink(published(profile), scale, SMALL, TOY)


PUBLISHED: dict[str, Table] = {
    "baseline": {
        "CAM (EPS code)": {"seeds": 47.05, "note": "published with threshold 0.2"},
        "CAM (PSA code)": {"seeds": 47.7},
    },
}


def baseline(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """The seeds every later paper starts from."""
    return Study(
        name="cam.baseline",
        title="CAM: seeds of a plain classifier",
        source="READMEs of the EPS and PSA code; ResNet-38, VOC 2012 train (1,464 images), best threshold",
        metric="seeds",
        rows=make_rows(PUBLISHED["baseline"], {"CAM (EPS code)": build_masks(scale, profile)}),
    )


def thresholds(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds against the background constant: one training, many cheap rows."""
    made = build_masks(scale, profile)
    return Study(
        name="cam.thresholds",
        title="CAM: seeds at fixed background thresholds",
        source="no published counterpart; EPS, PSA and SMAF use 0.2, L2G 0.25, IRN 0.15",
        metric="masks",
        rows=tuple(
            Row(f"{threshold:g}", replace_settings(made, {"refine": ThresholdSeedsConfig(threshold=threshold)}))
            for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
        ),
        axis="background threshold",
    )


def refiners(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """What refinement adds to the same maps: without a network, and with IRN's or PSA's."""
    made = build_masks(scale, profile)
    return Study(
        name="cam.refiners",
        title="CAM: the same class maps by refiner",
        source="no published counterpart",
        metric="masks",
        rows=(
            Row("none", replace_settings(made, {"refine": ThresholdSeedsConfig()})),
            Row("CRF", made),
            Row("PAMR", replace_settings(made, {"refine": PAMRConfig()})),
            Row("IRN", scales.refine_by(made, "irn")),
            Row("PSA", scales.refine_by(made, "psa"), note=LABELS_NOTE),
        ),
    )


def build_masks(scale: Scale, profile: Profile) -> Recipe:
    """The recipe up to its pseudo masks."""
    return replace_settings(recipe(scale, profile), {"segment": None})


STUDIES: dict[str, StudyFunction] = {"baseline": baseline, "thresholds": thresholds, "refiners": refiners}
