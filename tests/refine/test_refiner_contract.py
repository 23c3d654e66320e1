# SPDX-License-Identifier: Apache-2.0
"""What every registered refiner promises, those of installed packages included."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_ray.config import Config, read_changes, select
from wsss_ray.contracts import IGNORE, Batch, ClassMaps, Progress, Trainable
from wsss_ray.nets import build_backbone
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import CRFConfig
from wsss_ray.refine.histogram import count_values
from wsss_ray.refine.registry import REFINERS
from wsss_ray.score.config import ScoreConfig

NUM_CLASSES = 5
SIDE = 96
NAMES = list(REFINERS)
TRAINED = [name for name in NAMES if REFINERS[name].trainable]


def made_batch(refiner: RefinerConfig) -> Batch:
    """Two crops of three labels in blocks, a strip of canvas, and whatever else the refiner's network asks for."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.tensor([0, 2, NUM_CLASSES, IGNORE])[torch.randint(0, 4, (2, 8, 8), generator=generator)]
    mask = blocks.repeat_interleave(SIDE // 8, 1).repeat_interleave(SIDE // 8, 2)
    inside = torch.ones(2, 1, SIDE, SIDE)
    inside[:, :, :8] = 0
    mask[:, :8] = IGNORE
    spare = torch.rand(2, 1 + NUM_CLASSES, SIDE, SIDE, generator=generator) * inside
    return Batch(
        image=torch.randn(2, 3, SIDE, SIDE, generator=generator) * inside,
        labels=torch.ones(2, NUM_CLASSES),
        inside=inside,
        rgb=torch.rand(2, 3, SIDE, SIDE, generator=generator) * inside,
        saliency=spare[:, :1] if "saliency" in refiner.needs else None,
        maps=spare[:, 1:] if "maps" in refiner.needs else None,
        mask=mask if "mask" in refiner.needs else None,
    )


def built(refiner: RefinerConfig) -> Any:
    """The refiner's network on the toy backbone, the same weights each time; None where it has none."""
    torch.manual_seed(0)
    return refiner.build(build_backbone("toy", width=16), NUM_CLASSES) if refiner.trainable else None


def test_the_registry_holds_settings_under_their_own_names() -> None:
    for name in NAMES:
        refiner = REFINERS[name]()
        assert refiner.name == name
        assert type(refiner).model_validate(refiner.model_dump(mode="json")) == refiner


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_names_a_paper_or_says_there_is_none(name: str) -> None:
    text = REFINERS[name].__doc__ or ""
    assert re.search(r"\b(19|20)\d\d\b", text) or "no paper" in text.lower(), text


@pytest.mark.parametrize("settings", [*(REFINERS[name] for name in NAMES), CRFConfig, ScoreConfig])
def test_every_field_says_what_it_changes(settings: type[Config]) -> None:
    found = {name: read_changes(settings, name) for name in settings.model_fields}
    assert None not in found.values(), found
    if settings is ScoreConfig:
        assert set(found.values()) == {"scores"}
    elif not getattr(settings, "trainable", False):
        assert set(found.values()) == {"masks"}
    else:
        assert {"weights", "masks"} <= set(found.values()) <= {"weights", "masks", "nothing"}
    assert {*select(settings(), "weights", "masks", "scores")} == {k for k, what in found.items() if what != "nothing"}


@pytest.mark.parametrize("name", TRAINED)
def test_the_network_learns_where_it_should(name: str) -> None:
    refiner = REFINERS[name]()
    network = built(refiner)
    assert isinstance(network, nn.Module)
    assert isinstance(network, Trainable)
    groups = network.param_groups()
    grouped = [parameter for group in groups for parameter in group.params]
    learning = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert learning == {id(p) for p in grouped}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([{"params": g.params, "lr": 0.01 * g.lr_multiplier} for g in groups])
    network.train()
    for step in range(2):
        optimiser.zero_grad()
        parts = network.loss(made_batch(refiner), Progress(epoch=0, step=step, num_epochs=1, num_steps=2))
        loss: Tensor = torch.stack([part for key, part in parts.items() if not key.startswith("monitor/")]).sum()
        assert loss.dim() == 0
        assert torch.isfinite(loss)
        assert loss > 0
        loss.backward()
        optimiser.step()
    for group in groups:
        gradients = [parameter.grad for parameter in group.params]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients), group.name
        assert any(gradient.abs().max() > 0 for gradient in gradients if gradient is not None), group.name
    still = {key for key, parameter in network.named_parameters() if id(parameter) not in learning}
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items() if key in still)
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
def test_what_only_masks_read_leaves_the_training_alone(name: str) -> None:
    """Same weights and losses for every other value of a field that changes masks only."""
    refiner = REFINERS[name]()

    def train(own: RefinerConfig) -> tuple[dict[str, Tensor], dict[str, float]]:
        network = built(own)
        parts = network.loss(made_batch(own), Progress(0, 0, 1, 1))
        return network.state_dict(), {key: float(part.detach()) for key, part in parts.items()}

    weights, losses = train(refiner)
    for field in select(refiner, "masks"):
        value = getattr(refiner, field)
        if field == "precision":
            changed: object = "bf16"
        else:
            changed = value / 2 if isinstance(value, float) else (value or 0) + 1
        other = refiner.model_copy(update={field: changed})
        found, found_losses = train(other)
        assert found_losses == losses, field
        assert all(torch.equal(found[key], weights[key]) for key in weights), field


@pytest.mark.parametrize("size", [(37, 53), (1, 1)])
@pytest.mark.parametrize("classes", [(1, 4), (2,), ()])
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_any_image(name: str, classes: tuple[int, ...], size: tuple[int, int]) -> None:
    if "pydensecrf" in _wanted(REFINERS[name]()):
        pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(len(classes))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    maps = ClassMaps("a", np.array(classes, np.int32), rng.random((len(classes), *grid), dtype=np.float32), size)
    network = built(REFINERS[name]())
    refiner = REFINERS[name]().settle(count_values(maps))
    mask = refiner.refine(image, maps, network)
    assert mask.dtype == np.uint8
    assert mask.shape == size
    assert {*np.unique(mask).tolist()} <= {0, IGNORE, *(number + 1 for number in classes)}
    np.testing.assert_array_equal(mask, refiner.refine(image, maps, network))


def _wanted(refiner: RefinerConfig) -> set[str]:
    """Packages that a refiner with its own defaults cannot do without."""
    return {"pydensecrf"} if getattr(refiner, "crf", None) is not None else set()
