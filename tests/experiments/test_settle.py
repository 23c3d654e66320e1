# SPDX-License-Identifier: Apache-2.0
"""What a step's digest holds, what is refused before anything trains, and what a training's epochs warn of."""

from __future__ import annotations

from typing import Any

import pytest

from wsss_ray.artifacts.network import LocalizerSpec
from wsss_ray.config import UserError, select
from wsss_ray.data.manifest import Manifest, SplitInfo
from wsss_ray.experiments.log import warn_of
from wsss_ray.experiments.settle import settle_recipe
from wsss_ray.methods.esol.network import ESOLConfig
from wsss_ray.recipe import Localization, override, replace_settings, take_localizer
from wsss_ray.studies import esol, resolve


def trainings(part: Localization) -> list[dict[str, Any]]:
    """What the digest of every training of a localizer holds, the last first."""
    return [LocalizerSpec(num_classes=3, localization=take_localizer(one)).settings for one in part.chain]


def epoch(offset: float, **more: Any) -> dict[str, Any]:
    return {"losses": {"monitor/offset": offset, "monitor/outside": 0.0}, **more}


def test_falling_recall_warns_where_seeds_are_scored() -> None:
    lengths, recalls = (1.5, 2.0, 2.5), (0.6, 0.5, 0.4)
    scored = [epoch(length, seed_recall=recall) for length, recall in zip(lengths, recalls, strict=True)]
    assert "foreground recall falls" in str(warn_of(ESOLConfig(phase="expansion"), scored))
    rising = [epoch(length, seed_recall=recall) for length, recall in zip(lengths, recalls[::-1], strict=True)]
    assert warn_of(ESOLConfig(phase="expansion"), rising) is None
    assert warn_of(ESOLConfig(phase="expansion"), [epoch(length) for length in lengths]) is None


def test_clipping_at_inference_makes_other_maps_of_the_same_weights() -> None:
    keys = ("base.method.clip_at_inference", "method.clip_at_inference")
    on, off = (replace_settings(esol.recipe("toy"), dict.fromkeys(keys, value)) for value in (True, False))
    assert trainings(on) == trainings(off)
    assert select(on.method, "maps") == {"clip_at_inference": True}
    assert on.method != off.method


def test_a_base_that_does_not_fit_is_refused_before_anything_trains() -> None:
    split = SplitInfo(num_images=4, digest="0" * 16, has_masks=True, has_saliency=False)
    manifest = Manifest(
        source="toy",
        classes=("a", "b", "c"),
        palette=((0, 0, 0),) * 4,
        splits={"train": split, "val": split},
        shards=(),
        num_images=8,
        has_masks=True,
        has_saliency=False,
    )
    made = resolve("esol", "toy")
    assert settle_recipe(made, manifest).data.train_split == "train"
    with pytest.raises(UserError, match="method.beta is 0.3 but base.method.beta is 0.15: give every phase the same"):
        settle_recipe(override(made, ["method.beta=0.3"]), manifest)
    assert settle_recipe(override(made, ["method.beta=0.3", "base.method.beta=0.3"]), manifest)
    with pytest.raises(UserError, match="base.method.alpha"):
        override(made, ["method.alpha=0.1"])
