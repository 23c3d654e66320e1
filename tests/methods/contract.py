# SPDX-License-Identifier: Apache-2.0
"""What every localizer must do, whatever its paper.

``test_contract.py`` asks it of every registered method as it comes; each method's own tests ask it of its switches.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.fuse_all import fuse_all
from wsss_ray.config import Config, UserError, read_changes
from wsss_ray.contracts import IGNORE, Batch, Localizer, Progress, Segments
from wsss_ray.engine.fusion import Pass
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets.backbone import Backbone, find_backbone

CROP = 48
CLASS_COUNTS = (1, 3)
SIZES = ((37, 53), (64, 17))
MIDDLE = Progress(epoch=1, step=10, num_epochs=4, num_steps=40)
WHOLE_TRAINING = (
    Progress(epoch=0, step=0, num_epochs=40, num_steps=400),
    Progress(epoch=39, step=399, num_epochs=40, num_steps=400),
)
"""One step before every warm-up ends, and one after."""
PAPER = re.compile(r"\b[A-Z][\w-]+(?: et al\.| & [A-Z][\w-]+| and [A-Z][\w-]+)?,? (?:[A-Z][\w-]* )?(?:19|20)\d\d\b")
"""``Lee et al., CVPR 2021`` or ``Zhou 2016``."""


class TinyBackbone(Backbone):
    """Three stages of stride 2 in a few thousand weights: a frozen stem, a frozen BatchNorm, channel dropout."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.channels = {"conv4": width, "conv5": width, "out": 2 * width}
        self.strides = {"conv4": 4, "conv5": 8, "out": 8}
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.conv5 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.out = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.dropout = nn.Dropout2d(0.1)
        for parameter in self.frozen():
            parameter.requires_grad_(False)

    def frozen(self) -> list[nn.Parameter]:
        return [*self.stem.parameters(), *self.norm.parameters()]

    def train(self, mode: bool = True) -> TinyBackbone:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        conv4 = torch.relu(self.conv4(self.norm(self.stem(images))))
        conv5 = torch.relu(self.conv5(conv4))
        return {"conv4": conv4, "conv5": conv5, "out": torch.relu(self.out(self.dropout(conv5)))}


@dataclass(frozen=True)
class Case:
    """A method as it is tested."""

    config: MethodConfig
    base: MethodConfig = CAMConfig()
    """What it starts from, where it wants a base."""
    backbone: Callable[[], Backbone] = TinyBackbone
    crop: int = CROP
    steps: tuple[Progress, ...] = WHOLE_TRAINING

    def build(self, num_classes: int, seed: int = 0) -> Any:
        """The network on a fresh backbone, its base on another one."""
        torch.manual_seed(seed)
        started = self.base.build(self.backbone(), num_classes) if self.config.wants_base else None
        return self.config.build(self.backbone(), num_classes, started)

    def batch(self, num_classes: int) -> Batch:
        """What a method with these needs is given: nothing it did not ask for."""
        return only(make_batch(num_classes, size=self.crop), self.config.needs)


def make_batch(num_classes: int, num: int = 2, size: int = CROP, seed: int = 0, partner: bool = True) -> Batch:
    """A random batch that carries everything a method may ask for, with a strip of padded canvas on the right."""
    random = torch.Generator().manual_seed(seed)
    inside = torch.ones(num, 1, size, size)
    inside[..., size - 6 :] = 0
    labels = (torch.rand(num, num_classes, generator=random) < 0.4).float()
    labels[:, 0] = 1
    mask = torch.randint(0, num_classes + 1, (num, size, size), generator=random)
    mask[inside[:, 0] == 0] = IGNORE
    return Batch(
        image=torch.randn(num, 3, size, size, generator=random) * inside,
        labels=labels,
        inside=inside,
        rgb=torch.rand(num, 3, size, size, generator=random) * inside,
        saliency=torch.rand(num, 1, size, size, generator=random) * inside,
        maps=torch.rand(num, num_classes, size, size, generator=random) * inside * labels[:, :, None, None],
        mask=mask,
        partner=make_batch(num_classes, num, size, seed + 1, partner=False) if partner else None,
    )


def only(batch: Batch, needs: frozenset[str]) -> Batch:
    """The batch without what these needs do not name."""
    optional = ("rgb", "saliency", "maps", "mask", "partner")
    if batch.partner is not None:
        batch = dataclasses.replace(batch, partner=only(batch.partner, needs))
    return dataclasses.replace(batch, **{name: None for name in optional if name not in needs})


def build(config: MethodConfig, num_classes: int, base: MethodConfig | None = None) -> Any:
    """The method on a fresh tiny backbone; its base is ``base`` (default: a CAM) on another one."""
    return Case(config, base or CAMConfig()).build(num_classes)


def total(parts: dict[str, Tensor]) -> Tensor:
    """What the trainer minimises."""
    return torch.stack([part for name, part in parts.items() if not name.startswith("monitor/")]).sum()


def check_localizer(case: Case, class_counts: tuple[int, ...] = CLASS_COUNTS) -> None:
    """Everything ``contracts.Localizer`` promises, at several class counts and image sizes."""
    check_settings(case.config)
    for num_classes in class_counts:
        check_groups(case.build(num_classes))
        check_training(case, num_classes)
        check_missing_needs(case, num_classes)
        check_backbone(case, num_classes)
        for size in SIZES:
            check_outputs(case, num_classes, size)
        check_saving(case, num_classes)


def check_settings(config: MethodConfig) -> None:
    """Settings survive being written down, and are not more than a base, needs and a fusion rule of known kinds."""
    assert type(config).model_validate(config.model_dump()) == config
    assert type(config).model_validate(config.model_dump(mode="json")) == config
    assert 0 <= config.background() <= 1
    assert config.warning([]) is None


def find_undeclared(config: type[Config], prefix: str = "") -> list[str]:
    """The fields, nested ones included, that do not declare what they change."""
    missing = []
    for name, field in config.model_fields.items():
        if read_changes(config, name) is not None:
            continue
        kinds = [field.annotation, *get_args(field.annotation)]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        inner = [key for kind in nested for key in find_undeclared(kind, f"{prefix}{name}.")]
        missing += inner if nested else [f"{prefix}{name}"]
    return missing


def names_paper(config: type[MethodConfig]) -> bool:
    """Whether the docstring of the class or of its module names a paper: author and year."""
    texts = (config.__doc__, sys.modules[config.__module__].__doc__)
    return any(PAPER.search(text or "") for text in texts)


def frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the backbones inside say never learns."""
    return [p for part in model.modules() if isinstance(part, Backbone) for p in part.frozen()]


def check_groups(model: Any) -> None:
    """Every trainable parameter in exactly one group, frozen ones in none."""
    assert isinstance(model, Localizer)
    grouped = [id(p) for group in model.param_groups() for p in group.params]
    frozen = {id(p) for p in frozen_parameters(model)}
    trainable = {id(p) for p in model.parameters() if p.requires_grad} - frozen
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    assert trainable


def check_training(case: Case, num_classes: int) -> None:
    """Finite losses, the same under the same seed; over all steps every parameter of a group has a gradient.

    What is in no group stays as it was, and something in every group moves.
    """
    model, batch = case.build(num_classes).train(), case.batch(num_classes)
    groups = model.param_groups()
    before, still = copy.deepcopy(groups), [p.detach().clone() for p in frozen_parameters(model)]
    optimizer = torch.optim.SGD([{"params": g.params, "lr": 0.01 * g.lr_multiplier} for g in groups], weight_decay=5e-4)
    reached: set[int] = set()
    alive: set[str] = set()
    for progress in case.steps:
        torch.manual_seed(3)
        again = model.loss(batch, progress)
        torch.manual_seed(3)
        parts = model.loss(batch, progress)
        assert parts
        assert again.keys() == parts.keys()
        assert all(part.dim() == 0 and bool(torch.isfinite(part)) for part in parts.values())
        assert all(torch.equal(again[name], part) for name, part in parts.items())
        optimizer.zero_grad()
        total(parts).backward()
        skipped = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not skipped or case.config.skips_parameters, f"several workers would fail: no gradient for {skipped[:3]}"
        for group in groups:
            gradients = [p.grad for p in group.params if p.grad is not None]
            assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
            reached |= {id(p) for p in group.params if p.grad is not None}
            alive |= {group.name for gradient in gradients if bool(gradient.any())}
        optimizer.step()
    for group, old in zip(groups, before, strict=True):
        assert group.name in alive, f"no gradient reaches {group.name}"
        assert {id(p) for p in group.params} <= reached, f"a parameter of {group.name} has no gradient"
        assert any(not torch.equal(p, q) for p, q in zip(group.params, old.params, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(frozen_parameters(model), still, strict=True))


def check_missing_needs(case: Case, num_classes: int) -> None:
    """A batch without what the method declared is refused with a message, not a traceback."""
    model, batch = case.build(num_classes).train(), case.batch(num_classes)
    for name in case.config.needs:
        with pytest.raises(UserError, match=name):
            model.loss(dataclasses.replace(batch, **{name: None}), case.steps[-1])


def check_outputs(case: Case, num_classes: int, size: tuple[int, int]) -> None:
    """Shapes, signs, finiteness and repeatability of everything inference asks for."""
    model = case.build(num_classes).eval()
    torch.manual_seed(5)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, logits = model.maps(images), model.logits(images)
        mirrored = model.maps(images.flip(3))
        assert torch.equal(maps, model.maps(images))
    evidence = model.evidence(images)
    assert maps.dim() == 4
    assert maps.shape[:2] == (2, num_classes)
    assert logits.shape == (2, num_classes)
    assert evidence.shape[0] == 2
    assert evidence.shape[1] in (num_classes, num_classes + 1)
    assert evidence.requires_grad
    assert all(bool(torch.isfinite(value).all()) for value in (maps, logits, evidence))
    rule = case.config.fusion()
    if rule.rectify == "none":
        assert maps.min() >= 0, "nothing rectifies these maps later"
    fused = fuse_all([Pass(maps, mirrored)], rule, size, torch.ones(2, num_classes))
    assert fused.shape == (2, num_classes, *size)
    assert fused.min() >= 0
    assert fused.max() <= 1 + 1e-5
    assert isinstance(model, Segments) == case.config.single_stage
    if isinstance(model, Segments):
        scores = model.scores(images)
        assert scores.shape[:2] == (2, num_classes + 1)
        assert torch.allclose(scores.sum(dim=1), torch.ones_like(scores[:, 0]), atol=1e-5)


def check_backbone(case: Case, num_classes: int) -> None:
    """The first backbone inside is the one its evidence is read from: what another network starts from."""
    model, images = case.build(num_classes).eval(), torch.randn(1, 3, *SIZES[0])
    with torch.no_grad():
        before = model.evidence(images)
        for parameter in find_backbone(model).parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
        assert not torch.equal(model.evidence(images), before)


def check_maps_settings(case: Case, num_classes: int) -> None:
    """What a field says it changes only behind training, such as maps or scores, changes no loss and no group."""
    torch.manual_seed(0)
    batch, fields = case.batch(num_classes), type(case.config).model_fields
    before = read_training(case, batch, num_classes)
    for name in fields:
        value = getattr(case.config, name)
        if read_changes(type(case.config), name) in ("weights", None):
            continue
        for other in list_others(fields[name].annotation, value):
            try:
                changed = type(case.config).model_validate({**case.config.model_dump(), name: other})
            except ValidationError:
                continue
            assert read_training(dataclasses.replace(case, config=changed), batch, num_classes) == before, name


def list_others(annotation: Any, value: Any) -> list[Any]:
    """Values to try in place of one."""
    options = [annotation, *get_args(annotation)]
    named = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    return [other for other in (*named, True, False, number / 2, number + 1, number * 64, None) if other != value]


def read_training(case: Case, batch: Batch, num_classes: int) -> tuple[list[tuple[str, float]], list[Any]]:
    """The losses of the case's steps, and its groups by size and rate."""
    model, found = case.build(num_classes).train(), []
    for progress in case.steps:
        torch.manual_seed(3)
        found += [(name, part.item()) for name, part in model.loss(batch, progress).items()]
    return found, [(group.name, len(group.params), group.lr_multiplier) for group in model.param_groups()]


def check_saving(case: Case, num_classes: int) -> None:
    """Maps are a function of the saved state alone."""
    model, other = case.build(num_classes).eval(), case.build(num_classes, seed=1).eval()
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, *SIZES[0])
    with torch.no_grad():
        assert torch.equal(model.maps(image), other.maps(image))
