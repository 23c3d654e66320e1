"""All methods side by side on one network and one data set, with precision, recall and cost: what no paper prints.

Run: ``wsss study run overview.localizers --seeds 3`` (toy), ``... --scale small --data URI`` (SqueezeNet, 2 cores).
"""

from __future__ import annotations

from wsss_ray.studies import cam, eps, esol, ktse, l2g, smaf, ssss, wsfcn

from wsss_ray import scales
from wsss_ray.recipe import Localization, Recipe, Scale, replaced
from wsss_ray.refine.crf import PRESETS
from wsss_ray.study import Profile, Row, Study, StudyFunction

SEED_COLUMNS = ("seeds.fixed", "precision", "recall", "heads", "bodies", "minutes")
SOURCE = "no paper prints these rows side by side"


def bare(made: Recipe) -> Recipe:
    """Seeds alone."""
    return replaced(made, {"refine": None, "affinity": None, "segment": None})


def localizer_of(made: Recipe) -> Localization:
    """The part of a recipe another method can start from."""
    return Localization(**{name: getattr(made, name) for name in Localization.model_fields})


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
    """Rows of recipes up to their seeds."""
    return Study(
        name=name,
        title=title,
        source=SOURCE,
        metric="seeds",
        variant="best",
        also=SEED_COLUMNS,
        rows=tuple(Row(label, bare(made)) for label, made in rows.items()),
    )


def refined(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """Pseudo masks of CAM and of KTSE after a CRF, PSA and IRN."""
    rows = []
    for label, made in {"CAM": cam.recipe(scale, profile), "KTSE": ktse.seeds(scale, profile)}.items():
        rows.append(Row(f"{label} + CRF", replaced(bare(made), {"refine": cam.refiner(scale)})))
        for kind in ("psa", "irn"):
            walked = {"refine": scales.walker(scale, kind), "affinity": scales.affinity(scale, kind)}
            rows.append(Row(f"{label} + {kind.upper()}", replaced(bare(made), walked)))
    return Study(
        name="overview.refined",
        title="pseudo masks by refiner",
        source=SOURCE,
        metric="masks",
        also=("seeds", "precision", "recall", "heads", "bodies"),
        rows=tuple(rows),
    )


def single_stage(scale: Scale = "toy", profile: Profile = "paper") -> Study:
    """SSSS and WS-FCN against CAM, CRF and DeepLab, all with one CRF preset at test time."""
    own = {"predict.crf": PRESETS["ssss"]}
    rows = {
        "CAM + CRF + DeepLab": replaced(cam.recipe(scale, profile), own),
        "SSSS": replaced(ssss.recipe(scale, profile), own),
        "SSSS + FCA": replaced(ssss.recipe(scale, profile), own | wsfcn_part(scale, profile, coupling="gci")),
        "SSSS + SF2": replaced(ssss.recipe(scale, profile), own | wsfcn_part(scale, profile, context="aspp")),
        "WS-FCN": replaced(ssss.recipe(scale, profile), own | wsfcn_part(scale, profile)),
    }
    return Study(
        name="overview.single_stage",
        title="single-stage methods and the multi-stage road",
        source=SOURCE,
        metric="segmentation",
        also=("segmentation.single_scale", "segmentation.multi_scale", "pixel_accuracy", "params", "minutes"),
        rows=tuple(Row(label, made) for label, made in rows.items()),
    )


def wsfcn_part(scale: Scale, profile: Profile, **settings: str) -> dict[str, object]:
    """WS-FCN in place of SSSS, everything around it left as it is."""
    return {"method": wsfcn.method(scale, profile, **settings)}


STUDIES: dict[str, StudyFunction] = {
    "localizers": localizers,
    "components": components,
    "refined": refined,
    "single_stage": single_stage,
}
