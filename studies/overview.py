# SPDX-License-Identifier: Apache-2.0
"""All methods side by side on one network and one data set, with precision, recall and cost: what no paper prints.

Run: ``wsss study run overview.localizers --seeds 3`` (toy), ``... --scale small --data URI`` (2 cores).
"""

from __future__ import annotations

from wsss_ray.engine.gate import BackgroundRule
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.experiments.study import Metric, Profile, Row, Study, StudyFunction
from wsss_ray.recipe import Recipe, Scale, replace_settings, take_localizer
from wsss_ray.refine.psa import LABELS_NOTE, PSAConfig

from . import _scales as scales
from . import cam, eps, esol, ktse, l2g, smaf, ssss, wsfcn

SEED_COLUMNS = (
    *("seeds.fixed", "precision", "recall", "precision_foreground.fixed", "recall_foreground.fixed"),
    *("heads", "bodies", "minutes"),
)
SOURCE = "no published counterpart"


def localizers(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Methods that learn from saliency or from their own maps."""
    plain = cam.recipe(scale, profile)
    rows = {
        "CAM": plain,
        "EPS": eps.recipe(scale, profile),
        "L2G without saliency": l2g.recipe_plain(scale, profile),
        "L2G": l2g.recipe(scale, profile),
        "SMAF over EPS": smaf.recipe(scale, profile),
        "SMAF over CAM": smaf.recipe_over(take_localizer(plain), scale, profile),
    }
    return compare_seeds("overview.localizers", "CAM, EPS, L2G and SMAF", rows)


def components(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """KTSE part by part, ESOL phase by phase; ESOL has the paper's profile alone."""
    rows = {
        "CAM": cam.recipe(scale, profile),
        "KTSE base": ktse.build_seeds(scale, profile, **ktse.switch()),
        "KTSE base + SIE": ktse.build_seeds(scale, profile, **ktse.switch("sie")),
        "KTSE base + SSR": ktse.build_seeds(scale, profile, **ktse.switch("ssr")),
        "KTSE base + MGA": ktse.build_seeds(scale, profile, **ktse.switch("ga", "la")),
        "KTSE": ktse.build_seeds(scale, profile),
        "ESOL baseline": esol.keep_seeds(esol.recipe_baseline(scale, "paper")),
        "ESOL classifier": esol.build_phase(scale, "classifier"),
        "ESOL classifier + clip": esol.build_phase(scale, "classifier", **esol.CLASSIFIER_CLIPPED),
        "ESOL expansion only, maps unclipped": esol.build_phase(scale, "expansion", **esol.UNCLIPPED),
        "ESOL expansion only": esol.build_phase(scale, "expansion"),
        "ESOL": esol.build_phase(scale, "shrinkage"),
    }
    also = ("mean_ap", "offset", *SEED_COLUMNS)
    return compare("overview.components", "KTSE by part, ESOL by phase", "seeds", also, rows, "best")


def refined(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Pseudo masks of CAM, KTSE and ESOL after a CRF, PSA and IRN."""
    plain = cam.recipe(scale, profile)
    rows = {}
    localizers = {
        "CAM": plain,
        "KTSE": ktse.build_seeds(scale, profile),
        "ESOL": esol.build_phase(scale, "shrinkage"),
    }
    for label, made in localizers.items():
        rows[f"{label} + CRF"] = replace_settings(made, {"refine": plain.refine})
        rows[f"{label} + PSA"] = scales.refine_by(made, "psa")
        rows[f"{label} + IRN"] = scales.refine_by(made, "irn")
    also = ("seeds", "precision", "recall", "heads", "bodies")
    return compare("overview.refined", "pseudo masks by refiner", "masks", also, rows)


def single_stage(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """SSSS and WS-FCN against CAM, CRF and DeepLab, each tested as its authors do; the rows say how."""
    rows = {
        "CAM + CRF + DeepLab": cam.recipe(scale, profile),
        "SSSS": ssss.recipe(scale, profile),
        "SSSS + FCA": wsfcn.build_variant(scale, profile, coupling="gci"),
        "SSSS + SF2": wsfcn.build_variant(scale, profile, context="aspp"),
        "WS-FCN": wsfcn.recipe(scale, profile),
    }
    also = ("segmentation.single_scale", "segmentation.multi_scale", "pixel_accuracy", "params", "minutes")
    title = "single-stage methods and the multi-stage pipeline"
    return compare("overview.single_stage", title, "segmentation", also, rows)


def describe_protocol(predict: PredictConfig) -> str:
    """How a network is tested, in a line: which classes may answer, the background, widths and weight of the CRF."""
    gate, crf = predict.gate, predict.crf
    classes = {"all": "all classes", "scores": "classes by image scores", "labels": "classes by image labels"}
    background = describe_background(gate.background)
    if crf is None:
        return f"{classes[gate.classes]}, background {background}, no CRF"
    before = "" if gate.crf_background is None else f" (before the CRF {describe_background(gate.crf_background)})"
    kernels = f"{crf.gaussian_xy:g}, {crf.gaussian_weight:g} and {crf.bilateral_xy:g}, {crf.bilateral_rgb:g}, "
    kernels += f"{crf.bilateral_weight:g}"
    return f"{classes[gate.classes]}, background {background}{before}, CRF {kernels}"


def describe_background(rule: BackgroundRule) -> str:
    """The rule of the background as a formula of the probabilities p, background first."""
    formulas = {"own": "p0", "power": f"p0^{rule.value:g}", "constant": f"{rule.value:g}"}
    return formulas.get(rule.kind, f"(1 - max p)^{rule.value:g}")


def compare_seeds(name: str, title: str, rows: dict[str, Recipe]) -> Study:
    """Rows scored by their seeds, all that is run of them."""
    return compare(name, title, "seeds", SEED_COLUMNS, rows, "best")


def compare(
    name: str, title: str, metric: Metric, also: tuple[str, ...], rows: dict[str, Recipe], variant: str | None = None
) -> Study:
    """A study without published numbers."""
    made = tuple(Row(label, recipe, note=describe_row(recipe, metric)) for label, recipe in rows.items())
    return Study(name, title, SOURCE, metric, made, variant=variant, also=also)


def describe_row(recipe: Recipe, metric: Metric) -> str:
    """Where PSA leaves its release; where networks are compared that are tested in different ways, in which."""
    notes = [LABELS_NOTE] if isinstance(recipe.refine, PSAConfig) else []
    return "; ".join([*notes, describe_protocol(recipe.predict)] if metric == "segmentation" else notes)


STUDIES: dict[str, StudyFunction] = {
    "localizers": localizers,
    "components": components,
    "refined": refined,
    "single_stage": single_stage,
}
