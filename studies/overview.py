"""All methods side by side on one network and one data set, with precision, recall and cost: what no paper prints.

Run: ``wsss study run overview.localizers --seeds 3`` (toy), ``... --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from wsss_ray.studies import _scales as scales
from wsss_ray.studies import cam, eps, esol, ktse, l2g, smaf, ssss, wsfcn

from wsss_ray.experiments.study import Metric, Profile, Row, Study, StudyFunction
from wsss_ray.recipe import Recipe, Scale, localizer_of, replaced
from wsss_ray.refine.psa import LABELS_NOTE, PSAConfig

SEED_COLUMNS = (
    *("seeds.fixed", "precision", "recall", "precision_foreground.fixed", "recall_foreground.fixed"),
    *("heads", "bodies", "minutes"),
)
SOURCE = "no paper prints these rows side by side"


def localizers(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Methods that learn from saliency or from their own maps."""
    plain = cam.recipe(scale, profile)
    rows = {
        "CAM": plain,
        "EPS": eps.recipe(scale, profile),
        "L2G without saliency": l2g.variant(scale, profile, train_aug=False, saliency=False),
        "L2G": l2g.recipe(scale, profile),
        "SMAF over EPS": smaf.recipe(scale, profile),
        "SMAF over CAM": smaf.over(localizer_of(plain), scale, profile),
    }
    return seeds("overview.localizers", "CAM, EPS, L2G and SMAF", rows)


def components(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """KTSE part by part, ESOL phase by phase; ESOL has the paper's profile alone."""
    expanded = esol.chain(scale).base
    assert expanded is not None and expanded.base is not None
    rows = {
        "CAM": cam.recipe(scale, profile),
        "KTSE base": ktse.seeds(scale, profile, **ktse.parts()),
        "KTSE base + SIE": ktse.seeds(scale, profile, **ktse.parts("sie")),
        "KTSE base + SSR": ktse.seeds(scale, profile, **ktse.parts("ssr")),
        "KTSE base + MGA": ktse.seeds(scale, profile, **ktse.parts("ga", "la")),
        "KTSE": ktse.seeds(scale, profile),
        "ESOL baseline": esol.bare(esol.baseline(scale)),
        "ESOL classifier": esol.bare(esol.built(scale, "esol", expanded.base)),
        "ESOL expansion only": esol.bare(esol.built(scale, "esol", expanded)),
        "ESOL": esol.seeds(scale),
    }
    return seeds("overview.components", "KTSE and ESOL", rows)


def seeds(name: str, title: str, rows: dict[str, Recipe]) -> Study:
    """Rows scored by their seeds, all that is run of them."""
    return side_by_side(name, title, "seeds", SEED_COLUMNS, rows, "best")


def side_by_side(
    name: str, title: str, metric: Metric, also: tuple[str, ...], rows: dict[str, Recipe], variant: str | None = None
) -> Study:
    """A study without published numbers."""
    notes = {label: LABELS_NOTE for label, recipe in rows.items() if isinstance(recipe.refine, PSAConfig)}
    made = tuple(Row(label, recipe, note=notes.get(label, "")) for label, recipe in rows.items())
    return Study(name, title, SOURCE, metric, made, variant=variant, also=also)


def refined(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Pseudo masks of CAM, KTSE and ESOL after a CRF, PSA and IRN."""
    rows = {}
    localizers = {"CAM": cam.recipe(scale, profile), "KTSE": ktse.seeds(scale, profile), "ESOL": esol.seeds(scale)}
    for label, made in localizers.items():
        rows[f"{label} + CRF"] = replaced(made, {"refine": cam.refiner(scale)})
        for kind in ("psa", "irn"):
            walked = {"refine": scales.walker(scale, kind), "affinity": scales.affinity(scale, kind)}
            rows[f"{label} + {kind.upper()}"] = replaced(made, walked)
    also = ("seeds", "precision", "recall", "heads", "bodies")
    return side_by_side("overview.refined", "pseudo masks by refiner", "masks", also, rows)


def single_stage(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """SSSS and WS-FCN against CAM, CRF and DeepLab, all with one CRF preset at test time."""
    methods = {
        "SSSS": ssss.recipe(scale, profile).method,
        "SSSS + FCA": wsfcn.method(scale, profile, coupling="gci"),
        "SSSS + SF2": wsfcn.method(scale, profile, context="aspp"),
        "WS-FCN": wsfcn.method(scale, profile),
    }
    around = ssss.recipe(scale, profile)
    rows = {"CAM + CRF + DeepLab": cam.recipe(scale, profile)}
    rows |= {label: replaced(around, {"method": method}) for label, method in methods.items()}
    rows = {label: replaced(made, {"predict.crf": scales.test_crf(scale, "ssss")}) for label, made in rows.items()}
    also = ("segmentation.single_scale", "segmentation.multi_scale", "pixel_accuracy", "params", "minutes")
    title = "single-stage methods and the multi-stage road"
    return side_by_side("overview.single_stage", title, "segmentation", also, rows)


STUDIES: dict[str, StudyFunction] = {
    "localizers": localizers,
    "components": components,
    "refined": refined,
    "single_stage": single_stage,
}
