# SPDX-License-Identifier: Apache-2.0
"""Two workers whose gradients meet (gloo): every method trains; one that is left goes on to the same bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing, nn

from tests.engine.test_training import save_and_load, small
from wsss_ray.artifacts.network import build_localizer
from wsss_ray.contracts import Batch, ClassMaps, ParamGroup, Progress
from wsss_ray.data.samples import Lookups, Sampling, TrainSamples
from wsss_ray.data.shards import Rows, write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.engine.train import Hooks, Request, TrainConfig, Training, train_network
from wsss_ray.engine.validate import World
from wsss_ray.methods import METHODS
from wsss_ray.recipe import Recipe, override, take_localizer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
MORE = {"l2g": ["method.patch_size=24"]}
"""What a method's default settings need at this crop."""


def draw_maps(image_id: str) -> ClassMaps:
    return ClassMaps(image_id, np.array([0]), np.ones((1, 56, 56), np.float32), (56, 56))


def fit(recipe: Recipe, rows: Rows, rank: int, state: Any = None, hooks: Hooks | None = None) -> tuple[bool, Any]:
    """Whether it came to its end, and the network."""
    torch.manual_seed(1)
    network: Any = build_localizer(take_localizer(recipe), 5)
    lookups = Lookups(maps=draw_maps) if "maps" in recipe.method.needs else Lookups()
    sampling = Sampling(recipe.train.augment, recipe.net.normalize, 3, recipe.method.needs)
    samples = TrainSamples(rows, 5, sampling, lookups)
    skips = recipe.method.skips_parameters
    training = Training(
        samples, recipe.train, 3, World(rank, 2, torch.device("cpu")), threads=1, skips_parameters=skips
    )
    return train_network(network, training, state, hooks), network


def list_weights(network: Any) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in network.parameters()]


def work(rank: int, folder: str) -> None:
    """What each of the two does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = Rows(f"{folder}/data", "train", cache=Path(folder) / f"cache{rank}")
    for name in METHODS:
        recipe = override(small(name, epochs=3), MORE.get(name, []))
        ended, network = fit(recipe, rows, rank)
        assert ended
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, list_weights(network))
        assert all(torch.equal(one, other) for one, other in zip(*gathered, strict=True)), name
    _leave_and_go_on(rows, rank)
    _share_unevenly(rows, rank)
    _share_norms(rows, rank)
    dist.destroy_process_group()


def _leave_and_go_on(rows: Rows, rank: int) -> None:
    recipe = small("cam", epochs=2)
    _, whole = fit(recipe, rows, rank)
    kept: list[dict[str, Any]] = []
    asked = iter([Request.NOTHING, Request.LEAVE])
    ended, _ = fit(
        recipe,
        rows,
        rank,
        hooks=Hooks(ask=lambda: next(asked), on_request=lambda _, state: kept.append(copy.deepcopy(state))),
    )
    assert not ended, "both leave, though the first was asked alone"
    (state,) = kept
    assert state["begun"]["step"] == 2
    states: list[Any] = [save_and_load(state)]
    dist.broadcast_object_list(states, src=0)
    ended, again = fit(recipe, rows, rank, states[0])
    assert ended
    assert all(torch.equal(one, other) for one, other in zip(list_weights(whole), list_weights(again), strict=True))


class Linear(nn.Module):
    """Classes of an image from its mean colour; no image changes what is said of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 5)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        scores = self.layer(batch.image.mean(dim=(2, 3)))
        return {"classification": F.multilabel_soft_margin_loss(scores, batch.labels)}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("head", list(self.layer.parameters()), 1.0)]


class Normed(Linear):
    """The same behind a convolution with BatchNorm, by which images do change what is said of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())

    def loss(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        return super().loss(replace(batch, image=self.body(batch.image)), progress)

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("all", list(self.parameters()), 1.0)]


def _share_unevenly(rows: Rows, rank: int) -> None:
    """Batches of 5, 5 and 2 images, of which one worker has 3, 3 and 1: each image counts as it does for one worker."""
    recipe = small("cam")
    config = TrainConfig(epochs=3, batch_size=5, drop_last=False, augment=recipe.train.augment, validate_images=0)
    samples = TrainSamples(rows, 5, Sampling(config.augment, recipe.net.normalize, 3))
    found = []
    for world in (World(rank, 2), World()):
        network = Linear()
        losses: list[float] = []
        hooks = Hooks(on_epoch=lambda report, _, losses=losses: losses.append(report.losses["total"]))
        assert train_network(network, Training(samples, config, 3, world), hooks=hooks)
        found.append((network.layer.weight.detach(), torch.tensor(losses)))
    (together, losses), (alone, expected) = found
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-6)


def _share_norms(rows: Rows, rank: int) -> None:
    """Statistics over all workers make two workers' weights those of one; a worker's own do not."""
    recipe = small("cam")
    samples = TrainSamples(rows, 5, Sampling(recipe.train.augment, recipe.net.normalize, 3))
    found = {}
    for size, synced in ((2, True), (2, False), (1, False)):
        config = TrainConfig(
            epochs=2,
            batch_size=5,
            drop_last=False,
            augment=recipe.train.augment,
            validate_images=0,
            channels_last=False,
            sync_batch_norm=synced,
        )
        network = Normed()
        assert train_network(network, Training(samples, config, 3, World(rank if size == 2 else 0, size)))
        found[size, synced] = [*network.parameters(), *network.buffers()]
    expected = [value.detach() for value in found[1, False]]
    for one, other in zip(found[2, True], expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-5)
    assert max(float((one - other).abs().max()) for one, other in zip(found[2, False], expected, strict=True)) > 1e-3


def test_every_method_and_one_that_is_left(tmp_path: Path) -> None:
    write_dataset(open_source("toy", num_train=12, num_val=4, size=56), str(tmp_path / "data"))
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
