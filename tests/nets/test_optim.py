# SPDX-License-Identifier: Apache-2.0
"""Optimiser and schedules against released trajectories and hand-computed rates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wsss_ray.config import UserError, select
from wsss_ray.contracts import ParamGroup
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig, build_optimizer, compute_lr_multiplier, set_lr

POLY = ScheduleConfig(power=0.9)
RUNS = {
    "eps_poly": (0.9, POLY),
    "l2gcoco_poly": (0.7, ScheduleConfig(power=0.7)),
    "sgd09_const": (None, ScheduleConfig(name="constant")),
    "sgd09_poly": (0.9, POLY),
    "l2gvoc_sgd_nesterov_step": (None, ScheduleConfig(name="step", milestones=(5,), unit="steps")),
}


@pytest.mark.parametrize("run", RUNS)
def test_released_trajectories(run, golden):
    arrays = golden("07_poly_optimizer.npz")
    settings = json.loads(str(arrays["meta"]))["groups"][run]
    momentum, _, nesterov, _ = settings[0]
    assert max(s[1] for s in settings) in (0, float(arrays["wd"]))
    horizon, lr = int(arrays["T"]), float(arrays["lr0"])
    schedule = RUNS[run][1]
    config = OptimizerConfig(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=max(s[1] for s in settings))
    params = [torch.nn.Parameter(torch.from_numpy(arrays[f"init{g}"].copy())) for g in range(3)]
    multipliers = [round(rate / lr, 6) for rate in arrays[f"{run}__lr"][0]]
    groups = [ParamGroup(str(g), [params[g]], multipliers[g], 0.0 if settings[g][1] == 0 else None) for g in range(3)]
    optimizer = build_optimizer(groups, config)
    for step in range(arrays[f"{run}__lr"].shape[0]):
        set_lr(optimizer, compute_lr_multiplier(schedule, step, horizon, steps_per_epoch=1))
        found = [group["lr"] for group in optimizer.param_groups]
        assert np.abs(np.array(found) - arrays[f"{run}__lr"][step]).max() < 1e-12
        for g, parameter in enumerate(params):
            curve, target = (torch.from_numpy(arrays[f"{kind}{g}"]) for kind in ("curv", "target"))
            parameter.grad = curve * (parameter.detach() - target)
        optimizer.step()
        for g, parameter in enumerate(params):
            assert np.abs(parameter.detach().numpy() - arrays[f"{run}__traj{g}"][step + 1]).max() < 1e-12, (step, g)


def test_released_two_group_run(golden):
    arrays = golden("b15_utils.npz")
    decay = float(arrays["opt_wd"])
    momentum, first_decay, nesterov = arrays["opt_group0_momentum_wd_nesterov"].tolist()
    config = OptimizerConfig(lr=float(arrays["opt_lr"]), momentum=momentum, weight_decay=decay)
    first, second = (torch.nn.Parameter(torch.tensor(v)) for v in ([1.0, -2.0, 0.5], [0.3, 0.7]))
    groups = [ParamGroup("body", [first]), ParamGroup("head", [second], 10.0, 0.0)]
    optimizer = build_optimizer(groups, config)
    built = optimizer.param_groups[0]
    assert (built["momentum"], built["weight_decay"], built["nesterov"]) == (momentum, first_decay, bool(nesterov))
    for step in range(arrays["opt_lrs"].shape[0]):
        set_lr(optimizer, compute_lr_multiplier(POLY, step, int(arrays["opt_max_step"]), steps_per_epoch=1))
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(arrays["opt_lrs"][step].tolist(), abs=1e-12)
        optimizer.zero_grad()
        target = torch.tensor([0.2, 0.1, -0.4])
        loss = (first - target).square().sum() + 0.5 * (second + 1).square().sum() + first[0] * second[0]
        loss.backward()
        optimizer.step()
        found = torch.cat([first, second]).detach().numpy()
        assert np.abs(found - arrays["opt_params_after_step"][step]).max() < 1e-6


def test_momentum_is_what_the_settings_say():
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = build_optimizer([ParamGroup("a", [parameter])], OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0))
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["weight_decay"] == 0
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.item() == pytest.approx(1 - 0.1 * (1 + 1.5 + 1.75))


def test_poly_by_hand():
    assert compute_lr_multiplier(POLY, 0, 100, 10) == 1
    assert compute_lr_multiplier(POLY, 50, 100, 10) == pytest.approx(0.5**0.9)
    assert (
        compute_lr_multiplier(POLY, 99, 100, 10)
        == compute_lr_multiplier(POLY, 500, 100, 10)
        == pytest.approx(0.01**0.9)
    )
    longer = ScheduleConfig(power=1, horizon=200)
    assert compute_lr_multiplier(longer, 50, 100, 10) == pytest.approx(0.75)
    assert compute_lr_multiplier(ScheduleConfig(power=1, floor=0.2), 90, 100, 10) == 0.2


def test_deeplab_refreshes_every_ten_steps():
    schedule = ScheduleConfig(power=0.9, horizon=20_000, update_every=10, after="zero")
    rate = [2.5e-4 * compute_lr_multiplier(schedule, step, 20_000, 1) for step in (0, 9, 10, 19, 20_000)]
    assert rate[:2] == [2.5e-4, 2.5e-4]
    assert rate[2] == rate[3] == pytest.approx(2.5e-4 * (1 - 10 / 20_000) ** 0.9)
    assert rate[4] == 0


def test_step_counts_epochs_or_steps_and_warm_up_is_linear():
    epochs = ScheduleConfig(name="step", milestones=(5, 8), gamma=0.1)
    assert [round(compute_lr_multiplier(epochs, 7 * e, 70, 7), 6) for e in (4, 5, 7, 8)] == [1, 0.1, 0.1, 0.01]
    assert compute_lr_multiplier(epochs, 34, 70, 7) == 1
    assert compute_lr_multiplier(epochs, 35, 70, 7) == pytest.approx(0.1)
    steps = ScheduleConfig(name="step", milestones=(4000,), unit="steps")
    assert compute_lr_multiplier(steps, 3999, 6000, 7) == 1
    assert compute_lr_multiplier(steps, 4000, 6000, 7) == pytest.approx(0.1)
    warm = ScheduleConfig(name="constant", warmup_steps=4, warmup_start=0.2)
    assert [compute_lr_multiplier(warm, step, 9, 1) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_accumulating_two_halves_is_one_batch():
    results = []
    for parts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        torch.manual_seed(0)
        net, data = torch.nn.Linear(3, 2).double(), torch.randn(8, 3, dtype=torch.float64)
        optimizer = build_optimizer([ParamGroup("all", list(net.parameters()))], OptimizerConfig(lr=0.1))
        for part in parts:
            (net(data[part]).square().mean() / len(parts)).backward()
        optimizer.step()
        results.append(net.weight.detach())
    assert torch.allclose(results[0], results[1], atol=1e-14)


def test_adamw_and_refusals():
    parameter = torch.nn.Parameter(torch.ones(1))
    groups = [ParamGroup("a", [parameter], 2.0)]
    optimizer = build_optimizer(groups, OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"]) == (2e-3, 0.05)
    with pytest.raises(UserError, match="two optimiser groups"):
        build_optimizer(groups * 2, OptimizerConfig())
    with pytest.raises(UserError, match="frozen"):
        build_optimizer([], OptimizerConfig())
    for bad in ({"nesterov": True, "momentum": 0}, {"lr": 0}, {"momentum": 1.0}, {"power": 0.9}):
        with pytest.raises(ValidationError):
            OptimizerConfig(**bad)


@pytest.mark.parametrize("config", [OptimizerConfig(), ScheduleConfig()])
def test_every_setting_changes_the_weights(config):
    assert select(config, "weights") == config.model_dump(mode="json")
