# SPDX-License-Identifier: Apache-2.0
"""ESOL on generated images: both samplers do what they are for, and too large a step is noticed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tests.methods.contract import MIDDLE
from wsss_ray.contracts import Batch
from wsss_ray.data.toy import ToyConfig, draw_image, plan_image
from wsss_ray.methods.esol.losses import detect_runaway
from wsss_ray.methods.esol.network import ESOL, ESOLConfig
from wsss_ray.nets import build_backbone


def epochs(**columns: list[float]) -> list[dict[str, float]]:
    names = {"offset": "monitor/offset", "outside": "monitor/outside", "present": "monitor/present_bce"}
    keyed = {names.get(key, key): values for key, values in columns.items()}
    return [dict(zip(keyed, row, strict=True)) for row in zip(*keyed.values(), strict=True)]


def test_runaway() -> None:
    calm = {"offset": [0.2, 0.6, 1.0, 1.2], "outside": [0.0, 0.0, 0.02, 0.03], "present": [0.2, 0.4, 0.5, 0.55]}
    assert detect_runaway([]) is None
    assert detect_runaway([{"cls": 0.3}]) is None
    assert detect_runaway(epochs(**calm)) is None
    assert detect_runaway(epochs(**calm, recall=[0.5, 0.6, 0.65, 0.64])) is None
    assert str(detect_runaway(epochs(**calm), max_outside=0.01)).startswith("epoch 2: 2% of the samples left")
    for changed, message in (
        ({"outside": [0.0, 0.1, 0.4, 0.6]}, "epoch 2: 40% of the samples left the map"),
        ({"outside": [0.0, 0.1, math.nan, 0.1]}, "epoch 2: nan"),
        ({"present": [0.2, 0.9, 0.7, 0.6]}, "epoch 3: offsets grow while the loss of present classes falls"),
        ({"recall": [0.7, 0.6, 0.5, 0.6]}, "epoch 2: offsets grow while foreground recall falls"),
    ):
        warning = detect_runaway(epochs(**{**calm, **changed}))
        assert warning is not None
        assert warning.startswith(message)
    # Below a cell a falling loss is chance.
    assert (
        detect_runaway(epochs(**{**calm, "offset": [0.01, 0.02, 0.03, 0.9], "present": [0.6, 0.5, 0.4, 0.3]})) is None
    )
    # Offsets that shrink again are a run that recovers.
    assert detect_runaway(epochs(**{**calm, "offset": [2.0, 1.8, 1.5, 1.2], "present": [0.6, 0.5, 0.4, 0.3]})) is None


@pytest.mark.slow
def test_expansion_and_shrinkage_on_generated_images() -> None:
    # alpha x rate is 0.1, and not the paper's 1e-4: fifty steps must go as far as its 6610.
    torch.manual_seed(0)
    toy = ToyConfig(num_classes=3, size=64, clutter=0.2, cooccurrence=0.2)
    count, size = 240, 24
    pixels = torch.stack([torch.from_numpy(draw_image(toy, "train", i)[0]) for i in range(count)])
    images = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    labels = torch.zeros(count, toy.num_classes)
    for i in range(count):
        labels[i, [creature.label for creature in plan_image(toy, "train", i).creatures]] = 1

    def fit(net: ESOL, optimizer: torch.optim.Optimizer, num_epochs: int) -> list[dict[str, float]]:
        history = []
        for _ in range(num_epochs):
            net.train()
            sums: dict[str, float] = {}
            for rows in torch.randperm(count).split(size):
                batch = Batch(images[rows], labels[rows], torch.ones(size, 1, 64, 64), images[rows])
                parts = net.loss(batch, MIDDLE)
                optimizer.zero_grad()
                torch.stack([part for name, part in parts.items() if not name.startswith("monitor/")]).sum().backward()
                optimizer.step()
                sums = {name: sums.get(name, 0) + part.item() * size / count for name, part in parts.items()}
            history.append(sums)
        return history

    def later(phase: Any, base: ESOL, rate: float) -> tuple[ESOL, list[dict[str, float]]]:
        alpha = {"alpha": 1.0} if phase == "expansion" else {}
        config = ESOLConfig.model_validate({"phase": phase, "init": "identity", **alpha})
        net = config.build(build_backbone("toy", width=16), 3, copy.deepcopy(base))
        assert isinstance(net, ESOL)
        (group,) = net.param_groups()
        return net, fit(net, torch.optim.SGD(group.params, rate), 5)

    classifier = ESOLConfig(init="identity").build(build_backbone("toy", width=16), 3)
    assert isinstance(classifier, ESOL)
    learned = fit(classifier, torch.optim.Adam(classifier.parameters(), 2e-3), 20)
    assert learned[-1]["cls"] < 0.75 * learned[0]["cls"]
    expansion, history = later("expansion", classifier, 0.1)
    assert 0.2 < history[0]["monitor/offset"] < history[-1]["monitor/offset"] - 0.1
    assert history[-1]["monitor/present_bce"] > history[0]["monitor/present_bce"] + 0.02
    assert detect_runaway(history) is None
    _, history = later("shrinkage", expansion, 1.0)
    assert history[-1]["cls"] + history[-1]["area"] < history[0]["cls"] + history[0]["area"] - 0.01
    assert history[-1]["monitor/offset"] > history[0]["monitor/offset"]
    _, history = later("expansion", classifier, 100.0)
    assert "left the map" in str(detect_runaway(history))
