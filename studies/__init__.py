"""The papers, one file each: their recipes, and their tables as typed functions with the published numbers beside
them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from wsss_ray.config import UserError

if TYPE_CHECKING:
    from wsss_ray.experiments.study import Study
    from wsss_ray.recipe import Recipe


def modules() -> dict[str, ModuleType]:
    """The modules of this package by name."""
    found = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in found}


def names() -> list[str]:
    """Names of the recipes: the modules of this package that have a ``recipe`` function."""
    return [name for name, module in modules().items() if hasattr(module, "recipe")]


def recipes() -> list[tuple[str, str]]:
    """(name, first line of what it is) of every recipe."""
    return [
        (name, (module.__doc__ or "").strip().splitlines()[0])
        for name, module in modules().items()
        if hasattr(module, "recipe")
    ]


def resolve(
    name: str,
    scale: str = "toy",
    profile: str | None = None,
    data: str | None = None,
    seed: int | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """The recipe of this name or file, with overrides; UserError names what is unknown and what there is."""
    from wsss_ray.recipe import load, override

    recipe = load(name) if name.endswith((".yaml", ".yml")) or Path(name).is_file() else _built(name, scale, profile)
    extra = ([f"data.uri={data}"] if data else []) + ([f"seed={seed}"] if seed is not None else [])
    return override(recipe, [*extra, *settings]) if extra or settings else recipe


def _built(name: str, scale: str, profile: str | None) -> Recipe:
    if name not in names():
        raise UserError(f"no recipe {name!r}; there are: {', '.join(names())} (or give the path of a recipe file)")
    _check_choices(scale, profile)
    side: Literal["paper", "released"] = "released" if profile == "released" else "paper"
    built: Recipe = importlib.import_module(f"{__name__}.{name}").recipe(scale, side)
    return built


def _check_choices(scale: str, profile: str | None) -> None:
    if scale not in ("toy", "small", "paper"):
        raise UserError(f"--scale {scale}: choose toy, small or paper")
    if profile not in (None, "paper", "released"):
        raise UserError(f"--profile {profile}: choose paper or released")


def study_names() -> list[str]:
    """Names of the studies, ``module.key``: what the modules of this package list in ``STUDIES``."""
    return [f"{name}.{key}" for name, module in modules().items() for key in getattr(module, "STUDIES", {})]


def build_study(name: str, scale: str = "toy", profile: str = "paper") -> Study:
    """The study of this name; UserError names what is unknown and what there is."""
    module, _, key = name.partition(".")
    listed = getattr(modules().get(module), "STUDIES", {})
    if key not in listed:
        raise UserError(f"no study {name!r}; there are: {', '.join(study_names())}")
    _check_choices(scale, profile)
    built: Study = listed[key](scale, profile)
    return built
