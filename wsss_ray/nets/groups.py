# SPDX-License-Identifier: Apache-2.0
"""The four parameter groups of the field: pretrained or new, weight or bias."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from wsss_ray.contracts import ParamGroup
from wsss_ray.nets.backbone import Backbone

PSA_MULTIPLIERS = (1.0, 2.0, 10.0, 20.0)
"""Multipliers of pretrained weights, pretrained biases, new weights, new biases (PSA, SEAM, EPS, SSSS)."""


def group_parameters(
    module: nn.Module,
    multipliers: tuple[float, float, float, float] = PSA_MULTIPLIERS,
    bias_decay: float | None = 0.0,
    pretrained: Iterable[nn.Module] | None = None,
) -> list[ParamGroup]:
    """Every trainable parameter of ``module`` in one of four groups; empty groups are left out.

    ``pretrained`` are the modules that started from weights (default: every ``Backbone`` inside). Parameters without
    ``requires_grad`` and those a backbone calls frozen are in no group, so that they are not decayed either. A
    parameter named ``bias`` (also BatchNorm's beta) counts as a bias. ``bias_decay`` None means the recipe's.
    """
    started = list(pretrained) if pretrained is not None else [m for m in module.modules() if isinstance(m, Backbone)]
    old = {id(p) for part in started for p in part.parameters()}
    frozen = {id(p) for part in module.modules() if isinstance(part, Backbone) for p in part.frozen()}
    sorted_params: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in frozen:
            key = (id(parameter) not in old, name.rsplit(".", 1)[-1] == "bias")
            sorted_params.setdefault(key, []).append(parameter)
    layout = [
        ("pretrained weights", (False, False), multipliers[0], None),
        ("pretrained biases", (False, True), multipliers[1], bias_decay),
        ("new weights", (True, False), multipliers[2], None),
        ("new biases", (True, True), multipliers[3], bias_decay),
    ]
    return [ParamGroup(name, sorted_params[key], lr, decay) for name, key, lr, decay in layout if key in sorted_params]
