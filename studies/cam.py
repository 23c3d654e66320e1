"""CAM: multi-label classifier, class activation maps, dense CRF, DeepLab: the baseline of everything else.

Published (ResNet-38, VOC): seeds 47.05 mIoU on train (EPS README, 20k iterations, threshold 0.2), 47.7 (PSA README).
Run: ``wsss run cam`` (toy), ``wsss run cam --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from typing import Literal

from wsss_ray.studies import _scales as scales

from wsss_ray.data.augment import AugmentConfig, JitterConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Row, Study, StudyFunction
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import NetConfig, Recipe, Scale, replaced
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import PRESETS, CRFRefinerConfig
from wsss_ray.refine.pamr import PAMRConfig
from wsss_ray.refine.psa import LABELS_NOTE
from wsss_ray.refine.seeds import ThresholdSeedsConfig


def refiner(scale: Scale) -> CRFRefinerConfig:
    """A CRF on scores (PSA), or on the seed's labels (IRN, SMAF).

    The maps of the small network on real images are low: 0.2 as a score beside them wins nearly everywhere once the
    CRF has spread it (pseudo masks of 15.4 mIoU on voc8, against 23.3 from labels and seeds of 27.1).
    """
    if scale == "small":
        return CRFRefinerConfig(crf=PRESETS["irn"], unary="labels", background="constant", threshold=0.2)
    return CRFRefinerConfig(crf=PRESETS["psa"], unary="scores", background="constant", threshold=0.2)


def recipe(scale: Scale = "toy", profile: Literal["paper", "released"] = "paper") -> Recipe:
    """PSA's classifier on ResNet-38 at paper scale: long side 256-512, crop 448, lr 0.01, batch 8 (EPS-C voc12_cls)."""
    return Recipe(
        name="cam",
        scale=scale,
        # Small networks on a short schedule under-fit with half their features dropped.
        method=CAMConfig(profile=profile, dropout=0.5 if scale == "paper" else 0.0),
        net=scales.net(scale, NetConfig(backbone="resnet38", weights="resnet38_imagenet")),
        train=scales.train(
            scale,
            TrainConfig(
                epochs=15,
                batch_size=8,
                optimizer=OptimizerConfig(lr=0.01, momentum=0.9 if profile == "paper" else 5e-4, weight_decay=5e-4),
                schedule=ScheduleConfig(name="poly", power=0.9),
                augment=AugmentConfig(resize="long_side", range=(256, 512), crop=448, jitter=JitterConfig()),
            ),
        ),
        localize=scales.localize(scale, LocalizeConfig()),
        refine=refiner(scale),
        segment=scales.segment(scale),
        predict=scales.predict(scale),
    )


def baseline(scale: Scale = "toy", profile: Literal["paper", "released"] = "paper") -> Study:
    """The seeds every later paper starts from."""
    return Study(
        name="cam.baseline",
        title="class activation maps of a plain classifier",
        source="READMEs of the EPS and PSA code; ResNet-38, VOC 2012 train (1,464 images), best threshold",
        metric="seeds",
        rows=(
            Row("CAM (EPS code)", _short(scale, profile), {"seeds": 47.05}, "published with threshold 0.2"),
            Row("CAM (PSA code)", None, {"seeds": 47.7}),
        ),
    )


def thresholds(scale: Scale = "toy", profile: Literal["paper", "released"] = "paper") -> Study:
    """Seeds against the background constant: one training, many cheap rows."""
    rows = [
        Row(f"{threshold:g}", _short(scale, profile, ThresholdSeedsConfig(threshold=threshold)))
        for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    ]
    return Study(
        name="cam.thresholds",
        title="seeds at fixed background thresholds",
        source="no paper prints these; EPS, PSA and SMAF use 0.2, L2G 0.25, IRN 0.15",
        metric="masks",
        rows=tuple(rows),
        axis="background threshold",
    )


def refiners(scale: Scale = "toy", profile: Literal["paper", "released"] = "paper") -> Study:
    """What refinement adds to the same maps: without a network, and with IRN's or PSA's."""
    kinds: tuple[scales.Walker, ...] = ("irn", "psa")
    notes = {"psa": LABELS_NOTE}
    refine = {"none": ThresholdSeedsConfig(), "CRF": recipe(scale, profile).refine, "PAMR": PAMRConfig()}
    return Study(
        name="cam.refiners",
        title="the same class maps, refined",
        source="no paper prints these rows side by side",
        metric="masks",
        rows=(
            *(Row(name, _short(scale, profile, refiner)) for name, refiner in refine.items()),
            *(Row(kind.upper(), _walked(scale, profile, kind), note=notes.get(kind, "")) for kind in kinds),
        ),
    )


def _walked(scale: Scale, profile: Literal["paper", "released"], kind: scales.Walker) -> Recipe:
    """The recipe up to pseudo masks that IRN or PSA makes, whose network is trained too."""
    changes = {"refine": scales.walker(scale, kind), "affinity": scales.affinity(scale, kind)}
    return replaced(_short(scale, profile), changes)


def _short(scale: Scale, profile: Literal["paper", "released"], refiner: RefinerConfig | None = None) -> Recipe:
    """The recipe up to its pseudo masks."""
    whole = recipe(scale, profile)
    return whole.model_copy(update={"segment": None, **({"refine": refiner} if refiner is not None else {})})


STUDIES: dict[str, StudyFunction] = {"baseline": baseline, "thresholds": thresholds, "refiners": refiners}
