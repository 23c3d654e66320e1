# SPDX-License-Identifier: Apache-2.0
"""ESOL: what each phase may change, which way its loss points, clipping, area, ablations, runaway."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.methods.contract import MIDDLE, Case, TinyBackbone, check_localizer, make_batch
from tests.methods.esol_phases import Component, plan_phases
from wsss_ray.config import UserError
from wsss_ray.contracts import Batch
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.esol.losses import area_loss, clip_features, present_loss
from wsss_ray.methods.esol.network import ESOL, ESOLConfig
from wsss_ray.methods.layers import classification_loss
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.deform import DeformConv2d


class Chain(ESOLConfig):
    """A base that brings its own base along."""

    def build(self, backbone: Backbone, num_classes: int, base: torch.nn.Module | None = None) -> torch.nn.Module:
        before = ESOLConfig(**{**self.model_dump(), "phase": "classifier"}).build(copy.deepcopy(backbone), num_classes)
        return super().build(backbone, num_classes, before)


def chain(*configs: ESOLConfig, num_classes: int = 3, seed: int = 0) -> list[Any]:
    """Every phase on its own copy of the one before, with features and classifier large enough that offsets matter."""
    torch.manual_seed(seed)
    nets: list[Any] = []
    for config in configs:
        base = copy.deepcopy(nets[-1]) if nets else None
        nets.append(config.build(TinyBackbone(), num_classes, base))
        if base is None:
            with torch.no_grad():
                nets[0].head.weight.mul_(30)
                nets[0].backbone.out.weight.mul_(10)
    return nets


def all_phases(**settings: Any) -> list[Any]:
    return chain(*plan_phases(**settings))


def descend(net: ESOL, batch: Batch, rate: float, steps: int = 5) -> list[dict[str, float]]:
    """Plain gradient descent on one batch; what the loss said before every step and after the last."""
    net.train()
    optimizer = torch.optim.SGD([{"params": g.params, "lr": rate * g.lr_multiplier} for g in net.param_groups()])
    said = []
    for step in range(steps + 1):
        parts = net.loss(batch, MIDDLE)
        said.append({name: part.item() for name, part in parts.items()})
        if step == steps:
            break
        optimizer.zero_grad()
        torch.stack([part for name, part in parts.items() if not name.startswith("monitor/")]).sum().backward()
        optimizer.step()
    return said


def state(net: ESOL) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize(
    "config",
    [
        ESOLConfig(kernel=1, channels=5, bias=False, init="identity"),
        ESOLConfig(activation="none", conv2="late"),
    ],
)
def test_contract_of_the_classifier(config: ESOLConfig) -> None:
    check_localizer(Case(config))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": 1, "channels": 6, "conv2": "skip"},
        {"activation": "none", "clip_max": "image", "clip_detach": False, "clip_at_inference": False},
        {"trains": ("offsets", "conv1", "classifier")},
    ],
)
def test_contract_of_the_expansion(settings: dict[str, Any]) -> None:
    config = ESOLConfig(phase="expansion", **settings)
    check_localizer(Case(config, ESOLConfig(**{**settings, "phase": "classifier"})))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conv2": "late", "area_map": "normalized"},
        {"area_classes": "present", "beta": 1.0, "trains": ("offsets", "conv2")},
    ],
)
def test_contract_of_the_shrinkage(settings: dict[str, Any]) -> None:
    config = ESOLConfig(phase="shrinkage", **settings)
    base = Chain(**{**settings, "phase": "expansion", "trains": ("offsets",)})
    check_localizer(Case(config, base))


def test_zero_offsets_are_the_classifier() -> None:  # T25
    for settings in ({}, {"kernel": 1, "channels": 4}):
        classifier, expansion, shrinkage = all_phases(beta=1.0, **settings)
        images = torch.randn(2, 3, 40, 56)
        expected = classifier.eval().evidence(images)
        assert expected.std() > 1e-3
        for later in (expansion, shrinkage):
            assert torch.allclose(later.eval().evidence(images), expected, atol=1e-5)
            assert torch.allclose(later.logits(images), classifier.logits(images), atol=1e-5)


def test_expansion_moves_its_offsets_alone_and_raises_the_loss() -> None:  # T26
    net = all_phases()[1]
    before = state(net)
    said = descend(net, make_batch(3), rate=100.0)
    assert said[0]["monitor/offset"] == 0 < said[-1]["monitor/offset"]
    assert said[-1]["monitor/bce"] > said[0]["monitor/bce"] + 1e-3
    assert said[-1]["inverse"] == pytest.approx(-0.01 * said[-1]["monitor/bce"])
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"conv1.offset.weight", "conv1.offset.bias"}
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert names == {"conv1.offset.weight", "conv1.offset.bias"}


def test_shrinkage_moves_its_own_offsets_alone_and_lowers_the_loss() -> None:  # T26
    classifier, expansion, _ = all_phases()
    descend(expansion, make_batch(3), rate=100.0)
    net: Any = ESOLConfig(phase="shrinkage").build(TinyBackbone(), 3, expansion)
    before = state(net)
    said = descend(net, make_batch(3), rate=10.0)
    assert said[-1]["cls"] + said[-1]["area"] < said[0]["cls"] + said[0]["area"] - 1e-4
    assert said[0]["monitor/offset"] == 0 < said[-1]["monitor/offset"]
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"conv2.offset.weight", "conv2.offset.bias"}
    assert before["conv1.offset.weight"].abs().sum() > 0


def test_later_phases_keep_the_backbone_still() -> None:
    # The backbone drops channels in train mode; a phase that only samples fixed features must not see that.
    classifier, *later = all_phases()
    batch = make_batch(3)
    assert len({classifier.train().loss(batch, MIDDLE)["cls"].item() for _ in range(4)}) > 1
    for net in later:
        net.train()
        assert net.training
        assert not any(part.training for part in net.backbone.modules())
        assert len({net.loss(batch, MIDDLE)["monitor/bce"].item() for _ in range(4)}) == 1
        sum(part for name, part in net.loss(batch, MIDDLE).items() if "monitor" not in name).backward()
        assert all(p.grad is None for p in net.backbone.parameters())


def test_clip_by_hand() -> None:  # T27
    row = torch.tensor([1.0, 0.2, 0.1, 0.0])
    features = torch.stack([row, 10 * row]).view(1, 2, 2, 2)
    clipped = clip_features(features, 0.15, "channel", True)
    assert torch.allclose(clipped[0, 0].flatten(), torch.tensor([0.15, 0.15, 0.1, 0.0]))
    assert torch.allclose(clipped[0, 1], 10 * clipped[0, 0])
    whole = clip_features(features, 0.15, "image", True)
    assert torch.allclose(whole[0], features[0].clamp(max=1.5))
    assert torch.equal(clip_features(features, 1.0, "channel", True), features)
    together = clip_features(torch.cat([features, 100 * features]), 0.15, "channel", True)
    assert torch.equal(together[:1], clipped)


def test_clip_gradient() -> None:
    # Two of four places are cut: with the maximum a constant they get nothing, else the peak gets 0.15 for each.
    for detach, expected in ((True, [0.0, 0.0, 1.0, 1.0]), (False, [0.3, 0.0, 1.0, 1.0])):
        row = torch.tensor([1.0, 0.2, 0.1, 0.0], requires_grad=True)
        clip_features(row.view(1, 1, 2, 2), 0.15, "channel", detach).sum().backward()
        assert row.grad is not None
        assert torch.allclose(row.grad, torch.tensor(expected))


def test_expansion_gradient_is_minus_alpha_times_the_plain_one() -> None:  # T28
    # A power of two, so that scaling does not round.
    net = chain(ESOLConfig(), ESOLConfig(phase="expansion", alpha=2**-7))[1]
    batch, offset = make_batch(3), net.conv1.offset.weight
    (ours,) = torch.autograd.grad(net.loss(batch, MIDDLE)["inverse"], offset)
    logits = net.eval().logits(batch.image)
    (plain,) = torch.autograd.grad(classification_loss(logits, batch.labels), offset)
    assert plain.abs().sum() > 0
    assert torch.equal(ours, -(2**-7) * plain)


@pytest.mark.parametrize("gamma", [1.0, 0.1])
def test_an_unsure_classifier_lifts_what_the_area_lowers(gamma: float) -> None:
    """Both terms of Eq. 6 act on a score alike: sigmoid'(s) of its area, less gamma (1 - sigmoid(z)) of its logit."""
    torch.manual_seed(0)
    scores = (3 * torch.randn(1, 2, 4, 5)).requires_grad_()
    with torch.no_grad():
        scores += 0.2 - scores.mean(dim=(2, 3), keepdim=True)  # both logits are 0.2
    labels = torch.ones(1, 2)
    (
        area_loss(scores, labels, "sigmoid", "all") + gamma * classification_loss(scores.mean(dim=(2, 3)), labels)
    ).backward()
    assert scores.grad is not None
    share = torch.sigmoid(scores.detach())
    pull = share * (1 - share) - gamma * (1 - torch.sigmoid(torch.tensor(0.2)))
    assert torch.allclose(scores.grad, pull / scores.numel(), atol=1e-7)
    assert bool((scores.grad < 0).all()) == (gamma == 1)


def test_area_loss_by_hand() -> None:  # T29
    scores = torch.zeros(2, 3, 4, 4, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    loss = area_loss(scores, labels, "sigmoid", "all")
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    # Present and absent alike are pushed down: sigma' / (B C h w) = 0.25 / 96.
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.full_like(scores, 0.25 / 96))
    extreme = torch.tensor([50.0, -50.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert area_loss(extreme, labels, "sigmoid", "all").item() == pytest.approx((1 + 0 + 0.5) / 3)
    # Image 1 has class 0 (area 1), image 2 classes 1 and 2 (0 and 0.5): mean of 1 and 0.25.
    assert area_loss(extreme, labels, "sigmoid", "present").item() == pytest.approx(0.625)
    ramp = torch.tensor([4.0, 2.0, -8.0, 0.0]).view(1, 1, 2, 2)
    assert area_loss(ramp, labels[:1, :1], "normalized", "all").item() == pytest.approx((1 + 0.5) / 4, abs=1e-5)
    assert area_loss(ramp, torch.zeros(1, 1), "sigmoid", "present").item() == 0


def test_half_precision_keeps_the_loss_whole() -> None:
    for net in all_phases():
        with torch.autocast("cpu", torch.bfloat16):
            parts = net.loss(make_batch(3), MIDDLE)
        assert all(part.dtype == torch.float32 and torch.isfinite(part) for part in parts.values())


def test_present_loss_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, 5.0], [2.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert present_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    assert present_loss(logits, torch.zeros(2, 2)).item() == 0


def test_only_the_product_of_alpha_and_rate_matters() -> None:  # T30
    ends = []
    for alpha, rate in ((0.01, 10.0), (0.001, 100.0), (0.01, 100.0)):
        net = chain(ESOLConfig(), ESOLConfig(phase="expansion", alpha=alpha))[1]
        descend(net, make_batch(3), rate, steps=3)
        ends.append(net.state_dict()["conv1.offset.weight"])
    assert ends[0].abs().max() > 1e-3
    assert torch.allclose(ends[0], ends[1], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(ends[0], ends[2], rtol=1e-1)


def test_weights_of_the_loss_parts() -> None:
    expansion = all_phases()[1]
    plain: Any = ESOLConfig(phase="shrinkage").build(TinyBackbone(), 3, copy.deepcopy(expansion))
    weighted: Any = ESOLConfig(phase="shrinkage", gamma=0.5, mu=0.1).build(TinyBackbone(), 3, copy.deepcopy(expansion))
    batch = make_batch(3)
    ours, theirs = (plain.loss(batch, MIDDLE), weighted.loss(batch, MIDDLE))
    assert theirs["cls"].item() == pytest.approx(0.5 * ours["cls"].item())
    assert theirs["area"].item() == pytest.approx(0.1 * ours["area"].item())
    assert theirs["monitor/area"].item() == pytest.approx(ours["area"].item())
    assert 0 < ours["area"].item() < 1


def test_clip_stands_after_the_expansion_sampler_and_may_be_off_at_inference() -> None:
    images = torch.randn(2, 3, 48, 48)
    nets = {on: all_phases(clip_at_inference=on)[1].eval() for on in (True, False)}
    unclipped = all_phases(beta=1.0)[1].eval()
    assert torch.equal(nets[False].maps(images), unclipped.maps(images))
    assert not torch.allclose(nets[True].evidence(images), unclipped.evidence(images), atol=1e-5)
    net = nets[True]
    features = net.backbone(images)["out"]
    hidden = clip_features(net.conv1(features).relu(), 0.15, "channel", True)
    assert net.conv2 is not None
    assert torch.equal(net.evidence(images), net.head(net.conv2(hidden).relu()))
    # The training loss is clipped whatever inference does.
    batch = make_batch(3)
    said = [net.loss(batch, MIDDLE)["monitor/bce"].item() for net in nets.values()]
    assert said[0] == said[1] != pytest.approx(unclipped.loss(batch, MIDDLE)["monitor/bce"].item(), abs=1e-6)


def test_the_classifier_is_not_clipped() -> None:
    images, batch = torch.randn(2, 3, 48, 48), make_batch(3)
    clipped, plain = (chain(ESOLConfig(beta=beta))[0].eval() for beta in (0.15, 1.0))
    assert torch.equal(clipped.evidence(images), plain.evidence(images))
    assert torch.equal(clipped.loss(batch, MIDDLE)["cls"], plain.loss(batch, MIDDLE)["cls"])


def test_places_of_the_second_convolution() -> None:
    images = torch.randn(1, 3, 48, 48)
    classifier, expansion, shrinkage = (net.eval() for net in all_phases(conv2="skip", beta=1.0))
    assert classifier.conv2 is not None
    features = expansion.conv1(expansion.backbone(images)["out"]).relu()
    assert torch.equal(expansion.evidence(images), expansion.head(features))
    assert torch.allclose(shrinkage.evidence(images), classifier.evidence(images), atol=1e-5)
    classifier, expansion, shrinkage = (net.eval() for net in all_phases(conv2="late", beta=1.0))
    assert classifier.conv2 is None
    assert expansion.conv2 is None
    assert isinstance(shrinkage.conv2, DeformConv2d)
    for net in (expansion, shrinkage):
        assert torch.allclose(net.evidence(images), classifier.evidence(images), atol=1e-5)


def test_identity_start_keeps_the_features() -> None:
    net: Any = ESOLConfig(init="identity").build(TinyBackbone(), 3).eval()
    features = net.backbone(torch.randn(1, 3, 48, 48))["out"]
    assert torch.allclose(net.conv2(net.conv1(features)), features, atol=1e-6)


def test_rates_and_decay() -> None:
    def rates(net: Any) -> dict[str, tuple[float, float | None]]:
        return {group.name: (group.lr_multiplier, group.weight_decay) for group in net.param_groups()}

    classifier, expansion, shrinkage = all_phases()
    assert rates(classifier) == {
        "pretrained weights": (1.0, None),
        "pretrained biases": (1.0, None),
        "extra convolutions": (10.0, None),
        "classifier": (10.0, None),
    }
    assert rates(expansion) == rates(shrinkage) == {"offsets": (1.0, None)}
    tuned = all_phases(offset_lr_multiplier=10.0, offset_weight_decay=0.0, trains=("offsets", "conv1"))
    assert rates(tuned[1]) == {"extra convolutions": (10.0, None), "offsets": (10.0, 0.0)}
    assert rates(ESOLConfig(extra_lr_multiplier=1).build(TinyBackbone(), 2))["extra convolutions"] == (1.0, None)


TABLE_6: list[tuple[tuple[Component, ...], list[str]]] = [
    (("DT_e", "FL"), ["classifier", "shrinkage"]),
    (("DT_e",), ["classifier", "shrinkage"]),
    (("FL",), ["classifier", "expansion", "shrinkage"]),
    (("DT_s", "L_area"), ["classifier", "expansion", "shrinkage"]),
    (("DT_s",), ["classifier", "expansion", "shrinkage"]),
    (("L_area",), ["classifier", "expansion", "shrinkage"]),
    ((), ["classifier", "expansion", "shrinkage"]),
]


@pytest.mark.parametrize(("without", "order"), TABLE_6)
def test_rows_of_the_ablation_table(without: tuple[Any, ...], order: list[str]) -> None:
    configs = plan_phases(without)
    assert [config.phase for config in configs] == order
    nets = chain(*configs)
    last, batch = nets[-1], make_batch(3)
    assert isinstance(last.conv1, DeformConv2d) == ("DT_e" not in without)
    assert isinstance(last.conv2, DeformConv2d) == ("DT_s" not in without)
    learns = {name for name, p in last.named_parameters() if p.requires_grad}
    part = "conv2" if "DT_s" in without else "conv2.offset"
    assert learns == {f"{part}.weight", f"{part}.bias"}
    assert {config.beta for config in configs} == {1.0 if "FL" in without else 0.15}
    parts = last.loss(batch, MIDDLE)
    assert (parts["area"].item() == 0) == ("L_area" in without)
    said = descend(last, batch, rate=1.0 if "DT_s" not in without else 0.01, steps=3)
    assert said[-1]["cls"] + said[-1]["area"] < said[0]["cls"] + said[0]["area"]


def test_rows_of_the_ablation_table_differ() -> None:
    rows = [tuple(config.model_dump_json() for config in plan_phases(without)) for without, _ in TABLE_6]
    assert len(set(rows)) == len(rows)


def test_a_base_that_does_not_fit_is_refused() -> None:
    backbone, classifier = TinyBackbone(), ESOLConfig().build(TinyBackbone(), 3)
    expansion = ESOLConfig(phase="expansion").build(backbone, 3, ESOLConfig().build(TinyBackbone(), 3))
    cases: list[tuple[ESOLConfig, Any, int, str]] = [
        (ESOLConfig(phase="expansion"), None, 3, "starts from esol in phase 'classifier'"),
        (ESOLConfig(phase="expansion"), CAMConfig().build(TinyBackbone(), 3), 3, "not CAM"),
        (ESOLConfig(phase="expansion"), expansion, 3, "not esol in phase 'expansion'"),
        (ESOLConfig(phase="shrinkage"), classifier, 3, "starts from esol in phase 'expansion'"),
        (ESOLConfig(phase="expansion", kernel=1), classifier, 3, "method.kernel"),
        (ESOLConfig(phase="expansion"), classifier, 4, "3 classes"),
        (ESOLConfig(phase="shrinkage", expansion_sampler=False), expansion, 3, "expansion_sampler"),
    ]
    for config, base, num_classes, message in cases:
        with pytest.raises(UserError, match=message):
            config.build(backbone, num_classes, base)
    with pytest.raises(UserError, match="net"):
        ESOLConfig(phase="expansion").build(build_backbone("toy"), 3, classifier)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "released"}, "no released code"),
        ({"phase": "expansion", "expansion_sampler": False}, "no offsets"),
        ({"phase": "shrinkage", "shrinkage_sampler": False}, "no offsets"),
        ({"phase": "expansion", "conv2": "late", "trains": ("conv2",)}, "not in the expansion"),
        ({"beta": 0.0}, "beta"),
        ({"trains": ()}, "trains"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ESOLConfig(**settings)


def test_weights_of_the_base_may_come_after_building() -> None:
    base: Any = ESOLConfig().build(TinyBackbone(), 3)
    net: Any = ESOLConfig(phase="expansion", beta=1.0).build(TinyBackbone(), 3, base)
    other = chain(ESOLConfig(), seed=5)[0]
    base.load_state_dict(other.state_dict(), strict=False)
    net.backbone.load_state_dict(other.backbone.state_dict())
    assert torch.equal(net.head.weight, other.head.weight)
    names = set(net.state_dict())
    assert {"conv1.regular.weight", "conv1.offset.weight", "conv2.weight", "head.weight"} <= names
    assert not any(name.startswith("base") for name in names)


def test_fusion_and_background_are_those_of_irn() -> None:
    rule = ESOLConfig().fusion()
    assert (rule.rectify, rule.reduce, rule.normalize, rule.epsilon) == ("before", "sum", "max", 1e-5)
    assert ESOLConfig().background() == 0.15
