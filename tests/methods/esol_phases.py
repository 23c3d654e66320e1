# SPDX-License-Identifier: Apache-2.0
"""The rows of ESOL's Table 6 as chains of phases."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from wsss_ray.methods.esol.network import ESOLConfig, Phase

Component = Literal["DT_e", "FL", "DT_s", "L_area"]
"""What Table 6 takes away: the offsets of either phase, feature clipping, the area loss."""


def plan_phases(without: Collection[Component] = (), **settings: Any) -> list[ESOLConfig]:
    """The phases of a run in order, each the base of the next, for a row of Table 6; ``settings`` go to all of them.

    What the paper leaves open in its rows is read so (inferred): without DT_e nothing is left to learn in the
    expansion, which falls away; without DT_s the regular weights of the second convolution learn in its place.
    ``alpha`` goes to the expansion alone.
    """
    removed = dict(settings)
    inverse = {"alpha": removed.pop("alpha")} if "alpha" in removed else {}
    if "DT_e" in without:
        removed["expansion_sampler"] = False
    if "FL" in without:
        removed["beta"] = 1.0
    if "L_area" in without:
        removed["mu"] = 0.0
    shrinkage = {"shrinkage_sampler": False, "trains": ("conv2",)} if "DT_s" in without else {}
    order: list[tuple[Phase, dict[str, Any]]] = [
        ("classifier", {}),
        ("expansion", inverse),
        ("shrinkage", shrinkage),
    ]
    return [
        ESOLConfig(phase=phase, **{**removed, **own})
        for phase, own in order
        if not (phase == "expansion" and "DT_e" in without)
    ]
