# SPDX-License-Identifier: Apache-2.0
"""What a setting declares it changes is what the digests of the steps say: every field is changed and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from wsss_ray.artifacts.store import Artifact, Step, Store
from wsss_ray.cluster.join import Machines
from wsss_ray.config import Config, Result, UserError, read_changes, select
from wsss_ray.data.manifest import DataSet, Manifest, SplitInfo
from wsss_ray.experiments.run import run_steps
from wsss_ray.experiments.settle import settle_recipe
from wsss_ray.recipe import Recipe, replace_settings, validate
from wsss_ray.stages.run import Run, Steps
from wsss_ray.studies import build_study, resolve

SPLIT = SplitInfo(num_images=4, digest="0" * 16, has_masks=True, has_saliency=True)
MANIFEST = Manifest(
    source="toy",
    classes=("a", "b", "c"),
    palette=((0, 0, 0),) * 4,
    splits={"train": SPLIT, "val": SPLIT},
    shards=(),
    num_images=8,
    has_masks=True,
    has_saliency=True,
)
INPUTS = ("data", "net.weights", "affinity.net.weights", "segment.net.weights", "base", "refine.labels")
"""What steps depend on by the digest of the thing itself."""
CHOICES = ("version", "scale", "method.name", "refine.name", "segment.network.name", "net.backbone", "method.profile")
"""What picks other settings as well."""


@dataclass(frozen=True)
class NamedSteps(Steps):
    """Names the artifact of every step without computing it."""

    def find_or_compute(self, title: str, step: Step, compute: Any) -> Artifact:
        artifact = Artifact(step.stage, step.digest, "", {"scores": {}})
        self.finished.append((title, artifact))
        return artifact


def digest_steps(recipe: Recipe) -> dict[str, str]:
    """Title of every step -> its digest."""
    steps = NamedSteps(Store("unused"))
    run_steps(Run(settle_recipe(recipe, MANIFEST), DataSet("", MANIFEST), steps, Machines(1, 0, 1, 1, 1, 1)))
    return {title: artifact.digest for title, artifact in steps.finished}


def list_settings(config: Config, prefix: str = "") -> Iterator[tuple[str, Result, Any, Any]]:
    """(key, what it changes, annotation, value) of every setting; nested ones that declare nothing give their own."""
    for name, field in type(config).model_fields.items():
        declared, value = read_changes(type(config), name), getattr(config, name)
        inner = isinstance(value, Config) and (declared is None or name in ("affinity", "segment", "refine"))
        if inner:
            yield from list_settings(value, f"{prefix}{name}.")
        elif declared is not None:
            yield prefix + name, declared, field.annotation, value


def other_values(annotation: Any, value: Any) -> list[Any]:
    """Values to try in place of one."""
    options = [annotation, *get_args(annotation)]
    literals = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    tried: list[Any] = [choice for choice in literals if choice != value]
    if isinstance(value, bool):
        tried.append(not value)
    elif isinstance(value, int):
        tried += [value + 1, value * 2, value - 1]
    elif isinstance(value, float):
        tried += [value / 2, value + 0.25, value + 1]
    elif isinstance(value, str):
        tried.append(f"{value}x")
    elif isinstance(value, tuple) and value:
        tried += [(*value, value[-1]), tuple(2 * one for one in value if not isinstance(one, str))]
    elif isinstance(value, Config):
        plain = value.model_dump(mode="json")
        tried += [{**plain, key: new} for key, one in plain.items() for new in other_values(type(one), one)]
    elif value is None:
        tried += [1, 0.5, {"name": "x"}, "x"]
    return tried


def change(recipe: Recipe, key: str, annotation: Any, value: Any) -> Recipe | None:
    """The recipe with another value for one key, None where none was found that makes a recipe."""
    for other in other_values(annotation, value):
        try:
            changed = replace_settings(recipe, {key: other})
            settle_recipe(changed, MANIFEST)
        except (UserError, ValidationError):
            continue
        if changed.model_dump() != recipe.model_dump():
            return changed
    return None


def expect_changed(key: str, what: Result) -> tuple[str, list[str]]:
    """(the first step that changes, those that do not)."""
    if what == "nothing":
        return "", ["train", "localize", "refine labels", "refine train", "refine", "segment", "predict"]
    part = key.partition(".")[0]
    if part == "affinity" or (part == "refine" and what == "weights"):
        return "refine train", ["train", "localize", "refine labels"]
    if part == "segment":
        return "segment", ["train", "localize", "refine"]
    if part == "predict":
        return "predict", ["train", "localize", "refine", "segment"]
    first = {"weights": "train", "maps": "localize", "masks": "refine", "scores": "score seeds"}[what]
    before = ["train", "localize", "refine labels", "refine train", "refine", "segment", "predict"]
    place = {"train": 0, "localize": 1, "refine": 4, "score seeds": 7}[first]
    return first, before[:place]


@pytest.mark.parametrize(
    ("refiner", "name"), [*(("irn", name) for name in ("cam", "eps", "l2g", "ktse", "smaf", "esol")), ("psa", "cam")]
)
def test_digests_follow_from_what_settings_declare(name: str, refiner: str) -> None:
    donor = resolve("ktse", "toy")
    if refiner == "psa":
        donor = replace_settings(donor, {"refine": {"name": "psa"}})
    recipe = replace_settings(resolve(name, "toy"), {"refine": donor.refine, "affinity": donor.affinity})
    before = digest_steps(recipe)
    tried = 0
    for key, what, annotation, value in list_settings(recipe):
        if key.startswith(INPUTS) or key in CHOICES or key.endswith(".name"):
            continue
        changed = change(recipe, key, annotation, value)
        if changed is None:
            continue
        after = digest_steps(changed)
        first, same = expect_changed(key, what)
        tried += 1
        if first and what != "scores":
            assert after[first] != before[first], f"{key} says {what}, but {first} stays the same"
        if what == "scores":
            assert any(after[title] != before[title] for title in after if title.startswith("score")), key
        for title in same:
            assert after[title] == before[title], f"{key} says {what}, but {title} changes"
    assert tried > 60


def test_single_stage_settings_count_too() -> None:
    recipe = resolve("wsfcn", "toy")
    before = digest_steps(recipe)
    for key, what, annotation, value in list_settings(recipe):
        changed = None if key.startswith(INPUTS) or key in CHOICES else change(recipe, key, annotation, value)
        if changed is not None and key.startswith("method.") and what == "weights":
            assert digest_steps(changed)["train"] != before["train"], key


def test_a_study_trains_the_cam_that_ktse_starts_from_once() -> None:
    rows = {row.name: row.recipe for row in build_study("overview.components").rows}
    cam, ktse = (digest_steps(replace_settings(rows[name], {"seed": 1})) for name in ("CAM", "KTSE"))
    assert ktse["base train"] == cam["train"]
    longer = digest_steps(replace_settings(rows["KTSE"], {"seed": 1, "base.train.epochs": 40}))
    assert longer["train"] != ktse["train"]


def test_clipped_and_unclipped_rows_share_their_trainings() -> None:
    steps = {row.name: digest_steps(row.recipe) for row in build_study("esol.clipping").rows}
    assert len({found["train"] for found in steps.values()}) == 3
    assert len({found["localize"] for found in steps.values()}) == 6


def test_how_maps_are_read_counts_where_training_scores_them() -> None:
    """Scales and flips do not: seeds are scored at a single one."""
    recipe = replace_settings(resolve("esol", "toy"), {"train.validate_seeds": 4, "train.validate_images": 0})
    before = digest_steps(recipe)["train"]
    for key, value in (("method.clip_at_inference", False), ("localize.stride", 8), ("localize.fusion.reduce", "mean")):
        assert digest_steps(replace_settings(recipe, {key: value}))["train"] != before, key
    for key, value in (("localize.scales", (1.0, 2.0)), ("localize.flip", False)):
        assert digest_steps(replace_settings(recipe, {key: value}))["train"] == before, key


def test_a_setting_that_says_nothing_is_found() -> None:
    class Careless(Config):
        size: int = 3

    with pytest.raises(TypeError, match="Careless.size: say what it changes"):
        select(Careless(), "weights")


def test_the_name_of_a_run_changes_no_result() -> None:
    recipe = resolve("cam", "toy")
    named = validate({**recipe.model_dump(mode="json"), "name": "other", "tags": {"a": "b"}}, "test")
    assert digest_steps(named) == digest_steps(recipe)
