# SPDX-License-Identifier: Apache-2.0
"""Optuna and ASHA as a sweep uses them on Ray Tune."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
from ray import tune

from wsss_ray.config import UserError
from wsss_ray.experiments.sweep import Plan
from wsss_ray.experiments.sweep_outcomes import Outcome, count_draws, group_lines
from wsss_ray.experiments.sweep_space import Axis, Point

REDUCTION = 3
"""Early stopping keeps the best third at every rung."""
WATCHED = "seed_miou"
"""What early stopping compares: mIoU of the seeds of validation images after an epoch."""


def build_scheduler(epochs: int) -> Any:
    """ASHA from a third of the epochs on, never at the last one, whose training is paid for; None where there is one.

    Before that, seeds may be background alone.
    """
    if epochs < 2:
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr="epoch",
        metric=WATCHED,
        mode="max",
        max_t=epochs - 1,
        grace_period=max(1, epochs // REDUCTION),
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )


def build_searcher(plan: Plan, outcomes: Sequence[Outcome]) -> Any:
    """TPE over the axes that knows the trials that are finished; UserError where Optuna is not installed."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError("--search tpe needs Optuna: install it with pip install 'wsss-ray[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points, rewards = [], []
    for line in group_lines(outcomes):
        found = [one.watched if plan.stopping else one.value for one in line.outcomes]
        known = [value for value in found if value is not None]
        points.append({f"over/{axis.key}": _place(axis, line.point[axis.key]) for axis in plan.axes})
        rewards.append(mean(known) if known else 0.0)
    # With the same seed it would draw the points that are known once more.
    sampler = optuna.samplers.TPESampler(seed=fold_seed(plan.recipe.seed + count_draws(outcomes)))
    return OptunaSearch(
        {f"over/{axis.key}": _distribution(axis, optuna.distributions) for axis in plan.axes},
        metric=WATCHED if plan.stopping else "value",
        mode="max",
        sampler=sampler,
        points_to_evaluate=points or None,
        evaluated_rewards=rewards or None,
    )


def fold_seed(seed: int) -> int:
    """A seed of 32 bits, which is all that Optuna takes; smaller ones are left as they are."""
    return seed if seed < 2**32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def _distribution(axis: Axis, distributions: Any) -> Any:
    """How TPE draws an axis: listed values by their place."""
    if axis.listed and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in axis.values):
        return distributions.IntDistribution(0, len(axis.values) - 1)
    if axis.listed:
        return distributions.CategoricalDistribution(list(range(len(axis.values))))
    if axis.whole:
        return distributions.IntDistribution(int(axis.low), int(axis.high), axis.log)
    return distributions.FloatDistribution(axis.low, axis.high, axis.log)


def _place(axis: Axis, value: Any) -> Any:
    return axis.values.index(value) if axis.listed else value


def read_point(axes: Sequence[Axis], drawn: dict[str, Any]) -> Point:
    """The point that TPE drew, of places in listed values and of values."""
    return {axis.key: axis.values[drawn[axis.key]] if axis.listed else drawn[axis.key] for axis in axes}
