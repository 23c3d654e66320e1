# SPDX-License-Identifier: Apache-2.0
"""What ``import wsss_ray as wsss`` offers, in Python and in notebooks: a few verbs, and what they return.

Everything is done by the rooms to the left; here it only gets its short names and its look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsss_ray.api.data import Data, prepare
from wsss_ray.api.model import Answer, TrainedModel, load
from wsss_ray.api.runs import Run, plan, recipe, recipes, run
from wsss_ray.config import UserError

if TYPE_CHECKING:
    from wsss_ray.experiments.plan import Plan
    from wsss_ray.recipe import Recipe
    from wsss_ray.stages.run import Listener

__all__ = [
    "Answer",
    "Data",
    "Listener",
    "Plan",
    "Recipe",
    "Run",
    "TrainedModel",
    "UserError",
    "load",
    "plan",
    "prepare",
    "recipe",
    "recipes",
    "run",
]


def __getattr__(name: str) -> Any:
    """The classes whose modules import PyTorch or Ray, when they are asked for."""
    if name == "Listener":
        from wsss_ray.stages.run import Listener

        return Listener
    if name == "Plan":
        from wsss_ray.experiments.plan import Plan

        return Plan
    if name == "Recipe":
        from wsss_ray.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
