# SPDX-License-Identifier: Apache-2.0
"""Every study of every module: recipes that validate, numbers that are numbers, rows that differ. New modules are found
by themselves."""

from __future__ import annotations

import inspect
import itertools
from typing import cast

import pytest

from wsss_ray.config import UserError
from wsss_ray.experiments.study import Study
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.methods.views import place_windows
from wsss_ray.recipe import Recipe, Scale, dump, load, override, replace_settings, validate
from wsss_ray.studies import (
    build_study,
    cam,
    eps,
    l2g,
    list_papers,
    load_paper,
    names,
    resolve,
    smaf,
    study_names,
)

SCALES: tuple[Scale, ...] = ("toy", "small", "paper")
PROFILES = ("paper", "released")
METRICS = {"seeds", "masks", "segmentation", "pixel_accuracy", "params"}
MODULES = sorted({name.partition(".")[0] for name in study_names()})


def sides(found: list[str]) -> list[tuple[str, str]]:
    """(name, profile): both, unless a module's ``PROFILES`` says that there is no released code."""
    papers = {name: load_paper(name) for name in list_papers()}
    return [
        (name, side) for name in found for side in getattr(papers.get(name.partition(".")[0]), "PROFILES", PROFILES)
    ]


SAME_AS_ANOTHER_ROW = "same"
"""Word in the note of a row that repeats another one on purpose."""


def test_there_is_something_to_check() -> None:
    assert {"cam", "eps", "l2g", "smaf"} <= set(MODULES)


def test_what_is_read_of_the_files_is_what_they_declare() -> None:
    for name, paper in list_papers().items():
        module = load_paper(name)
        assert paper.summary.startswith(module.__doc__.strip().partition("\n")[0].replace("``", ""))
        assert paper.has_recipe == hasattr(module, "recipe")
        assert list(paper.studies) == list(getattr(module, "STUDIES", {}))
        for key, summary in paper.studies.items():
            function = getattr(module.STUDIES[key], "func", module.STUDIES[key])
            assert summary.startswith(function.__doc__.partition("\n")[0].replace("``", ""))
            assert summary


@pytest.mark.parametrize(("name", "profile"), sides(names()))
@pytest.mark.parametrize("scale", SCALES)
def test_recipes_are_of_their_scale_and_survive_a_file(name: str, scale: Scale, profile: str, tmp_path) -> None:
    made = resolve(name, scale, profile)
    assert made.scale == scale
    (tmp_path / "recipe.yaml").write_text(dump(made), encoding="utf-8")
    assert load(tmp_path / "recipe.yaml") == made
    assert validate(made.model_dump(mode="json"), name) == made


PAPERS = sorted(name for name, paper in list_papers().items() if paper.has_recipe)


@pytest.mark.parametrize("name", PAPERS)
def test_published_recipes_come_first_and_know_no_scale(name: str) -> None:
    module = load_paper(name)
    functions = [
        (function.__code__.co_firstlineno, key, function)
        for key, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    ]
    assert min(functions)[1] == "published"
    published = [function for _, key, function in functions if key.startswith("published")]
    assert all(list(inspect.signature(function).parameters) == ["profile"] for function in published)


@pytest.mark.parametrize(("name", "profile"), sides(PAPERS))
def test_published_recipes_are_those_of_the_paper_scale(name: str, profile: str) -> None:
    module = load_paper(name)
    for key, function in inspect.getmembers(module, inspect.isfunction):
        if key.startswith("published") and function.__module__ == module.__name__:
            recipe = getattr(module, key.replace("published", "recipe"), None)
            made = function(profile)
            assert made.scale == "paper"
            assert recipe is None or recipe("paper", profile) == made
    assert resolve(name, "paper", profile) == module.published(profile)


@pytest.mark.parametrize(("name", "profile"), sides(study_names()))
@pytest.mark.parametrize("scale", SCALES)
def test_studies_hold(name: str, scale: Scale, profile: str) -> None:
    study = build_study(name, scale, profile)
    check_study(study, name, scale)


def check_study(study: Study, name: str, scale: Scale) -> None:
    """What every study must keep."""
    assert study.name == name
    assert study.title
    assert study.source
    assert study.metric in METRICS
    assert study.rows
    titles = [row.name for row in study.rows]
    assert len(set(titles)) == len(titles), f"{name}: a row name comes twice"
    for row in study.rows:
        assert set(row.published) <= METRICS
        assert all(type(value) is float for value in row.published.values()), f"{name}, {row.name}: not a float"
        assert all(0 < value <= 100 for metric, value in row.published.items() if metric != "params")
        assert row.published or row.recipe is not None, f"{name}, {row.name}: neither run nor published"
        if row.recipe is not None:
            assert row.recipe.scale == scale
            check_valid(row.recipe)
    run = [row for row in study.rows if row.recipe is not None]
    for one, other in itertools.combinations(run, 2):
        if SAME_AS_ANOTHER_ROW not in f"{one.note} {other.note}".lower():
            assert plain(one.recipe) != plain(other.recipe), f"{name}: rows {one.name!r} and {other.name!r} are one run"


def check_valid(recipe: Recipe | None) -> None:
    """Equal to itself after validation from plain values, so that no variant slipped past the validators."""
    assert recipe is not None
    assert validate(recipe.model_dump(mode="json"), recipe.name) == recipe


def plain(recipe: Recipe | None) -> dict[str, object]:
    """What a run does, without what it is called."""
    assert recipe is not None
    return recipe.model_dump(mode="json", exclude={"name", "tags"})


def test_checks_can_fail() -> None:
    study = build_study("l2g.table2")
    row = study.rows[0]
    with pytest.raises(AssertionError, match="one run"):
        check_study(_with(study, (row, type(row)("again", row.recipe, {}))), "l2g.table2", "toy")
    with pytest.raises(AssertionError, match="comes twice"):
        check_study(_with(study, (row, row)), "l2g.table2", "toy")
    with pytest.raises(AssertionError, match="not a float"):
        check_study(_with(study, (type(row)("a", None, {"seeds": cast(float, 47)}),)), "l2g.table2", "toy")
    broken = cast(Recipe, row.recipe).model_copy(update={"seed": -1})
    with pytest.raises(UserError, match="seed"):
        check_study(_with(study, (type(row)("a", broken, {}),)), "l2g.table2", "toy")


def _with(study: Study, rows) -> Study:
    return Study(study.name, study.title, study.source, study.metric, rows)


def published(name: str) -> dict[str, dict[str, float]]:
    """Row -> its numbers."""
    return {row.name: dict(row.published) for row in build_study(name).rows}


def test_numbers_of_the_papers() -> None:
    assert published("l2g.table1")["CAM"] == {"seeds": 47.1, "segmentation": 47.5}
    assert published("l2g.table2")["L2G + Shape"] == {"seeds": 70.3, "segmentation": 72.1}
    assert published("l2g.table6")["L2G V2"] == {"segmentation": 72.1}
    assert published("l2g.table6_test")["L2G V1"] == {"segmentation": 73.0}
    assert published("l2g.table7")["L2G, VGG-16"] == {"seeds": 43.4, "segmentation": 42.7}
    assert published("smaf.table2")["SMAF over EPS"] == {"seeds": 72.0, "masks": 73.8}
    assert published("smaf.table4")["2"] == {"seeds": 63.0}
    assert published("eps.readme")["EPS"] == {"seeds": 69.22}
    assert all(not numbers for numbers in published("l2g.figure5_views").values())


def test_paper_scale_is_what_was_published() -> None:
    assert [l2g.fit_patch("paper", side) for side in (240, 320, 400, 64)] == [240, 320, 400, 64]
    released = l2g.recipe("paper", "released")
    assert (released.method.num_views, released.method.pcm, released.method.threshold) == (6, True, 0.001)
    assert released.train.augment.swap_axes
    assert not l2g.recipe("paper").train.augment.swap_axes
    assert (released.train.batch_size, released.train.optimizer.lr, released.train.optimizer.nesterov) == (
        3,
        1e-3,
        True,
    )
    assert (eps.recipe("paper").train.max_steps, eps.recipe("paper").train.schedule.horizon) == (20_000, 20_000)
    assert eps.published_coco("paper").method.foreground_weight == 0.9
    student = smaf.recipe("paper", "released")
    assert (student.train.optimizer.momentum, student.train.augment.jitter, student.base.method.bottleneck) == (
        5e-4,
        None,
        128,
    )
    assert smaf.recipe("paper").train.optimizer.momentum == 0.9
    assert student.refine.num_labels == 21


def test_patches_are_whole_cells_of_the_crop_and_differ() -> None:
    for scale in SCALES:
        sides = [l2g.fit_patch(scale, side) for side in (240, 280, 320, 360, 400)]
        assert len(set(sides)) == 5
        assert all(side % l2g.CELL[scale] == 0 for side in sides)
        recipe = l2g.recipe(scale)
        assert max(sides) <= recipe.train.augment.crop == l2g.CROP[scale]
        windows = place_windows(l2g.CROP[scale], recipe.method.patch_size, recipe.method.uniform_stride)
        assert len(windows) == 3


def test_replaced_checks_and_derives_again() -> None:
    made = cam.recipe()
    assert replace_settings(made, {}) == made
    assert replace_settings(made, {"method.window": 80, "segment": None}).method.window == 80
    with pytest.raises(UserError, match="windov"):
        replace_settings(made, {"method.windov": 80})
    with pytest.raises(UserError, match="no key 'methud'"):
        replace_settings(made, {"methud.window": 80})
    with pytest.raises(UserError, match="base"):
        replace_settings(smaf.recipe(), {"base": None})


def test_fusion_follows_the_method_unless_it_was_set() -> None:
    paper = l2g.recipe()
    logits = replace_settings(paper, {"method.map_form": "logits"})
    assert logits.localize.fusion == L2GConfig(map_form="logits").fusion() != paper.localize.fusion
    assert override(paper, ["method.map_form=logits"]).localize.fusion == logits.localize.fusion
    apart = replace_settings(paper, {"localize.fusion.reduce": "mean"})
    assert replace_settings(apart, {"method.map_form": "logits"}).localize.fusion.reduce == "mean"
    assert replace_settings(apart, {"method.map_form": "logits"}).localize.fusion.interpolation == "bilinear"
    over = override(smaf.recipe(), ["base.method={name: cam}"])
    assert over.base.localize.fusion == CAMConfig().fusion()
    assert replace_settings(smaf.recipe(), {"base": made_base()}).base.method.name == "cam"


def made_base() -> Recipe:
    """A whole recipe given as a base."""
    return cam.recipe()
