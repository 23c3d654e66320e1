# SPDX-License-Identifier: Apache-2.0
"""KTSE's branches in a whole step: which features, which classes and which places each alignment looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.contract import TinyBackbone
from tests.methods.test_ktse import AFTER_WARM_UP, TABLE_6
from wsss_ray.contracts import Batch
from wsss_ray.methods.ktse.config import KTSEConfig
from wsss_ray.methods.ktse.network import KTSE
from wsss_ray.studies import ktse

SIZE, CELLS = 16, 4


def pair(anchor: list[float], partner: list[float]) -> Batch:
    """One image with its partner; only labels matter, networks below give planes by script."""
    image, inside = torch.rand(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE)
    batch, other = (Batch(image, torch.tensor([labels]).float(), inside, image) for labels in (anchor, partner))
    batch.partner = other
    return batch


def scripted(batch: Batch, outputs: list[Tensor], **settings: Any) -> dict[str, Tensor]:
    """The parts of a step whose network gives these planes, call by call."""
    model = KTSE(KTSEConfig(**settings), TinyBackbone(), batch.labels.shape[1])
    given = iter(outputs)
    model.planes = lambda images: next(given)  # type: ignore[method-assign]
    return model.loss(batch, AFTER_WARM_UP)


def planes(num: int = 1, height: int = CELLS) -> Tensor:
    return torch.randn(num, 4, height, CELLS)


def test_the_joined_image_is_held_to_both_of_its_parts() -> None:
    torch.manual_seed(0)
    batch = pair([1, 0, 0], [0, 1, 0])
    alone = planes(2).requires_grad_()
    parts = torch.cat([alone[:1], alone[1:]], dim=2).detach()
    settings: dict[str, Any] = {"profile": "released", **TABLE_6["sie"]}
    assert scripted(batch, [alone, parts - 0.04], **settings)["kt"] == 0, "less than the margin"
    for channel, counted in ((1, True), (2, True), (3, False), (0, False)):
        lower = parts.clone()
        lower[:, channel] -= 1.05
        loss = scripted(batch, [alone, lower], **settings)["kt"].item()
        assert loss == pytest.approx(1 / 3 if counted else 0, abs=1e-6), "classes of either image, no others"
    joined = (parts - 1).requires_grad_()
    scripted(batch, [alone, joined], **settings)["kt"].backward()
    assert alone.grad is not None
    assert joined.grad is not None
    assert all(alone.grad[index, [1, 2]].min() > 0 for index in (0, 1))
    assert joined.grad[0, [1, 2]].max() < 0


def test_the_papers_joined_image_is_held_to_the_anchor_alone() -> None:
    torch.manual_seed(1)
    batch, alone = pair([1, 0, 0], [0, 1, 0]), planes()
    lower = torch.cat([alone, planes()], dim=2)
    lower[:, 2] -= 5
    lower[:, 1, CELLS:] -= 5
    assert scripted(batch, [alone, lower], **TABLE_6["sie"])["kt"] == 0
    lower[:, 1, :CELLS] -= 1
    assert scripted(batch, [alone, lower], **TABLE_6["sie"])["kt"].item() == pytest.approx(1 / 3, abs=1e-6)


def test_local_alignment_leaves_out_what_is_erased() -> None:
    torch.manual_seed(2)
    batch, anchor = pair([1, 0, 0], [1, 0, 0]), planes()
    anchor[:, 1] = 1.0
    masked = anchor + 1.05
    settings: dict[str, Any] = {"profile": "released", "sie": False, "ssr": False, "ga": False, "activation": "max"}
    assert scripted(batch, [anchor, masked], **settings)["local"] == 0, "active everywhere"
    anchor[:, 1, :, 2:] = 0.1
    masked = anchor + 1.05
    half = scripted(batch, [anchor, masked], **settings)["local"]
    assert half.item() == pytest.approx(0.5 / 3, abs=1e-6)
    masked[:, 2:] += 9
    assert scripted(batch, [anchor, masked], **settings)["local"] == half, "absent classes do not count"
    whole = scripted(batch, [anchor, masked], **{**settings, "local_region": "all"})["local"]
    assert whole.item() == pytest.approx(1 / 3, abs=1e-6)


def test_published_optimiser_and_batches() -> None:
    paper, released = ktse.published("paper").train, ktse.published("released").train
    for made in (paper, released):
        assert (made.optimizer.lr, made.optimizer.weight_decay, made.epochs) == (0.01, 5e-4, 40)
    assert (paper.optimizer.momentum, released.optimizer.momentum) == (0.9, 5e-4)
    assert (paper.batch_size, released.batch_size, released.batch_milestones) == (16, 8, {10: 16})
    assert (paper.schedule.horizon, released.schedule.horizon) == (None, 52_880)
