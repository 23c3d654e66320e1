# SPDX-License-Identifier: Apache-2.0
"""Methods side by side: each network is tested as its authors do, and its row says how; what small scales change."""

from __future__ import annotations

import pytest

from wsss_ray.engine.gate import WSFCN_GATE, GateConfig
from wsss_ray.recipe import Recipe, Scale
from wsss_ray.refine.crf import PRESETS, CRFConfig
from wsss_ray.studies import build_study, cam, eps, l2g, resolve, smaf, ssss, wsfcn
from wsss_ray.studies.overview import describe_protocol

SCALES: tuple[Scale, ...] = ("toy", "small", "paper")


def run_rows(name: str, scale: Scale = "toy", profile: str = "paper") -> dict[str, Recipe]:
    """Row -> recipe of the rows that run."""
    return {row.name: row.recipe for row in build_study(name, scale, profile).rows if row.recipe is not None}


def without_prune(crf: CRFConfig | None) -> CRFConfig | None:
    """The CRF as its preset has it: small scales leave out labels that cannot win."""
    return None if crf is None else crf.model_copy(update={"prune": 0.0})


@pytest.mark.parametrize("scale", SCALES)
def test_each_network_is_tested_by_its_own_protocol(scale: Scale) -> None:
    rows = run_rows("overview.single_stage", scale)
    own = {"CAM + CRF + DeepLab": cam.recipe(scale), "SSSS": ssss.recipe(scale), "WS-FCN": wsfcn.recipe(scale)}
    for name, recipe in own.items():
        assert rows[name].predict == recipe.predict, name
    presets = {name: without_prune(row.predict.crf) for name, row in rows.items()}
    assert presets["CAM + CRF + DeepLab"] == PRESETS["deeplab_v2"]
    assert presets["SSSS"] == PRESETS["ssss"]
    assert {name: presets[name] for name in ("SSSS + FCA", "SSSS + SF2", "WS-FCN")} == dict.fromkeys(
        ("SSSS + FCA", "SSSS + SF2", "WS-FCN"), PRESETS["wsfcn"]
    )


def test_rows_say_how_they_are_tested() -> None:
    notes = {row.name: row.note for row in build_study("overview.single_stage").rows}
    assert notes["CAM + CRF + DeepLab"] == "all classes, background p0, CRF 1, 3 and 67, 3, 4"
    assert notes["SSSS"] == "classes by image scores, background p0^3, CRF 3, 3 and 80, 13, 10"
    assert notes["WS-FCN"] == (
        "classes by image scores, background 0.25 (before the CRF (1 - max p)^5), CRF 3, 3 and 30, 13, 10"
    )
    plain = cam.recipe().predict.model_copy(update={"crf": None, "gate": GateConfig(classes="labels")})
    assert describe_protocol(plain) == "classes by image labels, background p0, no CRF"
    assert wsfcn.recipe().predict.gate == WSFCN_GATE


@pytest.mark.parametrize("name", ["ssss", "wsfcn"])
def test_new_layers_learn_at_the_published_rate_at_paper_scale_alone(name: str) -> None:
    published = {"ssss": 10, "wsfcn": 20}
    for profile in ("paper", "released"):
        assert resolve(name, "paper", profile).method.new_layer_multiplier == published[name]
        for scale in ("toy", "small"):
            assert resolve(name, scale, profile).method.new_layer_multiplier == 1


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_l2g_without_saliency_has_the_side_of_its_profile(profile: str) -> None:
    for scale in SCALES:
        found = [
            run_rows("l2g.table1", scale, profile)["L2G"],
            run_rows("l2g.table2", scale, profile)["L2G"],
            run_rows("l2g.table3", scale, profile)["L2G"],
            run_rows("overview.localizers", scale, profile)["L2G without saliency"],
        ]
        assert {recipe.method.model_dump_json() for recipe in found} == {found[0].method.model_dump_json()}
        method = found[0].method
        assert (method.saliency, method.shared) == (False, False)
        expected = ("ignore", False, "random") if profile == "paper" else ("soft", True, "corners")
        assert (method.background_target, method.hard_target, method.sampling) == expected
    made = l2g.recipe_plain("paper", "released")
    assert (made.train.epochs, made.train.batch_size, made.train.accumulate) == (15, 5, 5)
    assert l2g.recipe_plain("paper").train == l2g.recipe("paper").train


def test_l2g_shows_separate_and_shared_networks_at_both_thresholds() -> None:
    study = build_study("l2g.components")
    rows = run_rows("l2g.components")
    assert not rows["L2G"].method.shared
    assert rows["shared backbone"].method.shared
    assert study.variant == "fixed"
    assert "seeds.best" in study.columns


def test_smaf_fuses_several_scales_and_trains_gently() -> None:
    for scale in SCALES:
        for profile in ("paper", "released"):
            over_cam = run_rows("overview.localizers", scale, profile)["SMAF over CAM"]
            for recipe in (smaf.recipe(scale, profile), over_cam):
                assert len(recipe.base.localize.scales) >= 3, (scale, profile)
                assert max(recipe.base.localize.scales) > 1
    small = smaf.recipe("small")
    assert small.localize.scales == eps.recipe("small").localize.scales
    assert small.base is not None
    assert small.train.optimizer.lr == pytest.approx(0.1 * small.base.train.optimizer.lr)
