# SPDX-License-Identifier: Apache-2.0
"""Training that is cut off and goes on, and networks that start from what another method has learned."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wsss_ray.artifacts.network import MODEL, build_localizer, encode_state
from wsss_ray.config import UserError
from wsss_ray.data.samples import Sampling, TrainSamples
from wsss_ray.data.shards import Rows, write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.engine.epoch import Epoch
from wsss_ray.engine.train import EpochReport, Hooks, Request, Training, train_network
from wsss_ray.engine.validate import World
from wsss_ray.methods.cam import CAM
from wsss_ray.nets import build_backbone
from wsss_ray.nets.weight_names import is_counter
from wsss_ray.nets.weights import load_weights
from wsss_ray.recipe import Recipe, override, replace_settings, take_localizer
from wsss_ray.studies import resolve

SETTINGS = ("net.options={width: 16}", "train.augment.crop=48", "train.batch_size=4", "train.epochs=4")
PHASES = {"ssss": "seg", "wsfcn": "seg", "ktse": "kt"}
"""Methods with a warm-up of two epochs here, and a loss that comes after it."""


def small(name: str, epochs: int = 4) -> Recipe:
    """A toy recipe that trains in seconds."""
    warm = ["method.warmup_epochs=2"] if name in PHASES else []
    made = resolve(name)
    bases, part = [], made.base
    while part is not None:
        bases.append("base." * (len(bases) + 1) + "net.options={width: 16}")
        part = part.base
    return override(made, [*SETTINGS, f"train.epochs={epochs}", *warm, *bases])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    root: Path = tmp_path_factory.mktemp("toy")
    write_dataset(open_source("toy", num_train=12, num_val=4, size=56), str(root / "data"))
    return Rows(str(root / "data"), "train", cache=root / "cache")


def fit(
    recipe: Recipe, rows: Rows, state: Any = None, hooks: Hooks | None = None, heard: list[EpochReport] | None = None
) -> tuple[list[Any], list[dict[str, float]], Any]:
    """The state after every epoch, the losses of every epoch, and the network; ``heard`` takes the whole reports."""
    torch.manual_seed(1)
    network: Any = build_localizer(take_localizer(recipe), 5)
    samples = TrainSamples(rows, 5, Sampling(recipe.train.augment, recipe.net.normalize, 3, recipe.method.needs))
    states: list[Any] = []
    losses: list[dict[str, float]] = []

    def on_epoch(report: EpochReport, snapshot: Any) -> None:
        states.append(copy.deepcopy(snapshot()))
        losses.append(dict(report.losses))
        if heard is not None:
            heard.append(report)

    training = Training(samples, recipe.train, 3, World(0, 1, torch.device("cpu")), threads=1)
    train_network(network, training, state, replace(hooks or Hooks(), on_epoch=on_epoch))
    return states, losses, network


@pytest.mark.parametrize("name", PHASES)
def test_cut_off_in_either_phase_goes_on_to_the_same_weights(name: str, rows: Rows) -> None:
    recipe = small(name)
    states, losses, whole = fit(recipe, rows)
    assert [PHASES[name] in epoch for epoch in losses] == [False, False, True, True]
    for done in (0, 2):  # within the warm-up, and after it
        again, later, network = fit(recipe, rows, states[done])
        assert len(again) == 3 - done
        assert later == losses[done + 1 :]
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, network.state_dict()[key]), (done, key)


@pytest.mark.parametrize("name", ["cam", "ktse"])
def test_broken_off_in_the_middle_of_an_epoch_goes_on_to_the_same_weights(name: str, rows: Rows) -> None:
    """Every state that is given between two steps, after a way through files as checkpoints have it."""
    recipe = override(small(name), ["train.epochs=3"])
    _, losses, whole = fit(recipe, rows)
    steps, middle = iter(range(100)), {1, 7}
    kept: dict[int, Any] = {}

    def keep(step: int, state: dict[str, Any]) -> None:
        kept[step] = save_and_load(state)

    hooks = Hooks(ask=lambda: Request.CHECKPOINT if next(steps) in middle else Request.NOTHING, on_request=keep)
    assert len(fit(recipe, rows, hooks=hooks)[1]) == 3
    assert sorted(kept) == [2, 8]
    for step, state in kept.items():
        assert state["begun"]["step"] == step
        heard: list[EpochReport] = []
        state["begun"]["seconds"] += 1000
        _, later, network = fit(recipe, rows, state, heard=heard)
        assert later == losses[state["epoch"] + 1 :], "the losses of the whole epoch are counted"
        assert [report.seconds > 1000 for report in heard] == [True] + [False] * (len(heard) - 1), "and its time"
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, network.state_dict()[key]), (step, key)


def test_asked_to_leave_it_gives_its_state_and_ends(rows: Rows) -> None:
    recipe = small("cam", epochs=2)
    given: list[int] = []
    asked = iter([Request.NOTHING, Request.LEAVE])
    hooks = Hooks(ask=lambda: next(asked), on_request=lambda step, state: given.append(step))
    assert fit(recipe, rows, hooks=hooks)[1] == [], "it ends in its first epoch"
    assert given == [2]
    # Between two epochs the state was given by the epoch itself.
    asked = iter([Request.NOTHING, Request.NOTHING, Request.LEAVE])
    assert len(fit(recipe, rows, hooks=hooks)[1]) == 1
    assert given == [2]


def save_and_load(state: dict[str, Any]) -> dict[str, Any]:
    """The state as ``torch.load`` gives it where it unpickles nothing but numbers."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", ["cam", "eps", "l2g", "smaf", "ktse", "esol", "ssss", "wsfcn"])
def test_single_stage_starts_from_any_trained_localizer(name: str, tmp_path: Path) -> None:
    """The file that a train step leaves is a weight file like the published ones; the trunk in it is taken over."""
    torch.manual_seed(2)
    before: Any = build_localizer(take_localizer(small(name)), 5)
    path = tmp_path / MODEL
    path.write_bytes(encode_state(before))
    report = load_weights(build_backbone("toy", 8, width=16), str(path))
    wanted = [name for name in build_backbone("toy", 8, width=16).state_dict() if not is_counter(name)]
    assert report.num_matched == len(wanted)

    recipe = override(small("ssss"), [f"net.weights={path}"])
    network: Any = build_localizer(take_localizer(recipe), 5, pretrained=True)
    values = list(before.state_dict().values())
    for key, tensor in network.backbone.state_dict().items():
        assert any(tensor.shape == value.shape and torch.equal(tensor, value) for value in values), key


@pytest.mark.parametrize("donor", ["cam", "l2g"])
def test_a_backbone_starts_from_that_of_its_base(donor: str, tmp_path: Path) -> None:
    """Whatever the method, unless it takes its base over whole: the one that the base's maps are read from."""
    base = take_localizer(replace_settings(small(donor), {"base": None}))
    torch.manual_seed(7)
    trained: Any = build_localizer(base, 5)
    (tmp_path / MODEL).write_bytes(encode_state(trained))
    for name in ("cam", "eps", "l2g", "ktse", "ssss", "wsfcn"):
        part = take_localizer(replace_settings(small(name), {"base": base}))
        torch.manual_seed(8)
        network: Any = build_localizer(part, 5, pretrained=True, base_folder=str(tmp_path))
        for key, tensor in network.backbone.state_dict().items():
            assert torch.equal(tensor, trained.backbone.state_dict()[key]), (name, key)
        torch.manual_seed(8)
        alone: Any = build_localizer(take_localizer(replace_settings(small(name), {"base": None})), 5)
        assert network.state_dict().keys() == alone.state_dict().keys(), "nothing else of the base is kept"


@pytest.mark.parametrize("net", ["{backbone: toy, options: {width: 24}}", "{backbone: squeezenet}"])
def test_a_base_on_another_backbone_is_refused(net: str) -> None:
    base = override(replace_settings(small("cam"), {"base": None}), [f"net={net}"])
    with pytest.raises(UserError, match=r"net is Toy of 48 channels, base.net .*: give both the same backbone"):
        build_localizer(take_localizer(replace_settings(small("ktse"), {"base": base})), 5)


@pytest.mark.parametrize("waits", [False, True])
def test_the_first_step_whose_loss_is_not_finite_is_named(
    waits: bool, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where losses are looked at once in a while, as on a GPU; the numbers are those of looking at every step."""
    recipe = small("cam", epochs=2)
    _, seen, _ = fit(recipe, rows)
    monkeypatch.setattr(Epoch, "is_due", lambda epoch, device: not waits)
    assert fit(recipe, rows)[1] == seen
    steps = iter(range(100))
    loss = CAM.loss

    def break_in_fifth(self: Any, batch: Any, progress: Any) -> dict[str, torch.Tensor]:
        broken = float("inf") if next(steps) >= 4 else 1.0
        return {name: value * broken for name, value in loss(self, batch, progress).items()}

    monkeypatch.setattr(CAM, "loss", break_in_fifth)
    with pytest.raises(UserError, match=r"not finite at step 4 \(cls, total\); lower train.optimizer.lr"):
        fit(recipe, rows)
