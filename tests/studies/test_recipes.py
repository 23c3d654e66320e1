# SPDX-License-Identifier: Apache-2.0
"""KTSE, ESOL, SSSS and WS-FCN at paper scale are what was published; their tables hold the papers' numbers."""

from __future__ import annotations

import pytest
import torch

from wsss_ray.config import UserError
from wsss_ray.engine.gate import SSSS_GATE, WSFCN_GATE
from wsss_ray.methods import METHODS
from wsss_ray.methods.ktse.config import IRN_FUSION, KTSEConfig
from wsss_ray.nets import build_backbone
from wsss_ray.nets.optim import compute_lr_multiplier
from wsss_ray.nets.weight_registry import WEIGHTS
from wsss_ray.recipe import Localization, Recipe, Scale, override, take_localizer
from wsss_ray.refine.irn import GRID_NOTE
from wsss_ray.refine.psa import LABELS_NOTE, PSAConfig
from wsss_ray.refine.registry import REFINERS
from wsss_ray.studies import _scales as scales
from wsss_ray.studies import build_study, choose_scale, esol, ktse, resolve, ssss, wsfcn
from wsss_ray.studies._steps import AFFINITYNET, IRNET


def published(name: str, metric: str) -> dict[str, float]:
    """Row -> one of its numbers."""
    return {row.name: row.published[metric] for row in build_study(name).rows if metric in row.published}  # type: ignore[index]


def run_rows(name: str, scale: str = "toy", profile: str = "paper") -> dict[str, Recipe]:
    """Row -> recipe of the rows that run."""
    return {row.name: row.recipe for row in build_study(name, scale, profile).rows if row.recipe is not None}


def test_numbers_of_the_papers() -> None:
    assert published("ktse.table1", "masks")["KTSE"] == 73.8
    assert published("ktse.table1", "seeds")["FPR"] == 63.8
    assert published("ktse.table2", "segmentation")["KTSE"] == 67.3
    assert published("ktse.table3", "segmentation")["OCR"] == 72.7
    assert published("ktse.table4", "segmentation")["KTSE"] == 37.2
    assert published("ktse.table5", "segmentation")["KTSE"] == 45.9
    assert list(published("ktse.table6", "seeds").values()) == [54.2, 57.1, 57.4, 60.2, 63.8, 67.0]
    assert list(published("ktse.table7", "seeds").values()) == [54.2, 55.6, 54.9, 58.7, 60.2]
    assert published("esol.table1", "masks")["ESOL, PSA"] == 66.4
    assert published("esol.table1", "seeds")["CDA, IRN"] == 50.8
    assert published("esol.table1_coco", "masks") == {"CONTA": 35.2, "IRN": 42.9, "ESOL": 44.6}
    assert list(published("esol.table6", "seeds").values()) == [48.4, 48.5, 49.1, 51.8, 50.1, 50.9, 52.8, 53.6]
    assert published("ssss.readme", "segmentation")["SSSS + CRF, labels given, train"] == 66.9
    assert published("wsfcn.table1", "params")["WS-FCN"] == 147.34
    assert published("wsfcn.table2", "pixel_accuracy")["Large convolution 7x7"] == 86.95
    assert published("wsfcn.table3", "segmentation")["Four scales, flip"] == 61.57
    assert published("wsfcn.table4", "segmentation")["WS-FCN + CRF, labels given"] == 65.02
    assert published("wsfcn.table5", "segmentation")["SGAN"] == 33.6


def test_ktse_schedule() -> None:
    released = ktse.recipe("paper", "released")
    steps = [10_582 // released.train.batch_size_at(epoch) for epoch in range(released.train.epochs)]
    assert (steps[9], steps[10], sum(steps)) == (1322, 661, 33_050)
    schedule = released.train.schedule
    assert compute_lr_multiplier(schedule, sum(steps[:10]), sum(steps), 661) == pytest.approx(0.772, abs=5e-4)
    assert compute_lr_multiplier(schedule, sum(steps) - 1, sum(steps), 661) == pytest.approx(0.414, abs=5e-4)
    assert (released.train.optimizer.momentum, released.train.augment.crop, released.train.augment.jitter) == (
        5e-4,
        320,
        None,
    )
    assert released.localize.fusion == IRN_FUSION
    assert released.refine.labels.background == 0.10
    paper = ktse.recipe("paper")
    assert (paper.train.optimizer.momentum, paper.train.batch_milestones, paper.method.warmup_epochs) == (0.9, {}, 0)
    assert paper.refine.labels.background == 0.05


def test_ktse_dropout_reaches_the_network_from_a_file() -> None:
    net = ktse.recipe("paper").net
    again = Recipe.model_validate_json(ktse.recipe("paper").model_dump_json()).net
    assert again == net
    assert net.options["dropout"] == (0.2, 0.2)
    assert override(ktse.recipe("paper"), ["net.options.dropout=[0.1, 0.4]"]).net.options["dropout"] == (0.1, 0.4)
    backbone = build_backbone(net.backbone, net.output_stride, **again.options)
    assert [m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout2d)] == [0.2] * 4


def test_ktse_ablations_change_only_their_parts() -> None:
    rows = run_rows("ktse.table6", "paper", "released")
    switches = {
        name: tuple(getattr(row.method, key) for key in ("sie", "ssr", "ga", "la")) for name, row in rows.items()
    }
    assert switches["Base"] == (False,) * 4
    assert switches["Base + MGA"] == (False, False, True, True)
    assert switches["Base + SIE + SSR + MGA"] == (True,) * 4
    assert rows["Base"].localize.fusion == KTSEConfig().fusion()
    assert rows["Base"].localize.stride == 1
    assert len({row.train.model_dump_json() for row in rows.values()}) == 1


def chain_of(recipe: Localization) -> list[Localization]:
    """The localizers in the order of their training."""
    found: list[Localization] = []
    part: Localization | None = recipe
    while part is not None:
        found.insert(0, part)
        part = part.base
    return found


def test_esol_phases() -> None:
    chain = chain_of(esol.recipe("paper"))
    assert [part.method.phase for part in chain] == ["classifier", "expansion", "shrinkage"]
    assert [part.train.epochs * (10_582 // part.train.batch_size) for part in chain] == [3305, 6610, 6610]
    assert [part.train.optimizer.lr for part in chain] == [0.1, 0.01, 0.1]
    assert {part.train.optimizer.momentum for part in chain} == {1e-4}
    assert {part.train.optimizer.weight_decay for part in chain} == {1e-4}
    coco = chain_of(run_rows("esol.table2", "paper")["ESOL, ResNet-101"])
    assert [part.train.optimizer.lr for part in coco] == [0.1, 0.001, 0.02]
    with pytest.raises(UserError, match="no released code"):
        resolve("esol", "toy", "released")


def test_published_steps_on_coco_take_its_empty_images() -> None:
    expansion = chain_of(run_rows("esol.table2", "paper")["ESOL, ResNet-101"])[1].train
    sizes = {"dropped": 82_081, "kept": 82_783}
    steps = {empty: expansion.epochs * (size // expansion.batch_size) for empty, size in sizes.items()}
    assert steps == {"dropped": 51_300, "kept": 51_730}
    for name in ("table1_coco", "table2"):
        assert "empty=kept" in build_study(f"esol.{name}").source


def test_rows_say_where_refiners_leave_the_release() -> None:
    for name in ("esol.table1", "overview.refined", "cam.refiners"):
        for row in build_study(name, "paper").rows:
            if row.recipe is not None:
                assert (LABELS_NOTE in row.note) == isinstance(row.recipe.refine, PSAConfig), row.name
    for name in ("table1", "table1_coco"):
        study = build_study(f"esol.{name}", "paper")
        assert GRID_NOTE in study.source
        assert {row.recipe.localize.stride for row in study.rows if row.recipe is not None} == {4}


def test_esol_alpha_and_rate_at_small_scales() -> None:
    steps: dict[Scale, tuple[float, float]] = {"toy": (0.003, 0.03), "small": (0.0003, 0.003)}
    for scale, (step, rate) in steps.items():
        _, expansion, shrinkage = chain_of(esol.recipe(scale))
        assert expansion.method.alpha * expansion.train.optimizer.lr == pytest.approx(step)
        assert shrinkage.train.optimizer.lr == rate
        assert (shrinkage.method.gamma, shrinkage.method.area_map) == (0.1, "normalized")
        assert expansion.method.extra_lr_multiplier == 1
        assert {phase.method.init for phase in chain_of(esol.recipe(scale))} == {"identity"}
        assert not expansion.method.clip_detach
    assert chain_of(esol.recipe("paper"))[0].method.extra_lr_multiplier == 10
    assert chain_of(esol.recipe("paper"))[0].method.init == "torch"
    assert chain_of(esol.recipe("paper"))[1].method.clip_detach
    published = chain_of(esol.recipe("paper"))[2].method
    assert (published.gamma, published.area_map) == (1, "sigmoid")
    alphas = [chain_of(row)[1].method.alpha for row in run_rows("esol.figure6a", "paper").values()]
    assert alphas == [0.001, 0.003, 0.01, 0.03, 0.1]


def test_localizers_of_small_train_alike() -> None:
    # A table of methods compares nothing where their optimisers differ. SMAF fine-tunes; ESOL then moves offsets.
    for name in ("cam", "eps", "l2g", "ktse", "ssss", "wsfcn"):
        assert resolve(name, "small").train.optimizer == scales.SGD
    assert chain_of(resolve("esol", "small"))[0].train.optimizer == scales.SGD
    assert resolve("smaf", "small").base.train.optimizer == scales.SGD


def test_both_kinds_of_small_predict_from_the_same_views() -> None:
    for name in ("ssss", "wsfcn"):
        single, several = resolve(name, "small").predict, resolve("cam", "small").predict
        assert single.gate.classes == "scores"
        for key in ("scales", "flip", "long_side", "precision"):
            assert getattr(single, key) == getattr(several, key)
        assert resolve(name, "paper").predict.scales == (1.0, 0.5, 1.5, 2.0)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_ktse_on_short_schedules(profile: str) -> None:
    """A trained CAM to start from, losses that come in by and by, and the released side of what kills numbers."""
    for scale in ("toy", "small"):
        for made in (resolve("ktse", scale, profile), *run_rows("ktse.table6", scale, profile).values()):
            plain = resolve("cam", scale, profile)
            assert made.base == take_localizer(plain)
            assert (made.method.ce_mean, made.method.rectify_scores) == ("separate", True)
            assert 0 < made.method.ramp_epochs < made.train.epochs - made.method.warmup_epochs + 1
    paper = resolve("ktse", "paper", profile)
    assert paper.base is None
    assert paper.method == KTSEConfig(profile=profile)
    assert (paper.method.ramp_epochs, paper.method.pooling, paper.method.warmup_background) == (0, "gpp", False)
    released = profile == "released"
    assert (paper.method.ce_mean, paper.method.rectify_scores) == ("separate" if released else "joint", released)


def test_ktse_batch_grows_where_its_warm_up_ends() -> None:
    for scale, warm_up in (("toy", 5), ("small", 4), ("paper", 10)):
        made = resolve("ktse", scale, "released")
        assert made.method.warmup_epochs == warm_up
        assert made.train.batch_milestones == {warm_up: 16}


def test_esol_ablations() -> None:
    rows = run_rows("esol.table6")
    assert len(chain_of(rows["w/o DT_e"])) == 2
    assert len(chain_of(rows["w/o FL"])) == 3
    assert rows["Baseline"].method.name == "cam"
    assert {part.method.beta for part in chain_of(rows["w/o FL"])[1:]} == {1.0}
    curves = [row for part in "abc" for row in run_rows(f"esol.figure6{part}").values()]
    shared = [chain_of(row)[0].model_dump_json() for row in [*list(rows.values())[1:], *curves]]
    assert len(set(shared)) == 1, "every row starts from one classifier"
    assert rows["w/o (DT_s + L_area)"].method.mu == 0
    assert rows["w/o (DT_s + L_area)"].method.trains == ("conv2",)


def test_single_stage_recipes_end_at_their_own_masks() -> None:
    for module, gate, preset in ((ssss, SSSS_GATE, 80.0), (wsfcn, WSFCN_GATE, 30.0)):
        for scale in ("toy", "small", "paper"):
            made = module.recipe(scale)
            assert made.predicts
            assert made.refine is None
            assert made.segment is None
            assert not made.affinity
            assert made.predict.gate == gate
            assert made.predict.crf.bilateral_xy == preset
            assert made.method.warmup_epochs < made.train.epochs
    paper = ssss.recipe("paper")
    assert (paper.train.optimizer.lr, paper.train.schedule.name, paper.train.augment.resize) == (
        1e-3,
        "constant",
        "area",
    )
    assert wsfcn.recipe("paper").method.new_layer_multiplier == 20
    assert wsfcn.recipe("paper", "released").method.fca.dilations == (1, 12, 24, 36)


def test_wsfcn_rows() -> None:
    for scale in ("toy", "small"):
        rows = run_rows("wsfcn.table3", scale)
        assert [(row.predict.scales, row.predict.flip) for row in rows.values()] == [
            ((1.0,), False),
            ((1.0, 0.5, 1.5, 2.0), False),
            ((1.0,), True),
            ((1.0, 0.5, 1.5, 2.0), True),
        ]
    ways = run_rows("wsfcn.table4")
    assert ways["WS-FCN"].predict.crf is None
    assert ways["WS-FCN + CRF"].predict.crf is not None
    assert ways["WS-FCN, labels given"].predict.gate.classes == "labels"
    assert run_rows("wsfcn.table5")["SSSS"].method.penalty_floor == 0.1


def test_wsfcn_parameters_are_the_published_ones() -> None:
    for name, row in run_rows("wsfcn.table1", "paper", "released").items():
        with torch.device("meta"):
            network = row.method.build(build_backbone(row.net.backbone, **row.net.options), 20)
        learns = sum(p.numel() for group in network.param_groups() for p in group.params) / 1e6
        assert learns == pytest.approx(published("wsfcn.table1", "params")[name], abs=0.01), name


def test_walkers_fit_their_crops() -> None:
    for scale in ("toy", "small", "paper"):
        irn, psa = (scales.refine_by(resolve("cam", scale), walker) for walker in ("irn", "psa"))
        assert irn.affinity.train.augment.crop // 4 > 2 * (irn.refine.train_radius - 1)
        assert psa.affinity.train.augment.crop // 8 > 2 * (psa.refine.radius - 1)
    irn, psa = IRNET, AFFINITYNET
    assert (irn.train.batch_size, irn.train.epochs, irn.train.optimizer.lr) == (32, 3, 0.1)
    assert (irn.train.optimizer.momentum, irn.train.optimizer.weight_decay) == (1e-4, 1e-4)
    assert (psa.train.optimizer.momentum, psa.train.optimizer.weight_decay) == (5e-4, 5e-4)
    assert (psa.train.batch_size, psa.train.optimizer.lr) == (8, 0.1)
    assert (psa.net.backbone, psa.train.augment.crop, psa.train.epochs) == ("resnet38", 448, 8)


@pytest.mark.parametrize("name", sorted(set(REFINERS) - {"psa", "irn", "crf"}))
def test_another_refiner_starts_from_its_own_defaults(name):
    default = REFINERS[name]()
    assert resolve("cam", settings=[f"refine.name={name}"]).refine == default
    key, value = next((key, value) for key, value in default if isinstance(value, float | int))
    changed = resolve("cam", settings=[f"refine.{key}={value * 2}", f"refine.name={name}"]).refine
    assert changed.model_dump() == {**default.model_dump(), key: value * 2}


@pytest.mark.parametrize(
    "settings",
    [
        ["refine.name=crf", "refine.crf.iterations=3", "refine.threshold=0.4"],
        ["refine={name: crf}", "refine.crf.iterations=3", "refine.threshold=0.4"],
        ["refine={name: seeds}", "refine.name=crf", "refine.crf.iterations=3", "refine.threshold=0.4"],
    ],
)
@pytest.mark.parametrize("turn", range(3))
def test_settings_of_another_part_hold_in_any_order(settings, turn):
    given = resolve("l2g", settings=[*settings[turn:], *settings[:turn]]).refine
    default = REFINERS["crf"]()
    crf = default.crf.model_copy(update={"iterations": 3})
    assert given == default.model_copy(update={"crf": crf, "threshold": 0.4})


def test_nested_settings_of_another_method_start_from_its_profile():
    for profile in ("paper", "released"):
        changed = resolve("ssss", profile=profile, settings=["method.fca.dropout=0.2", "method.name=wsfcn"]).method
        default = METHODS["wsfcn"](profile=profile)
        assert changed == default.model_copy(update={"fca": default.fca.model_copy(update={"dropout": 0.2})})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["refine.name=pamr", "refine.crf.iterations=3"], "no key 'refine.crf'; known here: .*dilations"),
        (["refine.name=nope", "refine.crf.iterations=3"], "unknown refiner 'nope'; known: seeds"),
        (["method.name=wsfcn", "method.profile=nope", "method.fca.dropout=0.2"], "method"),
    ],
)
def test_what_another_part_has_not_is_one_line(settings, said):
    with pytest.raises(UserError, match=said) as error:
        resolve("cam", settings=settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "scale"), [((), "small"), (("resnet38_imagenet", "deeplab_resnet101_coco"), "paper")]
)
def test_scale_of_a_study_looks_at_the_weights_of_its_rows(given, scale, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path))
    for name in given:
        (tmp_path / WEIGHTS[name].filename).touch()
    assert choose_scale("cam", "data").scale == scale
    assert choose_scale("esol.table1", "data").scale == "small"
    assert choose_scale("cam", None).scale == "toy"
    with pytest.raises(UserError, match="no recipe 'nope'"):
        choose_scale("nope", "data")


def test_another_method_keeps_the_profile():
    for profile in ("paper", "released"):
        method = resolve("cam", profile=profile, settings=["method.name=l2g"]).method
        assert method == METHODS["l2g"](profile=profile)


def test_the_same_name_keeps_the_settings():
    cam = resolve("cam")
    assert resolve("cam", settings=["refine.name=crf"]) == cam
    assert resolve("cam", settings=["train.optimizer.name=sgd"]).train.optimizer.lr == cam.train.optimizer.lr


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("2024_01", "2024_01"),
        ("1e3", "1e3"),
        ("no", "no"),
        ("on", "on"),
        ("0,3", "0,3"),
        ("a #b", "a #b"),
        ("a: b", "a: b"),
        ("007", "007"),
        ("2024-01-01", "2024-01-01"),
        ("12", "12"),
        ("1.50", "1.50"),
        ("'12'", "12"),
        (" x y ", "x y"),
        ("C:\\x", "C:\\x"),
        ("null", None),
    ],
)
def test_texts_are_what_was_typed(typed, value):
    assert override(resolve("cam"), [f"data.train_split={typed}"]).data.train_split == value


@pytest.mark.parametrize(("typed", "value"), [("1e-1", 0.1), ("0.50", 0.5), (".5", 0.5), ("1", 1.0)])
def test_numbers_may_be_written_in_any_way(typed, value):
    assert override(resolve("cam"), [f"score.background={typed}"]).score.background == value


@pytest.mark.parametrize("typed", ["0,3", "yes", "no", "1e3", "2024-01-01", "a"])
def test_a_wrong_type_is_one_line(typed):
    with pytest.raises(UserError, match=r"train\.epochs") as error:
        override(resolve("cam"), [f"train.epochs={typed}"])
    assert "\n" not in str(error.value)
