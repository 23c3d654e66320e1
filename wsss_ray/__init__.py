# SPDX-License-Identifier: Apache-2.0
"""wsss-ray: weakly supervised semantic segmentation from image-level labels, run on Ray.

    import wsss_ray as wsss

    recipe = wsss.recipe("cam", data=wsss.prepare("images", out="data/mine"))
    run = wsss.run(recipe)
    run.scores, run.show(4)
    wsss.load(run).predict("dog.jpg").plot()

Each name is imported when it is first used; ``import wsss_ray`` itself takes no time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_ray.api import (
        Answer,
        Data,
        Listener,
        Plan,
        Recipe,
        Run,
        TrainedModel,
        UserError,
        load,
        plan,
        prepare,
        recipe,
        recipes,
        run,
    )

__version__ = "0.1.0"
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

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    # cli/ and studies/ lie beside this folder there: a checkout that a job was sent runs its own, not the installed.
    __path__.append(str(_checkout))


class _Package(ModuleType):
    """``wsss_ray.recipe`` stays the function after ``from wsss_ray.recipe import Recipe``, which would put the module
    of that name in its place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsss_ray import api

    return getattr(api, name)
