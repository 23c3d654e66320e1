# SPDX-License-Identifier: Apache-2.0
"""L2G: a global network learns the maps that a local one makes of patches (Jiang et al. 2022, CVPR).

Published: pseudo labels 71.9 mIoU on VOC train (Table 4), DeepLab-v2 ResNet-101 72.1 on val (Table 6).
Run: ``wsss run l2g`` (toy), ``--profile released`` for what its scripts do, ``--set method.saliency=false`` without
saliency. What the paper leaves open (batch, optimiser, flips, jitter) is the released script's in both profiles.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from wsss_ray.data.augment import AugmentConfig, JitterConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import Recipe, Scale, replace_settings
from wsss_ray.refine.seeds import ThresholdSeedsConfig

from . import _scales as scales
from . import eps
from ._numbers_l2g import FIGURE, PUBLISHED
from ._rows import keep_test, keep_val, make_rows
from ._steps import RESNET38, Head, Trunk, build_deeplab, build_protocol


def published(profile: Profile) -> Recipe:
    """ResNet-38, four random patches of 320, 10 epochs, seeds at a constant without a CRF (Sec. 4.1).

    Released (scripts/train_l2g_sal_voc.sh): four corners and two random patches, and a crop that confuses rows and
    columns. Its unshuffled list, and boxes and jitter that stay the same over all epochs by a property of torch 1.7's
    workers, are not repeated.
    """
    released = profile == "released"
    return Recipe(
        name="l2g",
        scale="paper",
        method=L2GConfig.model_validate({"profile": profile, "patch_size": 320}),
        net=RESNET38,
        train=TrainConfig(
            epochs=10,
            batch_size=3,
            drop_last=False,
            optimizer=OptimizerConfig(lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedule=ScheduleConfig(name="step", milestones=(5,), gamma=0.1),
            augment=AugmentConfig(
                resize="short_side",
                range=(512, 512),
                crop=448,
                flip=0.0,
                crop_before_normalize=released,
                swap_axes=released,
                jitter=JitterConfig(after_crop=True),
                saliency_interpolation="nearest",
            ),
        ),
        localize=LocalizeConfig(scales=(0.5, 1.0, 1.5, 2.0), stride=1),
        refine=ThresholdSeedsConfig(threshold=0.25 if released else 0.2),
        segment=build_deeplab(),
        predict=build_protocol("deeplab_v2_wrapped" if released else "deeplab_v2"),
    )


def published_plain(profile: Profile) -> Recipe:
    """L2G without saliency; the paper states no setting of its own for it (Sec. 4.2, Tables 1 to 3).

    Released (scripts/train_l2g.py, which cannot run): 15 epochs at one rate, images five at a time, short side 448 to
    672, four corners, the winner of the C + 1 channels as target.
    """
    settings = {"name": "l2g-plain", "method": L2GConfig(profile=profile, saliency=False, patch_size=320)}
    if profile == "paper":
        return replace_settings(published(profile), settings)
    return replace_settings(
        published(profile),
        {
            **settings,
            # The script divides the classification loss by the five images it adds up, and not the transfer loss.
            "method.kd_weight": 50.0,
            "train.epochs": 15,
            "train.batch_size": 5,
            "train.accumulate": 5,
            "train.schedule": ScheduleConfig(name="constant"),
            "train.augment.range": (448, 672),
        },
    )


def published_coco(profile: Profile) -> Recipe:
    """COCO: 15 epochs (Sec. 4.1), batch 12.

    Released (scripts/train_l2g_sal_coco.sh): images squashed to 448, lr 0.1 poly 0.7 without decay, four random
    patches.
    """
    segment = build_deeplab("v2", "resnet101", "coco")
    shared = {"name": "l2g-coco", "train.epochs": 15, "train.batch_size": 12, "segment": segment}
    if profile == "paper":
        return replace_settings(published(profile), shared)
    return replace_settings(
        published(profile),
        {
            **shared,
            "method.num_views": 4,
            "method.sampling": "random",
            "method.threshold": 0.1,
            "method.background_target": "soft",
            "method.kd_weight": 30.0,
            "net.normalize": "l2g_coco",
            "train.optimizer": OptimizerConfig(lr=0.1, momentum=5e-4, weight_decay=0.0),
            "train.schedule": ScheduleConfig(name="poly", power=0.7),
            "train.augment": AugmentConfig(
                resize="squash",
                crop=448,
                interpolation="bilinear",
                flip=0.0,
                jitter=JitterConfig(after_crop=True),
            ),
        },
    )


CROP: dict[Scale, int] = {"toy": 112, "small": 192, "paper": 448}
CELL: dict[Scale, int] = {"toy": 8, "small": 16, "paper": 8}
"""Output stride of the scale's backbone; patches are whole cells."""


def fit_patch(scale: Scale, side: int) -> int:
    """A patch of the paper's 448 crop on the crop of a scale, in whole cells."""
    return CELL[scale] * round(side * CROP[scale] / CROP["paper"] / CELL[scale])


SMALL: scales.Overrides = {
    "method.patch_size": fit_patch("small", 320),
    "method.uniform_stride": fit_patch("small", 64),
    # The transfer trains the softmax: scores are free up to a constant, so that their ReLU (Eq. 2) says little.
    "method.map_form": "softmax",
    "method.kd_weight": 10.0,
}
"""SGD needs the released weight of the transfer."""
TOY: scales.Overrides = {
    "method.patch_size": fit_patch("toy", 320),
    "method.uniform_stride": fit_patch("toy", 64),
    "method.map_form": "softmax",
    "method.new_layer_multiplier": 1.0,
    "train.optimizer.lr": 5e-4,
}
"""Under AdamW a higher rate drives the global head to background everywhere, at times for good."""
SMALL_COCO: dict[Profile, scales.Overrides] = {"paper": SMALL, "released": {**SMALL, "method.kd_weight": 30.0}}


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """L2G at a scale."""
    return scales.shrink(published(profile), scale, SMALL, TOY)


def recipe_plain(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """L2G without saliency at a scale."""
    return scales.shrink(published_plain(profile), scale, SMALL, TOY)


def recipe_coco(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """L2G for COCO at a scale."""
    return scales.shrink(published_coco(profile), scale, SMALL_COCO[profile], TOY)


TRAIN_AUG: dict[Scale, str | None] = {"paper": "train_aug", "small": None, "toy": None}
"""The paper scores its ablations on the augmented training list; small data may have no such list."""
LOCAL: dict[Profile, dict[str, Any]] = {
    "paper": {"saliency": False, "local_only": True, "map_form": "attention"},
    "released": {"saliency": False, "local_only": True, "map_form": "logits"},
}
"""The local network alone, without saliency, is a plain classifier: its maps are the published ones at every scale."""
TEST = "test server: 'wsss run --set data.val_split=test' on data with that split, then 'wsss export --voc-server'"


def build_variant(scale: Scale, profile: Profile, **settings: Any) -> Recipe:
    """L2G with other settings of the method."""
    return scales.set_method(recipe(scale, profile), **settings)


def build_ablation(scale: Scale, profile: Profile, **settings: Any) -> Recipe:
    """The same, scored on the list of the ablations; ``saliency`` False is the recipe without it."""
    made = recipe(scale, profile) if settings.get("saliency", True) else recipe_plain(scale, profile)
    return replace_settings(scales.set_method(made, **settings), {"data.score_split": TRAIN_AUG[scale]})


def table1(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Baseline, sliding window, local network, L2G, none with saliency."""
    plain = replace_settings(eps.recipe_baseline(scale, profile), {"data.score_split": TRAIN_AUG[scale]})
    return Study(
        name="l2g.table1",
        title="L2G: the effect of local views, without saliency",
        source="L2G Table 1, PASCAL VOC 2012, pseudo labels on train_aug, segmentation on val",
        metric="seeds",
        variant="fixed",
        rows=make_rows(
            PUBLISHED["table1"],
            {
                "CAM": plain,
                "CAM + sliding window": scales.set_method(
                    plain, window=fit_patch(scale, 320), window_stride=fit_patch(scale, 64)
                ),
                "Local": build_ablation(scale, profile, **LOCAL[profile]),
                "L2G": build_ablation(scale, profile, saliency=False),
            },
        ),
    )


def table2(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Attention transfer and shape transfer."""
    return Study(
        name="l2g.table2",
        title="L2G: local-to-global transfer and shape",
        source="L2G Table 2, PASCAL VOC 2012, pseudo labels on train_aug, segmentation on val",
        metric="seeds",
        variant="fixed",
        rows=make_rows(
            PUBLISHED["table2"],
            {
                "Local": build_ablation(scale, profile, **LOCAL[profile]),
                "L2G": build_ablation(scale, profile, saliency=False),
                "Local + Shape": build_ablation(scale, profile, local_only=True, local_background=True),
                "L2G + Shape": build_ablation(scale, profile),
            },
        ),
    )


def sampling(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Nine random views against nine on a grid (Sec. 4.2)."""
    ways = ("random", "uniform")
    return Study(
        name="l2g.sampling",
        title="L2G: sampling of local views",
        source="L2G Sec. 4.2, PASCAL VOC 2012, pseudo labels (split not stated, train_aug as in its tables)",
        metric="seeds",
        variant="fixed",
        rows=make_rows(
            PUBLISHED["sampling"], {way: build_ablation(scale, profile, sampling=way, num_views=9) for way in ways}
        ),
    )


def components(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """A classification loss on the global network, and one backbone for both (Sec. 4.2), where L2G has one each."""
    return Study(
        name="l2g.components",
        title="L2G: classification of the global network, shared backbone",
        source="L2G Sec. 4.2, PASCAL VOC 2012, pseudo labels on train_aug, segmentation on val",
        metric="seeds",
        variant="fixed",
        # A shared backbone loses as much again by the fixed threshold as by its maps.
        also=("seeds.best",),
        rows=make_rows(
            PUBLISHED["components"],
            {
                "L2G": build_ablation(scale, profile),
                "global classification loss": build_ablation(scale, profile, global_classification=True),
                "shared backbone": build_ablation(scale, profile, shared=True),
            },
        ),
    )


def figure5_patch(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Side of the local views."""
    return Study(
        name="l2g.figure5_patch",
        title="L2G: patch size",
        source="L2G Figure 5, PASCAL VOC 2012, pseudo labels; 320 is best, larger patches are much worse (Sec. 4.2)",
        metric="seeds",
        variant="fixed",
        axis="patch size at a crop of 448",
        rows=tuple(
            Row(str(side), build_ablation(scale, profile, patch_size=fit_patch(scale, side)), note=FIGURE)
            for side in (240, 280, 320, 360, 400)
        ),
    )


def figure5_views(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Number of local views, drawn at random in both profiles: released corners need four."""
    return Study(
        name="l2g.figure5_views",
        title="L2G: number of patches",
        source="L2G Figure 5, PASCAL VOC 2012, pseudo labels; flat above 4 (Sec. 4.2)",
        metric="seeds",
        variant="fixed",
        axis="N",
        rows=tuple(
            Row(str(num), build_ablation(scale, profile, sampling="random", num_views=num), note=FIGURE)
            for num in (1, 2, 4, 8, 16)
        ),
    )


def table3(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Pseudo labels without saliency."""
    return Study(
        name="l2g.table3",
        title="L2G: pseudo labels without saliency",
        source="L2G Table 3, PASCAL VOC 2012 train",
        metric="seeds",
        variant="fixed",
        rows=make_rows(
            PUBLISHED["table3"],
            {"CAM": eps.recipe_baseline(scale, profile), "L2G": recipe_plain(scale, profile)},
        ),
    )


def table4(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Pseudo labels with saliency."""
    return Study(
        name="l2g.table4",
        title="L2G: pseudo labels with saliency",
        source="L2G Table 4, PASCAL VOC 2012 train",
        metric="seeds",
        variant="fixed",
        rows=make_rows(PUBLISHED["table4"], {"EPS": eps.recipe(scale, profile), "L2G": recipe(scale, profile)}),
    )


TRUNKS: dict[str, tuple[Trunk, str]] = {"table5": ("vgg16", "VGG-16"), "table6": ("resnet101", "ResNet")}
HEADS: tuple[Head, ...] = ("v1", "v2")


def build_segmentation(key: str, scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Table 5 or 6 on val: EPS and L2G under both DeepLabs; the released CRF is fed a wrapped image."""
    trunk, name = TRUNKS[key]
    made = {
        f"{title} {head.upper()}": scales.segment_by(localizer, head, trunk, wrapped=profile == "released")
        for title, localizer in (("EPS", eps.recipe(scale, profile)), ("L2G", recipe(scale, profile)))
        for head in HEADS
    }
    return Study(
        name=f"l2g.{key}",
        title=f"L2G: segmentation with {name}",
        source=f"L2G {key.replace('table', 'Table ')}, PASCAL VOC 2012 val, with CRF",
        metric="segmentation",
        variant="crf",
        rows=make_rows(keep_val(PUBLISHED[key]), made),
    )


def build_test(key: str, scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Table 5 or 6 on test: quoted, since the masks are not public."""
    ours = [f"{title} {head.upper()}" for title in ("EPS", "L2G") for head in HEADS]
    return Study(
        name=f"l2g.{key}_test",
        title=f"L2G: segmentation with {TRUNKS[key][1]}, test",
        source=f"L2G {key.replace('table', 'Table ')}, PASCAL VOC 2012 test, with CRF",
        metric="segmentation",
        variant="crf",
        rows=make_rows(keep_test(PUBLISHED[key]), note=dict.fromkeys(ours, TEST)),
    )


def table7(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """COCO: pseudo labels (Sec. 4.3) and segmentation."""
    l2g = recipe_coco(scale, profile)
    vgg = scales.shrink(
        replace_settings(published_coco(profile), {"segment": build_deeplab("v2", "vgg16", "coco")}),
        scale,
        SMALL_COCO[profile],
        TOY,
    )
    made = {"EPS, VGG-16": eps.recipe_coco(scale, profile), "L2G, VGG-16": vgg, "L2G, ResNet-101": l2g}
    note = {}
    if vgg == l2g:
        del made["L2G, ResNet-101"]
        note = {"L2G, ResNet-101": "same run as the row above at this scale: one small trunk stands for both"}
    return Study(
        name="l2g.table7",
        title="L2G: segmentation on COCO",
        source="L2G Table 7, Sec. 4.3, MS COCO 2014, seeds on train, segmentation on val; needs COCO shards (--data)",
        metric="segmentation",
        variant="crf",
        rows=make_rows(PUBLISHED["table7"], made, note),
    )


STUDIES: dict[str, StudyFunction] = {
    "table1": table1,
    "table2": table2,
    "sampling": sampling,
    "components": components,
    "figure5_patch": figure5_patch,
    "figure5_views": figure5_views,
    "table3": table3,
    "table4": table4,
    "table5": partial(build_segmentation, "table5"),
    "table5_test": partial(build_test, "table5"),
    "table6": partial(build_segmentation, "table6"),
    "table6_test": partial(build_test, "table6"),
    "table7": table7,
}
