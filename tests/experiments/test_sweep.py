# SPDX-License-Identifier: Apache-2.0
"""Sweeps without Ray: the space, its grid and samples, plans, kept outcomes, table and figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from wsss_ray.config import UserError
from wsss_ray.experiments.sweep import Plan, SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_outcomes import (
    Outcome,
    SweepFolder,
    count_draws,
    find_best,
    group_jobs,
    group_lines,
    merge_outcomes,
)
from wsss_ray.experiments.sweep_search import build_searcher, fold_seed
from wsss_ray.experiments.sweep_space import (
    Axis,
    build_grid,
    count_points,
    name_point,
    parse_axis,
    parse_space,
    sample_points,
)
from wsss_ray.experiments.sweep_table import draw_figure, format_rows, list_headings
from wsss_ray.recipe import Recipe
from wsss_ray.reports.figure import COLOURS, encode_figure
from wsss_ray.score.names import read_miou
from wsss_ray.studies import resolve


def plan(recipe: Recipe, axes: tuple[Axis, ...], **options: Any) -> Plan:
    """A planned sweep."""
    return plan_sweep(recipe, axes, SweepOptions(**options))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("method.num_views=1,2,4", (1, 2, 4)),
        ("a=240:400:40", (240, 280, 320, 360, 400)),
        ("a=0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("a=1e-5,0.01", (1e-5, 0.01)),
        ("a=[1.0],[0.5,1.0]", ([1.0], [0.5, 1.0])),
        ("a=true,null,crf", (True, None, "crf")),
        ("a={name: seeds, threshold: 0.2}", ({"name": "seeds", "threshold": 0.2},)),
    ],
)
def test_axis_lists_its_values(text: str, values: tuple[Any, ...]) -> None:
    assert parse_axis(text).values == values


def test_stepped_values_do_not_drift() -> None:
    values = parse_axis("score.background=0:0.99:0.01").values
    assert len(values) == 100
    assert values[29] == 0.29
    assert values[58] == 0.58


def test_interval_keeps_its_kind() -> None:
    assert parse_axis("a=1..9") == Axis("a", (), 1, 9, whole=True)
    assert parse_axis("a=1e-5..1e-2:log") == Axis("a", (), 1e-5, 1e-2, log=True)


BAD = ["a", "a=", "=1", "a=[1", "a=1,1", "a=5..1", "a=0..1:log", "a=9:1:1", "a=1:9:0"]
NO_SETTINGS = ["a=2024-01-01", "a=1,.nan", "a=.inf", "a=1e999,1", "a=0..1e999", "a=[.inf],[1.0]", "a={1: x, b: y}"]


@pytest.mark.parametrize("text", BAD + NO_SETTINGS)
def test_bad_axis_is_one_line_with_the_fix(text: str) -> None:
    with pytest.raises(UserError, match="--over") as found:
        parse_axis(text)
    assert "\n" not in str(found.value)


def test_date_in_quotes_is_a_word() -> None:
    assert parse_axis("a='2024-01-01',b").values == ("2024-01-01", "b")


def test_size_of_a_space_is_known_where_it_is_finite() -> None:
    assert count_points(parse_space(["a=1,2,4", "b=3..6"])) == 12
    assert count_points(parse_space(["a=1,2,4", "b=3.0..6.0"])) is None


def test_key_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        parse_space(["a=1", "a=2"])


def test_grid_varies_the_last_axis_fastest() -> None:
    points = build_grid(parse_space(["a=1,2", "b=x,y"]))
    assert [tuple(point.values()) for point in points] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_grid_refuses_intervals_and_floods() -> None:
    with pytest.raises(UserError, match="listed values"):
        build_grid(parse_space(["a=1..9"]))
    with pytest.raises(UserError, match="limit"):
        build_grid(parse_space(["a=1:200:1", "b=1:200:1"]))


def test_longer_sample_begins_with_the_shorter_one() -> None:
    axes = parse_space(["a=1..1000", "b=1e-6..1:log"])
    short, long = sample_points(axes, 5, seed=3), sample_points(axes, 40, seed=3)
    assert long[:5] == short
    assert sample_points(axes, 5, seed=4) != short
    logs = np.log10([point["b"] for point in long])
    assert -6 <= logs.min() < -3.5
    assert -2.5 < logs.max() <= 0


def test_sample_of_a_small_grid_takes_every_point_once() -> None:
    points = sample_points(parse_space(["a=1,2", "b=1,2"]), 50, seed=0)
    assert sorted(tuple(point.values()) for point in points) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_names_keep_apart_what_their_last_parts_confuse() -> None:
    assert name_point({"method.num_views": 4, "train.epochs": 2}) == "num_views=4 epochs=2"
    assert name_point({"train.epochs": 4, "segment.train.epochs": 2}) == "train.epochs=4 segment.train.epochs=2"


def test_same_command_finds_its_folder_and_another_does_not() -> None:
    recipe, axes = resolve("cam"), parse_space(["train.epochs=1,2"])
    name = plan(recipe, axes).name
    assert plan(recipe, axes).name == name
    more_workers = recipe.model_copy(update={"resources": recipe.resources.model_copy(update={"train_workers": 2})})
    assert plan(more_workers, axes).name == name
    others = [
        plan(recipe, axes, num_seeds=2),
        plan(recipe, parse_space(["train.epochs=1,3"])),
        plan(recipe, axes, metric="seeds"),
        plan(recipe, axes, stopping=True),
    ]
    assert len({name, *(other.name for other in others)}) == 5


def test_the_former_name_of_a_metric_is_the_same_sweep() -> None:
    recipe, axes = resolve("cam"), parse_space(["train.epochs=1,2"])
    plan, former = (plan_sweep(recipe, axes, SweepOptions(metric=name)) for name in ("cam.fixed", "seeds.fixed"))
    assert plan == former
    assert plan.name == former.name


def test_plan_refuses_before_anything_starts() -> None:
    recipe, axes = resolve("cam"), parse_space(["train.epochs=1,2"])
    for bad, words in (
        ({"search": "best"}, "grid, random or tpe"),
        ({"trials": 3}, "every point"),
        ({"metric": "cam.crf"}, r"cam\[\.best\|fixed"),
    ):
        with pytest.raises(UserError, match=words):
            plan(recipe, axes, **bad)
    with pytest.raises(UserError, match=r"^--over train\.epoch: unknown key, did you mean train\.epochs\?$"):
        plan(recipe, parse_space(["train.epoch=1,2"]))
    with pytest.raises(UserError, match=r"^--over foo: unknown key, 'wsss show RECIPE' lists the known ones$"):
        plan(recipe, parse_space(["foo=1,2", "train.epochs=1"]))
    with pytest.raises(UserError, match=r"refine\.threshold"):
        plan(recipe, parse_space(["refine.threshold=7,8"]))
    with pytest.raises(UserError, match="--seeds"):
        plan(recipe, parse_space(["seed=1,2"]))


@pytest.mark.parametrize(
    ("over", "metric", "left"),
    [
        (["score.background=0.1,0.2"], "seeds.fixed", set()),
        (["localize.scales=[1.0],[0.5]"], "seeds", set()),
        (["score.background=0.1,0.2", "refine.crf=psa,irn"], "masks", {"refine"}),
        (["refine.threshold=0.1,0.2"], "masks", {"refine"}),
        (["train.epochs=1,2", "score.background=0.1,0.2"], "seeds.fixed", set()),
        (["train.epochs=1,2"], "segmentation", {"refine", "segment"}),
        (["predict.flip=true,false", "localize.flip=true,false"], "segmentation", {"refine", "segment"}),
    ],
)
def test_nothing_runs_behind_what_is_asked_for(over: list[str], metric: str, left: set[str]) -> None:
    made = plan(resolve("cam"), parse_space(over))
    assert made.metric == metric
    assert {name for name in ("refine", "segment") if getattr(made.recipe, name) is not None} == left


def test_what_varies_runs_whatever_is_asked_for() -> None:
    recipe = resolve("cam")
    for over, left in (("refine.crf=psa,irn", {"refine"}), ("segment.train.epochs=1,2", {"refine", "segment"})):
        made = plan(recipe, parse_space([over]), metric="seeds.fixed")
        assert {name for name in ("refine", "segment") if getattr(made.recipe, name) is not None} == left


def test_single_stage_methods_are_swept_whole() -> None:
    made = plan(resolve("ssss"), parse_space(["score.background=0.1,0.2"]), metric="seeds")
    assert made.recipe.predicts
    assert made.recipe == resolve("ssss")


def test_one_good_point_is_enough_for_a_plan() -> None:
    made = plan(resolve("cam"), parse_space(["train.epochs=-1,2"]))
    assert [point["train.epochs"] for point in made.list_points()] == [-1, 2]


def test_masks_are_read_in_training_only_when_early_stopping_asks() -> None:
    recipe, axes = resolve("cam"), parse_space(["train.epochs=1,2"])
    assert plan(recipe, axes).recipe.train.validate_seeds == 0
    assert plan(recipe, axes, stopping=True).recipe.train.validate_seeds > 0


def test_thresholds_share_a_job_and_done_points_have_none() -> None:
    points = build_grid(parse_space(["train.epochs=1,2", "score.background=0.1,0.2,0.3"]))
    done = [Outcome(points[0], 0, "finished"), Outcome(points[1], 0, "failed"), Outcome(points[3], 1, "stopped")]
    left = group_jobs(points, (0, 1), done)
    assert [len(job) for job in left] == [3, 2, 3, 2]
    assert all(len({(point["train.epochs"], seed) for point, seed in job}) == 1 for job in left)


def test_metric_is_read_from_the_usual_variant() -> None:
    scores: dict[str, Any] = {
        "seeds": {"fixed": {"miou": 0.3}, "best": {"miou": 0.4}},
        "segmentation": {"single_scale": {"miou": 0.5}, "multi_scale": {"miou": 0.6}},
    }
    assert read_miou(scores, "seeds") == 0.4
    assert read_miou(scores, "seeds.fixed") == 0.3
    assert read_miou(scores, "segmentation") == 0.6
    assert read_miou(scores, "masks") is None


def test_state_comes_back_from_disk(tmp_path: Path) -> None:
    made = plan(resolve("cam"), parse_space(["localize.scales=[1.0],[0.5,1.0]"]))
    outcomes = [Outcome(point, 0, "finished", 0.5, computed=["train"]) for point in made.list_points()]
    folder = SweepFolder(str(tmp_path), "data")
    assert folder.load() == ([], None)
    folder.save(made, outcomes, "run")
    assert folder.load() == (outcomes, "run")
    assert group_jobs(made.list_points(), made.seeds, folder.load()[0]) == []


def test_outcomes_of_other_data_or_steps_do_not_count(tmp_path: Path) -> None:
    made = plan(resolve("cam"), parse_space(["train.epochs=1,2"]))
    outcomes = [Outcome(point, 0, "finished", 0.5) for point in made.list_points()]
    SweepFolder(str(tmp_path), "data").save(made, outcomes, "run")
    assert SweepFolder(str(tmp_path), "other data").load() == ([], None)


def test_values_stay_under_their_columns_after_a_reload(tmp_path: Path) -> None:
    made = plan(resolve("cam"), parse_space(["train.epochs=1,2", "score.background=0.3"]))
    first = [Outcome(point, 0, "finished", 0.5) for point in made.list_points()]
    folder = SweepFolder(str(tmp_path), "data")
    folder.save(made, first, "run")
    loaded, _ = folder.load()
    assert list_headings(made.axes, made.metric)[:2] == ["epochs", "background"]
    assert [cells[:2] for cells in format_rows(group_lines(loaded), made.axes)] == [["1", "0.3"], ["2", "0.3"]]
    assert [name_point(one.point) for one in loaded] == [name_point(one.point) for one in first]


def test_point_drawn_twice_is_one_outcome_and_two_draws() -> None:
    first = Outcome({"a": 1}, 0, "finished", 0.4, computed=["train"])
    again = Outcome({"a": 1}, 0, "finished", 0.4, reused=["train"])
    found = merge_outcomes(merge_outcomes([first, Outcome({"a": 2}, 0, "finished", 0.5)], [again]), [again])
    assert [(one.point["a"], one.computed, one.draws) for one in found] == [(1, ["train"], 3), (2, [], 1)]
    assert group_lines(found)[0].values == (40.0,)
    assert group_lines(found)[0].std is None
    assert count_draws(found) == 4
    retried = merge_outcomes([Outcome({"a": 1}, 0, "failed")], [first])
    assert [one.state for one in retried] == ["finished"]


def test_draws_of_several_seeds_count_once() -> None:
    seeds = [Outcome({"a": 1}, seed, "finished", 0.4) for seed in (0, 1, 2)]
    assert count_draws(seeds) == 1
    assert count_draws(merge_outcomes(seeds, seeds)) == 2


def test_tpe_draws_no_more_than_there_is() -> None:
    recipe = resolve("cam")
    assert plan(recipe, parse_space(["train.epochs=1,2,3"]), search="tpe").count_draws() == 3
    assert plan(recipe, parse_space(["train.epochs=1,2,3"]), search="tpe", trials=2).count_draws() == 2
    assert plan(recipe, parse_space(["score.background=0.1..0.5"]), search="tpe", trials=7).count_draws() == 7


@pytest.mark.parametrize("seed", [7, 2**32 - 1, 2**32, 2**63 - 1])
def test_tpe_takes_any_seed(seed: int) -> None:
    pytest.importorskip("optuna")
    recipe = resolve("cam").model_copy(update={"seed": seed})
    searcher = build_searcher(plan(recipe, (parse_axis("train.epochs=1,2,3"),), search="tpe", trials=3), [])
    assert searcher.suggest("first")["over"]["train.epochs"] in (0, 1, 2)
    assert seed >= 2**32 or fold_seed(seed) == seed
    assert 0 <= fold_seed(seed) < 2**32
    assert fold_seed(2**32) != fold_seed(2**63 - 1)


def test_early_stopping_refuses_several_seeds() -> None:
    with pytest.raises(UserError, match="--asha with --seeds 3.*without --asha"):
        plan(resolve("cam"), parse_space(["train.epochs=1,2"]), num_seeds=3, stopping=True)


def test_table_has_spread_best_and_reasons() -> None:
    values = {1: (0.40, 0.44), 2: (0.5, 0.5)}
    outcomes = [
        Outcome({"a.b": k}, s, "finished", v, computed=["x"]) for k, vs in values.items() for s, v in enumerate(vs)
    ]
    outcomes.append(Outcome({"a.b": 3}, 0, "failed", reason="too large"))
    found = group_lines(outcomes)
    assert found[0].mean == pytest.approx(42)
    assert found[0].std == pytest.approx(2.8284, abs=1e-4)
    assert find_best(found) is found[1]
    texts = format_rows(found, (Axis("a.b"),))
    assert texts[0][:3] == ["1", "42.0", "2.8 (2)"]
    assert texts[2][1] == "-"
    assert texts[2][-1] == "failed: too large"


@pytest.mark.parametrize(
    "space", [["train.epochs=1,2,4"], ["train.epochs=1,2", "refine.threshold=0.1,0.2"], ["localize.flip=true,false"]]
)
def test_figure_has_a_dot_for_every_point(space: list[str]) -> None:
    """A dot of its line's colour where the chart puts the mean of each point."""
    made = plan(resolve("cam"), parse_space(space))
    outcomes = [
        Outcome(p, s, "finished", 0.3 + 0.01 * k + 0.02 * s) for k, p in enumerate(made.list_points()) for s in (0, 1)
    ]
    drawn = draw_figure(made, group_lines(outcomes))
    image = Image.open(io.BytesIO(encode_figure(drawn))).convert("RGB")
    (plot,) = drawn.axes
    means = []
    for bars, colour in zip(plot.containers, COLOURS, strict=False):
        line, caps, _ = bars
        assert len(caps) == 2, "the spread over seeds"
        for x, y in line.get_xydata():
            means.append(y)
            across, up = plot.transData.transform((x, y))
            assert image.getpixel((round(across), round(image.height - up))) == ImageColor.getrgb(colour)
    assert sorted(means) == pytest.approx([31 + k for k in range(len(made.list_points()))])
    empty = Image.open(io.BytesIO(encode_figure(draw_figure(made, [])))).convert("RGB")
    assert empty.size == image.size
    wanted = {ImageColor.getrgb(colour) for colour in COLOURS}
    assert wanted.isdisjoint(colour for _, colour in empty.getcolors(10**6) or ())
