# SPDX-License-Identifier: Apache-2.0
"""The papers, one file each: the published recipe, how it shrinks, and the tables with the published numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, get_args

from wsss_ray.config import UserError, suggest

from ._listing import Paper, read_papers

if TYPE_CHECKING:
    from wsss_ray.experiments.study import Profile, Study, StudyFunction
    from wsss_ray.recipe import Recipe, Scale

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class ListedRecipe:
    """A recipe as ``wsss list`` shows it."""

    name: str
    summary: str
    """First line of what it is."""
    origin: str
    """``wsss-ray``, or the package that its method comes from, with its version."""


def list_papers() -> dict[str, Paper]:
    """The modules of this package by name, as their text declares them; none is imported."""
    return read_papers(tuple(__path__))


def load_paper(name: str) -> ModuleType:
    """The module of this name, imported."""
    return importlib.import_module(f"{__name__}.{name}")


def list_recipes() -> list[ListedRecipe]:
    """The modules of this package that have a ``recipe`` function, then the methods of other packages.

    Such a method runs on CAM's recipe, in the place of CAM. Only methods of other packages are imported.
    """
    from wsss_ray.methods import METHODS
    from wsss_ray.registry import OWN

    papers = {name: paper for name, paper in list_papers().items() if paper.has_recipe}
    outside = {name: METHODS[name] for name in METHODS.list_outside() if name not in papers}
    return [
        *(ListedRecipe(name, paper.summary, OWN) for name, paper in papers.items()),
        *(ListedRecipe(name, _first_line(method), METHODS.origin(name)) for name, method in outside.items()),
    ]


def _first_line(part: object) -> str:
    return (part.__doc__ or "").strip().partition("\n")[0]


def names() -> list[str]:
    """Names of the recipes."""
    return [recipe.name for recipe in list_recipes()]


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

    recipe = load(name) if is_file(name) else _build(name, scale, profile)
    extra = ([f"data.uri={data}"] if data else []) + ([f"seed={seed}"] if seed is not None else [])
    return override(recipe, [*extra, *settings]) if extra or settings else recipe


def _build(name: str, scale: str, profile: str | None) -> Recipe:
    from wsss_ray.methods import METHODS
    from wsss_ray.recipe import replace_settings

    if name not in names():
        if name in METHODS.broken:
            raise UserError(METHODS.broken[name])
        meant = suggest(name, names()) or f"there are: {', '.join(names())}"
        raise UserError(f"no recipe {name!r}; {meant} (or give the path of a recipe file)")
    size, side = _read_setting(scale, profile or "paper")
    paper = list_papers().get(name)
    if paper is not None and paper.has_recipe:
        built: Recipe = load_paper(name).recipe(size, side)
        return built
    return replace_settings(_build("cam", size, side), {"name": name, "method": {"name": name, "profile": side}})


@dataclass(frozen=True)
class ChosenScale:
    """A scale and why it is taken."""

    scale: str
    reason: str
    """Empty where it was given."""


def choose_scale(name: str, data: str | None, profile: str | None = None) -> ChosenScale:
    """The scale that fits a recipe or a study where none is given: ``toy`` for synthetic images; for others ``paper``
    where this machine has a GPU and all published weights it starts from, else ``small``.
    """
    if data is None:
        return ChosenScale("toy", "synthetic images")
    import torch

    from wsss_ray.nets.weight_store import locate_weights

    if not torch.cuda.is_available():
        return ChosenScale("small", "no GPU on this machine")
    if name in study_names():
        recipes = [row.recipe for row in build_study(name, "paper", profile or "paper").rows if row.recipe is not None]
    else:
        recipes = [_build(name, "paper", profile)]
    weights = dict.fromkeys(net.weights for recipe in recipes for net in recipe.nets if net.weights is not None)
    try:
        for published in weights:
            locate_weights(published)
    except UserError as error:
        return ChosenScale("small", f"weights of the paper's scale are missing: {error}")
    return ChosenScale("paper", "a GPU and all published weights are here")


def settle_scale(scale: str | None, name: str, data: str | None, profile: str | None = None) -> ChosenScale:
    """The scale that is given, or the one that fits; a recipe file says its own."""
    if scale is not None or is_file(name):
        return ChosenScale(scale or "toy", "")
    return choose_scale(name, data, profile)


def is_file(name: str) -> bool:
    """Whether a recipe is named by its file, which says the scale itself."""
    return name.endswith((".yaml", ".yml")) or Path(name).is_file()


def _read_setting(scale: str, profile: str) -> tuple[Scale, Profile]:
    """Scale and profile as typed."""
    from wsss_ray.experiments.study import Profile
    from wsss_ray.recipe import SCALES

    return _read(scale, SCALES, "--scale"), _read(profile, get_args(Profile), "--profile")


def _read(given: str, known: Sequence[Choice], option: str) -> Choice:
    """The choice of this name; UserError lists those there are."""
    if given not in known:
        *others, last = known
        raise UserError(f"{option} {given}: choose {', '.join(others)} or {last}")
    return next(one for one in known if one == given)


def study_names() -> list[str]:
    """Names of the studies, ``module.key``: what the modules of this package list in ``STUDIES``."""
    return list(list_studies())


def list_studies() -> dict[str, str]:
    """Name -> what it compares, in one line, of every study; none is built."""
    return {f"{name}.{key}": summary for name, paper in list_papers().items() for key, summary in paper.studies.items()}


def build_study(name: str, scale: str = "toy", profile: str = "paper") -> Study:
    """The study of this name; UserError names what is unknown and what there is."""
    if name not in study_names():
        meant = suggest(name, study_names()) or f"there are: {', '.join(study_names())}"
        raise UserError(f"no study {name!r}; {meant}")
    module, _, key = name.partition(".")
    listed: Mapping[str, StudyFunction] = load_paper(module).STUDIES
    return listed[key](*_read_setting(scale, profile))
