"""WS-FCN: flexible context aggregation and semantically consistent fusion on SSSS (Wang et al. 2023, TNNLS).

Published: 61.57 mIoU on VOC val, 63.23 with a CRF (ResNet-38, Table IV).
Run: ``wsss run wsfcn`` (toy), ``wsss run wsfcn --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from typing import Any

from wsss_ray.studies import ssss

from wsss_ray.data.augment import AugmentConfig
from wsss_ray.engine.gate import WSFCN_GATE
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments.study import Metric, Profile, Row, Study, StudyFunction
from wsss_ray.methods.wsfcn.config import WSFCNConfig
from wsss_ray.recipe import Recipe, Scale, replaced

ONE_SCALE = "Tables I and II say one scale; their full model is Table III's row with one scale and flip"
GIVEN = "image labels used at test time; the released code then has p^3 for background, not 0.25"


def train(profile: Profile) -> TrainConfig:
    """Paper: 30 epochs, scale 0.9-1.0, crop 321, no jitter. Released: SSSS's loader, weights of epoch 18 of 31."""
    if profile == "released":
        return ssss.train(18)
    plain = AugmentConfig(resize="scale", range=(0.9, 1.0), crop=321)
    return ssss.train(30).model_copy(update={"augment": plain})


def method(scale: Scale, profile: Profile, **settings: Any) -> WSFCNConfig:
    """WS-FCN of a profile; strips of the small scales are less dilated, and new layers learn at SSSS's rates there."""
    given: dict[str, Any] = {"profile": profile, **ssss.small_settings(scale), **settings}
    if scale != "paper" and profile == "released":
        given = {"fca": {"dilations": (1, 2, 4, 6) if scale == "toy" else (1, 4, 8, 12)}, **given}
    return WSFCNConfig.model_validate(given)


def recipe(scale: Scale = "toy", profile: Profile = "paper") -> Recipe:
    """ResNet-38, lr 0.001 and 0.02 for new layers; background 0.25, before the CRF (1 - max)^5; CRF width 30."""
    answer = ssss.predict(scale, WSFCN_GATE, "wsfcn")
    return ssss.single_stage(scale, "wsfcn", method(scale, profile), train(profile), answer)


def one_scale(made: Recipe, flip: bool = True) -> Recipe:
    """Scale 1 without a CRF."""
    return replaced(made, {"predict.scales": (1.0,), "predict.flip": flip, "predict.crf": None})


def numbers(miou: float, accuracy: float, params: float | None = None) -> dict[Metric, float]:
    """Columns of Tables I to III; parameters are those that learn."""
    columns: dict[Metric, float] = {"segmentation": miou, "pixel_accuracy": accuracy}
    return columns if params is None else {**columns, "params": params}


def variant(scale: Scale, profile: Profile, **settings: Any) -> Recipe:
    """A row of Tables I and II: other context or coupling, everything else as in WS-FCN."""
    return one_scale(replaced(recipe(scale, profile), {"method": method(scale, profile, **settings)}))


def baseline(scale: Scale, profile: Profile) -> Recipe:
    """SSSS as its authors released it, which is what the paper retrained."""
    return one_scale(ssss.recipe(scale, profile))


def fca(scale: Scale, profile: Profile, spatial: bool) -> Recipe:
    """FCA in place of the atrous pyramid, with or without spatial recalibration."""
    made = variant(scale, profile, coupling="gci")
    return made if spatial else replaced(made, {"method.fca.spatial": False})


def table1(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """What FCA and SF2 add."""
    return Study(
        name="wsfcn.table1",
        title="WS-FCN: what FCA and SF2 add",
        source="WS-FCN Table I, PASCAL VOC 2012 val, one scale and flip; parameters that learn, in millions",
        metric="segmentation",
        variant="multi_scale",
        rows=(
            Row("Baseline", baseline(scale, profile), numbers(58.38, 87.58, 137.10), ONE_SCALE),
            Row("FCA without recalibration", fca(scale, profile, False), numbers(59.71, 88.41, 143.52)),
            Row("FCA", fca(scale, profile, True), numbers(60.13, 88.55, 143.52)),
            Row("SF2", variant(scale, profile, context="aspp"), numbers(59.45, 89.00, 140.92)),
            Row("WS-FCN", one_scale(recipe(scale, profile)), numbers(60.68, 89.32, 147.34)),
        ),
    )


def table2(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Other modules in the places of FCA and SF2."""
    read = "read from its parameter count: its wiring was not released"

    def context(name: str) -> Recipe:
        return variant(scale, profile, context=name, coupling="gci")

    def fusion(combine: str) -> Recipe:
        made = variant(scale, profile, context="aspp")
        return replaced(made, {"method.sf2.align": False, "method.sf2.combine": combine})

    return Study(
        name="wsfcn.table2",
        title="WS-FCN: other context and fusion modules",
        source="WS-FCN Table II, PASCAL VOC 2012 val, one scale and flip; parameters that learn, in millions",
        metric="segmentation",
        variant="multi_scale",
        rows=(
            Row("Baseline", baseline(scale, profile), numbers(58.38, 87.58, 137.10), ONE_SCALE),
            Row("Non-local", context("non_local"), numbers(53.82, 86.12, 140.97), read),
            Row("Large convolution 7x7", context("large_conv"), numbers(54.85, 86.95, 157.75), read),
            Row("PPM", context("ppm"), numbers(56.32, 87.30, 142.03), read),
            Row("FCA", fca(scale, profile, True), numbers(60.13, 88.55, 143.52)),
            Row("Summation", fusion("sum"), numbers(56.45, 87.78, 140.85), read),
            Row("Concatenation", fusion("concat"), numbers(55.20, 87.10, 142.03), read),
            Row("Multiplication", fusion("product"), numbers(57.11, 87.91, 140.85), read),
            Row("SF2", variant(scale, profile, context="aspp"), numbers(59.45, 89.00, 140.92)),
        ),
    )


def table3(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Scales and flips at test time."""
    made = recipe(scale, profile)
    no_crf = replaced(made, {"predict.crf": None, "predict.scales": ssss.SCALES})
    return Study(
        name="wsfcn.table3",
        title="WS-FCN: scales and flips at test time",
        source="WS-FCN Table III, PASCAL VOC 2012 val, no CRF",
        metric="segmentation",
        variant="multi_scale",
        rows=(
            Row("One scale", one_scale(made, flip=False), numbers(59.92, 89.14)),
            Row("Four scales", replaced(no_crf, {"predict.flip": False}), numbers(61.13, 89.41)),
            Row("One scale, flip", one_scale(made), numbers(60.68, 89.32)),
            Row("Four scales, flip", no_crf, numbers(61.57, 89.54)),
        ),
    )


TABLE4 = """Full supervision, fully supervised, WideResNet-38, 80.80, 82.50
DeepLab-v2 (test), fully supervised, ResNet-101, 79.70
DeepLab-v3+ (test), fully supervised, Xception-65, 87.80
STC, I+S+D, DeepLab, 49.80, 51.20
Saliency, I+S, VGG-16, 55.70, 56.70
DCSP, I+S, ResNet-101, 60.80, 61.90
RDC, I+S, VGG-16, 60.40, 60.80
DSRG, I+S, ResNet-101, 61.40, 63.20
FickleNet, S, ResNet-101, 64.90, 65.30
EPS, I+S, VGG-16, 66.60, 67.90
DRS, I+S, ResNet-101, 71.20, 71.40
OAA+, I+S, ResNet-101, 66.10, 67.20
SEC, I, VGG-16, 50.70, 51.70
AffinityNet, I, WideResNet-38, 61.70, 63.70
IRN, I, ResNet-50, 63.50, 64.80
SSDD, I, WideResNet-38, 64.90, 65.50
CONTA, I, ResNet-50, 65.30, 66.10
NSROM, I, VGG-16, 65.50, 65.30
MCIS, I, ResNet-101, 66.20, 66.90
RIB, I, ResNet-101, 68.30, 68.60
Joint Saliency, S+D, DenseNet-169, 63.30, 64.30
TransferNet, D, VGG-16, 52.10, 51.20
WebCrawl, D, VGG-16, 58.10, 58.70
EM, I, VGG-16, 38.20, 39.60
MIL-LSE, I, Overfeat, 42.00, 40.60
CRF-RNN, I, VGG-16, 52.80, 53.70"""
TABLE5 = """DSRG, I+S, VGG-16, 26.00
IAL, I, VGG-16, 27.70
ADL, I, VGG-16, 30.75
SGAN, I+S, VGG-16, 33.60
IRN, I, ResNet-50, 32.60
SEAM, I, WideResNet-38, 31.90
CONTA, I, WideResNet-38, 32.80
RIB, I, ResNet-101, 43.80"""


def others(lines: str) -> tuple[Row, ...]:
    """Rows from lines "method, supervision, backbone, val[, test]"."""
    rows = []
    for line in lines.split("\n"):
        name, supervision, backbone, val, *test = (cell.strip() for cell in line.split(","))
        remarks = [supervision if "supervised" in supervision else f"supervision {supervision}", backbone]
        remarks += [f"test {test[0]}"] if test else []
        rows.append(Row(name, None, {"segmentation": float(val)}, "; ".join(remarks)))
    return tuple(rows)


def table4(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """All of VOC."""
    theirs, ours = ssss.variants(ssss.recipe(scale, profile)), ssss.variants(recipe(scale, profile))
    return Study(
        name="wsfcn.table4",
        title="WS-FCN on VOC",
        source="WS-FCN Table IV, PASCAL VOC 2012 val, four scales and flips",
        metric="segmentation",
        rows=(
            *others(TABLE4),
            Row("SSSS", theirs["plain"], {"segmentation": 59.70}, "test 60.50"),
            Row("SSSS + CRF", theirs["crf"], {"segmentation": 62.70}, "test 64.30"),
            Row("WS-FCN", ours["plain"], {"segmentation": 61.57}, "test 62.30"),
            Row("WS-FCN + CRF", ours["crf"], {"segmentation": 63.23}, "test 64.22"),
            Row("WS-FCN, labels given", ours["labels"], {"segmentation": 64.02}, GIVEN),
            Row("WS-FCN + CRF, labels given", ours["labels crf"], {"segmentation": 65.02}, GIVEN),
        ),
    )


def coco(made: Recipe) -> Recipe:
    """The settings the released code notes for COCO."""
    changes = {f"method.{key}": value for key, value in ssss.COCO.items()}
    return replaced(made, {"name": f"{made.name}-coco", **changes})


def table5(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """All of COCO."""
    theirs = ssss.variants(coco(ssss.recipe(scale, profile)))
    ours = ssss.variants(coco(recipe(scale, profile)))
    return Study(
        name="wsfcn.table5",
        title="WS-FCN on COCO",
        source="WS-FCN Table V, MS COCO 2014 val, four scales and flips; needs --data with COCO shards",
        metric="segmentation",
        rows=(
            *others(TABLE5),
            Row("SSSS", theirs["plain"], {"segmentation": 26.68}),
            Row("SSSS + CRF", theirs["crf"], {"segmentation": 27.21}),
            Row("WS-FCN", ours["plain"], {"segmentation": 27.34}),
            Row("WS-FCN + CRF", ours["crf"], {"segmentation": 27.53}),
            Row("WS-FCN, labels given", ours["labels"], {"segmentation": 32.65}, GIVEN),
            Row("WS-FCN + CRF, labels given", ours["labels crf"], {"segmentation": 34.12}, GIVEN),
        ),
    )


STUDIES: dict[str, StudyFunction] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
}
