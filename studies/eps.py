"""EPS: a C + 1 classifier whose maps must add up to the saliency map (Lee et al. 2021, CVPR).

The paper's text was not at hand: its own tables are missing here, and both profiles are the released scripts
(script/voc12_eps.sh, script/coco_eps.sh). Published: seeds 69.22 mIoU on VOC train (its README).
Run: ``wsss run eps`` (toy), ``wsss run eps --scale small --data URI`` (images need saliency: ``wsss data saliency``).
"""

from __future__ import annotations

from wsss_ray.studies import _scales as scales
from wsss_ray.studies import cam

from wsss_ray.data.augment import AugmentConfig, JitterConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Profile, Row, Study, StudyFunction
from wsss_ray.methods.eps import PRESETS as EPS_PRESETS
from wsss_ray.methods.eps import EPSConfig
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig
from wsss_ray.recipe import NetConfig, Recipe, Scale, replaced
from wsss_ray.refine.crf import PRESETS, CRFRefinerConfig
from wsss_ray.refine.seeds import ThresholdSeedsConfig

VOC_STEPS = 20_000
COCO_STEPS = 256_500
COCO_LOGGED_HORIZON = 76_950
"""The learning rates in the released COCO logs reach zero after these steps, 15 epochs; the script says 256,500."""


def train(steps: int = VOC_STEPS) -> TrainConfig:
    """Long side 256-512, crop 448, batch 8; momentum is that of the released PolyOptimizer, none to speak of."""
    return TrainConfig(
        epochs=16,
        max_steps=steps,
        batch_size=8,
        optimizer=OptimizerConfig(lr=0.01, momentum=5e-4, weight_decay=5e-4),
        schedule=ScheduleConfig(name="poly", power=0.9, horizon=steps),
        augment=AugmentConfig(resize="long_side", range=(256, 512), crop=448, jitter=JitterConfig()),
    )


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """ResNet-38, tau 0.4, lambda 0.5, softmax maps of four scales and flips, seeds at 0.2 without a CRF."""
    return Recipe(
        name="eps",
        scale=scale,
        method=EPSConfig.model_validate({"profile": profile}),
        net=scales.net(scale, NetConfig(backbone="resnet38", weights="resnet38_imagenet")),
        train=scales.train(scale, train()),
        localize=scales.localize(scale, LocalizeConfig(stride=1)),
        refine=ThresholdSeedsConfig(threshold=0.2),
        segment=scales.segment(scale),
        predict=scales.predict(scale),
    )


def coco(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """COCO's lambda 0.9; at paper scale long side 256-448, crop 321, batch 16 and the schedule its logs show."""
    built = replaced(
        recipe(scale, profile), {"method": EPSConfig.model_validate({"profile": profile, **EPS_PRESETS["coco"]})}
    )
    built = replaced(built, {"name": "eps-coco", "segment": scales.deeplab(scale, "v2", "vgg16", coco=True)})
    if scale != "paper":
        return built
    return replaced(
        built,
        {
            "train.epochs": 50,
            "train.max_steps": COCO_STEPS,
            "train.batch_size": 16,
            "train.schedule.horizon": COCO_LOGGED_HORIZON,
            "train.augment.range": (256, 448),
            "train.augment.crop": 321,
        },
    )


def baseline(scale: Scale, profile: Profile) -> Recipe:
    """The CAM of EPS's README: its own loader and schedule, seeds at 0.2 (script/voc12_cls.sh)."""
    plain = replaced(cam.recipe(scale, profile), {"refine": ThresholdSeedsConfig(threshold=0.2)})
    return replaced(plain, {"train": train(), "localize.stride": 1}) if scale == "paper" else plain


def readme(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds on VOC."""
    eps = recipe(scale, profile)
    crf = CRFRefinerConfig(crf=PRESETS["eps_paper"], unary="scores", background="constant", threshold=0.2)
    return Study(
        name="eps.readme",
        title="EPS: seeds on VOC",
        source="README of the released code, PASCAL VOC 2012 train, threshold 0.2",
        metric="seeds",
        variant="fixed",
        rows=(
            Row("CAM", baseline(scale, profile), {"seeds": 47.05}, "20k iterations, batch 8"),
            Row("EPS", eps, {"seeds": 69.22}, "a later checkpoint than the paper's, says its author"),
            Row(
                "EPS + CRF",
                replaced(eps, {"refine": crf}),
                {"seeds": 69.5, "masks": 71.4},
                "numbers of SMAF Table 2; the README gives the CRF's widths, its unary is not stated",
            ),
            Row("EPS released, third party", None, {"seeds": 69.3}, "issue 10 of the released code, split inferred"),
        ),
    )


def readme_coco(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Seeds on COCO; the rows differ from VOC's in lambda, and at paper scale in crop and schedule."""
    plain = baseline(scale, profile)
    schedule = {"train": coco("paper", profile).train, "segment": scales.deeplab("paper", "v2", "vgg16", coco=True)}
    return Study(
        name="eps.readme_coco",
        title="EPS: seeds on COCO",
        source="README of the released code, MS COCO 2014 train, threshold 0.2; needs --data with COCO shards",
        metric="seeds",
        variant="fixed",
        rows=(
            Row("CAM", replaced(plain, schedule) if scale == "paper" else plain, {"seeds": 31.23}),
            Row(
                "EPS",
                coco(scale, profile),
                {"seeds": 37.15},
                "the logs fit a poly schedule of 76,950 iterations, the script asks for 256,500",
            ),
        ),
    )


def under(made: Recipe, head: scales.Head, trunk: scales.Trunk, wrapped: bool = False) -> Recipe:
    """A recipe with one of the DeepLabs of the L2G release behind it, and that one's CRF."""
    crf = scales.DEEPLAB_CRF[head, trunk] + ("_wrapped" if wrapped else "")
    return replaced(
        made, {"segment": scales.deeplab(made.scale, head, trunk), "predict.crf": scales.test_crf(made.scale, crf)}
    )


def segmentation(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """EPS under DeepLab, as the L2G paper quotes it; VGG-16 is in ``l2g.table5``."""
    eps = recipe(scale, profile)
    return Study(
        name="eps.segmentation",
        title="EPS: segmentation on VOC val",
        source="L2G Table 6, PASCAL VOC 2012 val, DeepLab on ResNet-101, with CRF",
        metric="segmentation",
        variant="crf",
        rows=(
            Row("DeepLab-v1", under(eps, "v1", "resnet101"), {"segmentation": 71.0}),
            Row("DeepLab-v2", under(eps, "v2", "resnet101"), {"segmentation": 70.9}),
            Row("DeepLab-v1, test", None, {"segmentation": 71.8}, "test server"),
            Row("DeepLab-v2, test", None, {"segmentation": 70.8}, "test server"),
            Row("DeepLab-v2, third party, no CRF", None, {"segmentation": 68.2}, "issue 10 of the released code"),
            Row("DeepLab-v2, third party, CRF", None, {"segmentation": 70.5}, "issue 10 of the released code"),
        ),
    )


STUDIES: dict[str, StudyFunction] = {
    "readme": readme,
    "readme_coco": readme_coco,
    "segmentation": segmentation,
}
