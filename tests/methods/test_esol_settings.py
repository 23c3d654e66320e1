# SPDX-License-Identifier: Apache-2.0
"""ESOL's settings: defaults, what a phase does not read, and what two phases must share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.methods.contract import MIDDLE, Case, TinyBackbone, check_maps_settings, make_batch
from tests.methods.esol_phases import plan_phases
from wsss_ray.config import UserError
from wsss_ray.methods.esol.network import ESOLConfig


def test_defaults() -> None:
    config = ESOLConfig()
    assert (config.kernel, config.activation, config.conv2, config.init) == (3, "relu", "all", "torch")
    assert (config.extra_lr_multiplier, config.offset_lr_multiplier, config.offset_weight_decay) == (10, 1, None)
    assert (config.trains, config.alpha, config.beta) == (("offsets",), 0.01, 0.15)
    assert (config.clip_max, config.clip_detach, config.clip_at_inference) == ("channel", True, True)
    assert (config.gamma, config.mu, config.area_map, config.area_classes) == (1, 1, "sigmoid", "all")


@pytest.mark.parametrize("phase", ["classifier", "shrinkage"])
def test_alpha_belongs_to_the_expansion(phase: Any) -> None:
    with pytest.raises(ValidationError, match=f"the {phase} does not read alpha: .*base.method.alpha"):
        ESOLConfig(phase=phase, alpha=0.1)
    assert ESOLConfig(phase=phase, alpha=0.01).alpha == 0.01
    assert [config.alpha for config in plan_phases(alpha=0.1)] == [0.01, 0.1, 0.01]


@pytest.mark.parametrize("setting", [{"beta": 0.3}, {"clip_max": "image"}])
def test_both_later_phases_clip_alike(setting: dict[str, Any]) -> None:
    def after(**own: Any) -> Any:
        classifier = ESOLConfig().build(TinyBackbone(), 3)
        expansion = ESOLConfig(phase="expansion", **own).build(TinyBackbone(), 3, classifier)
        return ESOLConfig(phase="shrinkage", **setting).build(TinyBackbone(), 3, expansion)

    with pytest.raises(UserError, match=f"method.{next(iter(setting))} is .* give every phase the same"):
        after()
    assert after(**setting).config.beta == setting.get("beta", 0.15)
    # The classifier clips nothing, so that a shrinkage without an expansion is free.
    alone = ESOLConfig(phase="shrinkage", expansion_sampler=False, **setting)
    assert alone.build(TinyBackbone(), 3, ESOLConfig().build(TinyBackbone(), 3))


def test_the_classifiers_logits_are_clipped_as_in_training() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 48, 48)
    outputs = []
    for on in (True, False):
        torch.manual_seed(1)
        base = ESOLConfig().build(TinyBackbone(), 3)
        net: Any = ESOLConfig(phase="expansion", clip_at_inference=on).build(TinyBackbone(), 3, base).eval()
        outputs.append((net.logits(images), net.maps(images)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.equal(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("phase", ["expansion", "shrinkage"])
def test_how_maps_are_read_trains_nothing_in_the_later_phases(phase: Any) -> None:
    base = ESOLConfig()
    if phase == "shrinkage":
        check_maps_settings(Case(ESOLConfig(phase=phase, expansion_sampler=False), base), 3)
    else:
        check_maps_settings(Case(ESOLConfig(phase=phase), base), 3)


def test_clipping_is_all_that_the_clipped_classifier_adds() -> None:
    """Its maps are those of an expansion whose offsets have not moved, and its logits and loss those of training."""
    images, batch = torch.randn(2, 3, 48, 48), make_batch(3)

    def build(**settings: Any) -> Any:
        torch.manual_seed(1)
        return ESOLConfig(init="identity", **settings).build(TinyBackbone(), 3)

    plain, clipped = build().eval(), build(clip_at_inference="always").eval()
    still = ESOLConfig(phase="expansion", init="identity").build(TinyBackbone(), 3, build()).eval()
    with torch.no_grad():
        assert not torch.equal(plain.maps(images), clipped.maps(images))
        torch.testing.assert_close(clipped.maps(images), still.maps(images))
        assert torch.equal(plain.logits(images), clipped.logits(images))
        assert torch.equal(plain.loss(batch, MIDDLE)["cls"], clipped.loss(batch, MIDDLE)["cls"])
    off = build(clip_at_inference=False).eval()
    with torch.no_grad():
        assert torch.equal(plain.maps(images), off.maps(images)), "the classifier is not clipped unless 'always'"


def test_advice_names_the_keys_of_the_recipe() -> None:
    left = [{"monitor/outside": 0.5}]
    expansion, shrinkage = (
        ESOLConfig.model_validate({"phase": phase}).warning(left) for phase in ("expansion", "shrinkage")
    )
    assert str(expansion).endswith(
        "lower alpha times the learning rate (base.method.alpha, base.train.optimizer.lr in 'esol')"
    )
    assert str(shrinkage).endswith("lower the learning rate (train.optimizer.lr)")
