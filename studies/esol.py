# SPDX-License-Identifier: Apache-2.0
"""ESOL: expansion and shrinkage of class maps by learned offsets (Li et al. 2022, NeurIPS).

Published: seeds 53.6, with IRN 68.7 mIoU on VOC train; 69.9 on val. No code was released: paper is the only profile.
Run: ``wsss run esol`` (toy), ``wsss run esol --scale small --data URI`` (EfficientNet-Lite0, 2 cores).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.augment import AugmentConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.esol.network import ESOLConfig, Phase
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import Localization, NetConfig, Recipe, Scale, replace_settings, take_localizer
from wsss_ray.refine.crf import PRESETS, CRFRefinerConfig
from wsss_ray.refine.irn import GRID_NOTE, IRNConfig

from . import _scales as scales
from ._numbers_esol import PUBLISHED
from ._rows import make_rows
from ._steps import IRNET, build_deeplab, build_protocol

PROFILES: tuple[Profile, ...] = ("paper",)
"""Sides there are."""


def published(profile: Profile) -> Recipe:
    """Three phases on ResNet-50, each the base of the next, then IRN and DeepLab-v2.

    IRN's 5 epochs for the classifier, then 10 at 0.01 and 10 at 0.1, which are the 6,610 steps of Sec. 4.1. UserError
    for the released profile, which does not exist.
    """
    refuse_released(profile)
    classifier = Localization(
        method=ESOLConfig(phase="classifier"), net=RESNET50, train=build_training(epochs=5, lr=0.1), localize=MAPS
    )
    expansion = Localization(
        method=ESOLConfig(phase="expansion", alpha=0.01, beta=0.15),  # Sec. 4.3.1; Sec. 4.1 has alpha 0.001
        net=RESNET50,
        train=build_training(epochs=10, lr=0.01),
        localize=MAPS,
        base=classifier,
    )
    return Recipe(
        name="esol",
        scale="paper",
        method=ESOLConfig(phase="shrinkage", beta=0.15, gamma=1.0, mu=1.0),
        net=RESNET50,
        train=build_training(epochs=10, lr=0.1),
        localize=MAPS,
        base=expansion,
        refine=IRNConfig(canvas=512),
        affinity=IRNET,
        segment=build_deeplab(),
        predict=build_protocol(),
    )


def published_coco(profile: Profile) -> Recipe:
    """COCO: rates 0.001 and 0.02 (Sec. 4.1); images may be larger than IRN's canvas of 512."""
    rates = {"base.train.optimizer.lr": 0.001, "train.optimizer.lr": 0.02}
    return replace_settings(published(profile), {"name": "esol-coco", **rates, **COCO})


def published_baseline(profile: Profile) -> Recipe:
    """IRN's class activation maps, refined by IRN."""
    maps = MAPS.model_copy(update={"fusion": ESOLConfig().fusion()})
    own = {"method": CAMConfig(style="irn"), "train": build_training(epochs=5, lr=0.1), "localize": maps, "base": None}
    return replace_settings(published(profile), {"name": "irn", **own})


def published_baseline_coco(profile: Profile) -> Recipe:
    """The same on COCO."""
    return replace_settings(published_baseline(profile), {"name": "irn-coco", **COCO})


RESNET50 = NetConfig(
    backbone="resnet50",
    output_stride=16,
    weights="resnet50_imagenet_19c8e357",
    options={"batch_norm": "affine", "freeze_through": "layer2"},
)
"""As IRN trains it (Sec. 4.1): stride 16, statistics of BatchNorm fixed, nothing below layer3 learns."""
MAPS = LocalizeConfig(scales=(0.5, 1.0, 1.5, 2.0), stride=4)
"""Sec. 3.4, on IRN's grid. Its walk, labels and seeds read it here; released IRN has labels and seeds of full size."""
COCO: scales.Overrides = {"refine.canvas": 640, "segment": build_deeplab("v2", "resnet101", "coco")}


def build_training(epochs: int, lr: float) -> TrainConfig:
    """IRN's loader (long side 320-640, crop 512, batch 16) and optimiser, which has no momentum to speak of."""
    return TrainConfig(
        epochs=epochs,
        batch_size=16,
        optimizer=OptimizerConfig(lr=lr, momentum=1e-4, weight_decay=1e-4),
        schedule=ScheduleConfig(name="poly", power=0.9),
        augment=AugmentConfig(resize="long_side", range=(320, 640), crop=512),
    )


def refuse_released(profile: Profile) -> None:
    """Refuse what nobody released."""
    if profile == "released":
        raise UserError("esol has no released code: use --profile paper")


def train_slowly(lr: float) -> scales.Overrides:
    """Offsets move by plain SGD, where only weight times rate counts: too much and the samples leave the map."""
    optimizer = OptimizerConfig(name="sgd", lr=lr, momentum=0.0, weight_decay=0.0)
    return {"train.epochs": 5, "train.optimizer": optimizer}


LAYERS: scales.Overrides = {
    "localize.stride": 4,
    # From random weights the two extra convolutions learn next to nothing, nor at ten times the rate.
    "method.init": "identity",
    "method.extra_lr_multiplier": 1.0,
}
CEILING: scales.Overrides = {"method.clip_detach": False}
"""A constant ceiling lowers recall where offsets are short."""
AREA: scales.Overrides = {
    # Classifiers here are unsure. A present class's score s has the gradient sigmoid'(s) of its area, less
    # gamma (1 - sigmoid(z)) of its logit z, over the same count: gamma 1 lifts three of four scores outside the object.
    "method.gamma": 0.1,
    # The sigmoid's area falls where all scores of an image do, which maps divided by their maximum do not show.
    "method.area_map": "normalized",
}
SMALL: dict[Phase, scales.Overrides] = {
    "classifier": {**LAYERS, "method.channels": 128},
    "expansion": {**LAYERS, "method.channels": 128, **CEILING, **train_slowly(0.03)},
    # At ten times this rate a quarter of the samples leave the map in the fourth epoch (VOC8, seed 0).
    "shrinkage": {**LAYERS, "method.channels": 128, **CEILING, **AREA, **train_slowly(0.003)},
}
TOY: dict[Phase, scales.Overrides] = {
    "classifier": {**LAYERS, "method.channels": 64},
    # As far as the paper goes: weight times rate times steps is 0.75, there 0.01 x 0.01 x 6,610.
    "expansion": {**LAYERS, "method.channels": 64, **CEILING, **train_slowly(0.3)},
    "shrinkage": {**LAYERS, "method.channels": 64, **CEILING, **AREA, **train_slowly(0.03)},
}
BASELINE: scales.Overrides = {"localize.stride": 4}


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """ESOL at a scale."""
    return shrink(published(profile), scale)


def recipe_baseline(scale: Scale, profile: Profile) -> Recipe:
    """IRN at a scale."""
    return scales.shrink(published_baseline(profile), scale, BASELINE, BASELINE)


def shrink(made: Recipe, scale: Scale) -> Recipe:
    """Each phase by its own line of the tables."""

    def line(table: Mapping[Phase, scales.Overrides]) -> scales.Overrides:
        return scales.along_bases(made, lambda part: table[read_phase(part)])

    return scales.shrink(made, scale, line(SMALL), line(TOY))


def read_phase(part: Localization) -> Phase:
    """The phase that a localizer of ESOL is."""
    if not isinstance(part.method, ESOLConfig):
        raise TypeError(f"{part.method.name} is no phase of ESOL")
    return part.method.phase


def find_phase(made: Localization, phase: Phase) -> Localization:
    """The localizer of a phase: the given one, or one it starts from."""
    return {read_phase(part): take_localizer(part) for part in made.chain}[phase]


def keep_seeds(made: Recipe, overrides: scales.Overrides | None = None) -> Recipe:
    """Nothing but seeds, at full size at paper scale, as IRN scores them."""
    stride = {"localize.stride": scales.SEED_STRIDE[made.scale]}
    return replace_settings(made, {"refine": None, "affinity": None, "segment": None, **stride, **(overrides or {})})


def build_phase(scale: Scale, phase: Phase, **settings: Any) -> Recipe:
    """The seeds of ESOL up to a phase, ``settings`` changed in that phase."""
    part = find_phase(recipe(scale), phase)
    made = replace_settings(recipe(scale), {key: getattr(part, key) for key in Localization.model_fields})
    return scales.set_method(keep_seeds(made), **settings)


AXIS_NOTE = "values are only in the figure"
KEPT = "needs COCO shards prepared with --set empty=kept (82,783 + 40,504 images, 51,730 steps)"


def table1(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds and pseudo masks on VOC."""
    esol = replace_settings(recipe(scale, profile), {"segment": None})
    irn = replace_settings(recipe_baseline(scale, profile), {"segment": None})
    crf = {"refine": CRFRefinerConfig(crf=PRESETS["psa"], background="power", alpha=4.0), "affinity": None}
    return Study(
        name="esol.table1",
        title="ESOL: seeds and pseudo masks on VOC",
        source=f"ESOL Table 1, PASCAL VOC 2012 train; seeds at their best threshold; here {GRID_NOTE}",
        metric="masks",
        rows=make_rows(
            PUBLISHED["table1"],
            {
                "IRN, CRF": replace_settings(irn, crf),
                "IRN, IRN": irn,
                "ESOL, CRF": replace_settings(esol, crf),
                "ESOL, PSA": scales.refine_by(esol, "psa"),
                "ESOL, IRN": esol,
            },
        ),
    )


def build_coco(scale: Scale, profile: Profile) -> tuple[Recipe, Recipe]:
    """IRN and ESOL on COCO."""
    irn = scales.shrink(published_baseline_coco(profile), scale, BASELINE, BASELINE)
    return irn, shrink(published_coco(profile), scale)


def table1_coco(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds and pseudo masks on COCO."""
    irn, esol = (replace_settings(made, {"segment": None}) for made in build_coco(scale, profile))
    return Study(
        name="esol.table1_coco",
        title="ESOL: seeds and pseudo masks on COCO",
        source=f"ESOL Table 1, MS COCO 2014 train; {KEPT}; IRN's thresholds there are not stated; here {GRID_NOTE}",
        metric="masks",
        rows=make_rows(PUBLISHED["table1_coco"], {"IRN": irn, "ESOL": esol}),
    )


def build_segmentation(key: str, where: str, source: str, runs: Mapping[str, Recipe]) -> Study:
    """A table of segmentation results."""
    rows = make_rows(PUBLISHED[key], runs)
    return Study(f"esol.{key}", f"ESOL: segmentation on {where}", source, "segmentation", rows)


def table2(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Segmentation on COCO."""
    irn, esol = build_coco(scale, profile)
    runs = {"IRN, ResNet-101": irn, "ESOL, ResNet-101": esol}
    return build_segmentation("table2", "COCO", f"ESOL Table 2, MS COCO 2014 val; {KEPT}", runs)


def table3(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Segmentation on VOC."""
    source = "ESOL Table 3, PASCAL VOC 2012 val, DeepLab-v2 on ResNet-101"
    return build_segmentation("table3", "VOC", source, {"ESOL": recipe(scale, profile)})


def table4(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Segmentation on VOC with saliency."""
    refuse_released(profile)
    source = "ESOL Table 4, PASCAL VOC 2012 val, saliency maps of Li et al. or Liu et al."
    return build_segmentation("table4", "VOC with saliency", source, {})


def table5(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Time to make pseudo labels; ours are the seconds of the steps in the run's page."""
    return Study(
        name="esol.table5",
        title="ESOL: time to make pseudo labels",
        source="ESOL Table 5, PASCAL VOC 2012, in hours; the record of a run has the seconds of each step",
        metric="masks",
        rows=make_rows(PUBLISHED["table5"], {"ESOL": replace_settings(recipe(scale, profile), {"segment": None})}),
    )


def table6(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """What each component is worth: DT are the offsets of either phase, FL is the clipping of features."""
    esol = recipe(scale, profile)
    no_expansion = {"base": find_phase(esol, "classifier"), "method.expansion_sampler": False}
    no_shrinkage = {
        "method.shrinkage_sampler": False,
        "method.trains": ("conv2",),
        # Ten times the rate suits layers that are new; at this point they are not.
        "method.extra_lr_multiplier": 1.0,
    }
    rows: dict[str, scales.Overrides] = {
        "w/o (DT_e + FL)": {**no_expansion, "method.beta": 1.0},
        "w/o DT_e": no_expansion,
        "w/o FL": {"base.method.beta": 1.0, "method.beta": 1.0},
        "w/o (DT_s + L_area)": {**no_shrinkage, "method.mu": 0.0},
        "w/o DT_s": no_shrinkage,
        "w/o L_area": {"method.mu": 0.0},
        "Expansion + Shrinkage": {},
    }
    made = {name: keep_seeds(esol, overrides) for name, overrides in rows.items()}
    return Study(
        name="esol.table6",
        title="ESOL: contribution of each component",
        source="ESOL Table 6, PASCAL VOC 2012 train, best threshold; the first three rows are named after their ticks",
        metric="seeds",
        variant="best",
        rows=make_rows(PUBLISHED["table6"], {"Baseline": keep_seeds(recipe_baseline(scale, profile)), **made}),
    )


def build_figure(part: str, axis: str, text: str, made: Recipe, points: Mapping[str, scales.Overrides]) -> Study:
    """A curve of Figure 6: some settings, the others at their defaults."""
    return Study(
        name=f"esol.figure6{part}",
        title=f"ESOL: sensitivity to {axis}",
        source=f"ESOL Figure 6 {text}, PASCAL VOC 2012 train; {AXIS_NOTE}",
        metric="seeds",
        variant="best",
        rows=tuple(Row(name, keep_seeds(made, overrides)) for name, overrides in points.items()),
        axis=axis,
    )


def vary(values: Sequence[float], *keys: str) -> dict[str, scales.Overrides]:
    """One point for each value of some keys."""
    return {f"{value:g}": dict.fromkeys(keys, value) for value in values}


def figure6a(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Weight of the inverse loss."""
    text = "(a): range 0.001 to 0.1, best 0.01"
    made = recipe(scale, profile)
    here, there = (find_phase(each, "expansion").train.optimizer.lr for each in (made, published(profile)))
    if here != there:
        text += f", here at a learning rate of {here:g}, published {there:g}"
    points = vary((0.001, 0.003, 0.01, 0.03, 0.1), "base.method.alpha")
    return build_figure("a", "alpha", text, made, points)


def figure6b(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Clipping threshold."""
    points = vary((0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0), "base.method.beta", "method.beta")
    return build_figure("b", "beta", "(b): best 0.15, 1 clips nothing", recipe(scale, profile), points)


def figure6c(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """The two losses of the shrinkage."""
    points = {"classification": {"method.mu": 0.0}, "area": {"method.gamma": 0.0}, "classification + area": {}}
    return build_figure("c", "losses", "(c)", recipe(scale, profile), points)


def figure6d_gamma(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Weight of the classification loss."""
    points = vary((0.1, 0.5, 1.0, 5.0), "method.gamma")
    return build_figure("d_gamma", "gamma", "(d): stable from 0.1 to 5", recipe(scale, profile), points)


def figure6d_mu(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Weight of the area loss."""
    points = vary((0.01, 0.1, 0.5, 1.0, 1.5), "method.mu")
    return build_figure("d_mu", "mu", "(d): stable from 0.01 to 1.5", recipe(scale, profile), points)


CLASSIFIER_CLIPPED: dict[str, Any] = {"clip_at_inference": "always"}
UNCLIPPED: dict[str, Any] = {"clip_at_inference": False}


def clipping(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """What the clipping of features does to maps by itself, and what offsets do without it."""
    refuse_released(profile)
    clipped: dict[str, tuple[Phase, dict[str, Any]]] = {
        "Classifier": ("classifier", {}),
        "Classifier + clip": ("classifier", CLASSIFIER_CLIPPED),
        "Expansion, maps unclipped": ("expansion", UNCLIPPED),
        "Expansion": ("expansion", {}),
        "Shrinkage, maps unclipped": ("shrinkage", UNCLIPPED),
        "Shrinkage": ("shrinkage", {}),
    }
    rows = {name: build_phase(scale, phase, **settings) for name, (phase, settings) in clipped.items()}
    return Study(
        name="esol.clipping",
        title="ESOL: maps with and without clipped features, by phase",
        source="no published counterpart; the paper does not say whether maps are read off clipped features",
        metric="seeds",
        variant="best",
        rows=tuple(Row(name, made) for name, made in rows.items()),
        also=("offset", "precision", "recall", "seeds.fixed", "precision_foreground.fixed", "recall_foreground.fixed"),
    )


STUDIES: dict[str, StudyFunction] = {
    "table1": table1,
    "table1_coco": table1_coco,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "clipping": clipping,
    "figure6a": figure6a,
    "figure6b": figure6b,
    "figure6c": figure6c,
    "figure6d_gamma": figure6d_gamma,
    "figure6d_mu": figure6d_mu,
}
