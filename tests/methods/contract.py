"""What every localizer must do, whatever its paper: one function that each method's test calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE, Batch, Localizer, Progress, Segments
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.nets.backbone import Backbone

CROP = 48
CLASS_COUNTS = (1, 3, 7)
SIZES = ((48, 48), (37, 53), (64, 17))
MIDDLE = Progress(epoch=1, step=10, num_epochs=4, num_steps=40)


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
    """The batch a method with these needs is given: nothing it did not ask for."""
    optional = ("saliency", "maps", "mask", "partner")
    return dataclasses.replace(batch, **{name: None for name in optional if name not in needs})


def build(
    config: MethodConfig,
    num_classes: int,
    needs_base: bool = False,
    backbone: Callable[[], Backbone] = TinyBackbone,
    base: MethodConfig | None = None,
    seed: int = 0,
) -> nn.Module:
    """The method on a fresh backbone; its base is ``base`` (default: a CAM) on another one."""
    torch.manual_seed(seed)
    started = (base or CAMConfig()).build(backbone(), num_classes) if needs_base else None
    return config.build(backbone(), num_classes, started)


def total(parts: dict[str, Tensor]) -> Tensor:
    """What the trainer minimises."""
    return torch.stack([part for name, part in parts.items() if not name.startswith("monitor/")]).sum()


def check_localizer(
    config: MethodConfig,
    needs_base: bool = False,
    *,
    backbone: Callable[[], Backbone] = TinyBackbone,
    base: MethodConfig | None = None,
    progress: Progress = MIDDLE,
    every_parameter: bool = True,
    class_counts: tuple[int, ...] = CLASS_COUNTS,
) -> None:
    """Everything ``contracts.Localizer`` promises, at several class counts and image sizes.

    ``every_parameter``: each parameter in a group gets a gradient; otherwise some of each group must. ``progress`` is
    where training stands, for methods whose losses change with it.
    """
    assert type(config).model_validate(config.model_dump()) == config
    assert config.wants_base == needs_base
    for num_classes in class_counts:
        model = build(config, num_classes, needs_base, backbone, base)
        batch = only(make_batch(num_classes), config.needs)
        assert isinstance(model, Localizer)
        check_groups(model)
        check_loss(model, batch, progress, every_parameter)
        check_missing_needs(model, batch, config.needs, progress)
        for size in SIZES:
            check_outputs(model, config, num_classes, size)
        again = build(config, num_classes, needs_base, backbone, base, seed=1)
        again.load_state_dict(model.state_dict())
        image = torch.randn(1, 3, *SIZES[1])
        with torch.no_grad():
            assert torch.equal(model.eval().maps(image), again.eval().maps(image))


def check_groups(model: nn.Module) -> None:
    """Every trainable parameter in exactly one group, frozen ones in none."""
    grouped = [id(p) for group in model.param_groups() for p in group.params]
    frozen = {id(p) for part in model.modules() if isinstance(part, Backbone) for p in part.frozen()}
    trainable = {id(p) for p in model.parameters() if p.requires_grad} - frozen
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    assert trainable


def check_loss(model: nn.Module, batch: Batch, progress: Progress, every_parameter: bool) -> None:
    """Finite scalars, the same ones under the same seed, and a gradient for every group."""
    model.train()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        parts = model.loss(batch, progress)
        runs.append({name: part.detach() for name, part in parts.items()})
    assert parts
    assert all(part.dim() == 0 and torch.isfinite(part) for part in runs[0].values())
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    model.zero_grad()
    total(parts).backward()
    for group in model.param_groups():
        gradients = [p.grad for p in group.params if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert any(bool((g != 0).any()) for g in gradients), f"no gradient reaches {group.name}"
        if every_parameter:
            assert len(gradients) == len(group.params), f"a parameter of {group.name} has no gradient"
    model.zero_grad()


def check_missing_needs(model: nn.Module, batch: Batch, needs: frozenset[str], progress: Progress) -> None:
    """A batch without what the method declared is refused with a message, not a traceback."""
    for name in needs:
        with pytest.raises(UserError, match=name):
            model.loss(dataclasses.replace(batch, **{name: None}), progress)


def check_outputs(model: nn.Module, config: MethodConfig, num_classes: int, size: tuple[int, int]) -> None:
    """Shapes, signs, finiteness and repeatability of everything inference asks for."""
    torch.manual_seed(5)
    images = torch.randn(2, 3, *size)
    model.eval()
    with torch.no_grad():
        maps, logits = model.maps(images), model.logits(images)
        assert torch.equal(maps, model.maps(images))
    evidence = model.evidence(images)
    assert maps.dim() == 4
    assert maps.shape[:2] == (2, num_classes)
    assert logits.shape == (2, num_classes)
    assert evidence.shape[0] == 2
    assert evidence.shape[1] in (num_classes, num_classes + 1)
    assert evidence.requires_grad
    assert all(torch.isfinite(value).all() for value in (maps, logits, evidence))
    if config.fusion().rectify == "none":
        assert maps.min() >= 0
    if isinstance(model, Segments):
        scores = model.scores(images)
        assert scores.shape[:2] == (2, num_classes + 1)
        assert torch.allclose(scores.sum(dim=1), torch.ones_like(scores[:, 0]), atol=1e-5)
