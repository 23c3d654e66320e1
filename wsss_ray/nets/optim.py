# SPDX-License-Identifier: Apache-2.0
"""Optimisers and learning-rate schedules of the field, as settings.

The released ``PolyOptimizer`` of PSA, SEAM, EPS, SMAF, IRN and L2G-COCO passes its weight decay to torch's SGD as the
momentum, and its argument called momentum is the exponent. So the released runs had momentum = weight decay (5e-4, in
effect none), exponent 0.9 (L2G on COCO: 0.7), no Nesterov, and decay only where a group states it (L2G on COCO:
nowhere). ``OptimizerConfig(momentum=5e-4)`` with ``ScheduleConfig(name="poly", power=0.9)`` repeats them;
``momentum=0.9`` is what the papers say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from wsss_ray.config import Changes, Config, UserError
from wsss_ray.contracts import ParamGroup

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class OptimizerConfig(Config):
    """Base learning rate and rule; groups multiply the rate and may override the decay (``contracts.ParamGroup``)."""

    name: Annotated[Literal["sgd", "adamw"], Changes("weights")] = "sgd"
    lr: Annotated[Positive, Changes("weights")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.9
    """SGD only. 5e-4 repeats the released PolyOptimizer runs (see the module's text)."""
    weight_decay: Annotated[NonNegative, Changes("weights")] = 5e-4
    nesterov: Annotated[bool, Changes("weights")] = False
    betas: Annotated[tuple[Fraction, Fraction], Changes("weights")] = (0.9, 0.999)
    """AdamW only."""
    epsilon: Annotated[Positive, Changes("weights")] = 1e-8
    """AdamW only."""

    @model_validator(mode="after")
    def _possible(self) -> OptimizerConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs name 'sgd' and a momentum above 0: set one or the other")
        return self


class ScheduleConfig(Config):
    """How the learning rate changes; every number is a multiplier of the optimiser's ``lr``."""

    name: Annotated[Literal["poly", "constant", "step"], Changes("weights")] = "poly"
    power: Annotated[Positive, Changes("weights")] = 0.9
    """Poly: (1 - step / horizon) ** power."""
    horizon: Annotated[Annotated[int, Field(ge=1)] | None, Changes("weights")] = None
    """Poly: steps to zero; None means the whole run."""
    after: Annotated[Literal["hold", "zero"], Changes("weights")] = "hold"
    """Poly, from the horizon on: keep the last value (PolyOptimizer) or be zero (deeplab-pytorch)."""
    floor: Annotated[NonNegative, Changes("weights")] = 0.0
    """Poly: never below this (BECO's 1e-5 at lr 0.01 is 1e-3)."""
    update_every: Annotated[int, Field(ge=1), Changes("weights")] = 1
    """Poly: steps between refreshes (10 in deeplab-pytorch)."""
    milestones: Annotated[tuple[NonNegative, ...], Changes("weights")] = ()
    """Step: where the rate is multiplied by ``gamma``."""
    unit: Annotated[Literal["epochs", "steps"], Changes("weights")] = "epochs"
    """Step: what ``milestones`` count."""
    gamma: Annotated[Positive, Changes("weights")] = 0.1
    warmup_steps: Annotated[int, Field(ge=0), Changes("weights")] = 0
    """Linear warm-up, multiplied onto the rest, from ``warmup_start`` at step 0 to 1 at this step."""
    warmup_start: Annotated[Fraction, Changes("weights")] = 0.01


def compute_lr_multiplier(config: ScheduleConfig, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """Multiplier of every group's learning rate during 0-based optimiser step ``step`` of ``num_steps``."""
    value = 1.0
    if config.name == "poly":
        horizon = config.horizon or max(num_steps, 1)
        if step >= horizon and config.after == "zero":
            value = 0.0
        else:
            shown = min(step, horizon - 1) // config.update_every * config.update_every
            value = (1 - shown / horizon) ** config.power
        value = max(value, config.floor)
    elif config.name == "step":
        size = steps_per_epoch if config.unit == "epochs" else 1
        value = config.gamma ** sum(step >= milestone * size for milestone in config.milestones)
    if step < config.warmup_steps:
        value *= config.warmup_start + (1 - config.warmup_start) * step / config.warmup_steps
    return value


def build_optimizer(groups: Sequence[ParamGroup], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over ``groups``; each torch group keeps its ``name`` and its unscheduled rate as ``base_lr``.

    Errors: ``UserError`` where no parameter is left, or one is in two groups.
    """
    params = [id(p) for group in groups for p in group.params]
    if not params:
        raise UserError("nothing to train: every parameter is frozen; free a part of the backbone or add a head")
    if len(params) != len(set(params)):
        raise UserError("a parameter is in two optimiser groups: each must be in exactly one")
    torch_groups = [
        {
            "params": group.params,
            "name": group.name,
            "lr": config.lr * group.lr_multiplier,
            "base_lr": config.lr * group.lr_multiplier,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in groups
        if group.params
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(torch_groups, lr=config.lr, betas=config.betas, eps=config.epsilon)
    return torch.optim.SGD(torch_groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def set_lr(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Set every group's rate to its ``base_lr`` times ``multiplier`` (from ``compute_lr_multiplier``)."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
