"""All methods side by side on one network and one data set, with precision, recall and cost: what no paper prints.

Run: ``wsss study run overview.localizers --seeds 3`` (toy), ``... --scale small --data URI`` (2 cores).
"""

from __future__ import annotations

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
        "L2G without saliency": l2g.build_variant(scale, profile, saliency=False),
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
    """SSSS and WS-FCN against CAM, CRF and DeepLab, all with one CRF preset at test time."""
    around = ssss.recipe(scale, profile)
    variants = {
        "SSSS + FCA": wsfcn.build_variant(scale, profile, coupling="gci"),
        "SSSS + SF2": wsfcn.build_variant(scale, profile, context="aspp"),
        "WS-FCN": wsfcn.recipe(scale, profile),
    }
    rows = {
        "CAM + CRF + DeepLab": replace_settings(cam.recipe(scale, profile), {"predict.crf": around.predict.crf}),
        "SSSS": around,
        **{label: replace_settings(around, {"method": variant.method}) for label, variant in variants.items()},
    }
    also = ("segmentation.single_scale", "segmentation.multi_scale", "pixel_accuracy", "params", "minutes")
    title = "single-stage methods and the multi-stage pipeline"
    return compare("overview.single_stage", title, "segmentation", also, rows)


def compare_seeds(name: str, title: str, rows: dict[str, Recipe]) -> Study:
    """Rows scored by their seeds, all that is run of them."""
    return compare(name, title, "seeds", SEED_COLUMNS, rows, "best")


def compare(
    name: str, title: str, metric: Metric, also: tuple[str, ...], rows: dict[str, Recipe], variant: str | None = None
) -> Study:
    """A study without published numbers."""
    notes = {label: LABELS_NOTE for label, recipe in rows.items() if isinstance(recipe.refine, PSAConfig)}
    made = tuple(Row(label, recipe, note=notes.get(label, "")) for label, recipe in rows.items())
    return Study(name, title, SOURCE, metric, made, variant=variant, also=also)


STUDIES: dict[str, StudyFunction] = {
    "localizers": localizers,
    "components": components,
    "refined": refined,
    "single_stage": single_stage,
}
