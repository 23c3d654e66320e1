# SPDX-License-Identifier: Apache-2.0
"""Recipes, what they would do, and runs: ``wsss.recipes``, ``recipe``, ``plan``, ``run``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsss_ray.api.data import Data
from wsss_ray.api.messages import show_in_cell
from wsss_ray.config import UserError, suggest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from PIL.Image import Image

    from wsss_ray.artifacts.record import RunFolder
    from wsss_ray.experiments.plan import Plan
    from wsss_ray.recipe import Recipe
    from wsss_ray.stages.run import Listener

    Where = str | os.PathLike[str]

MASKS = ("masks", "predictions")
"""The artifacts of a run that hold masks: pseudo masks of training images, predictions of validation images."""


def recipes() -> pd.DataFrame:
    """The recipes there are: name, what it is, and the package it comes from."""
    import pandas as pd

    from wsss_ray.studies import list_recipes

    return pd.DataFrame([vars(one) for one in list_recipes()]).set_index("name")


def recipe(
    name: Where,
    /,
    data: Data | Where | None = None,
    scale: str | None = None,
    profile: str | None = None,
    **overrides: Any,
) -> Recipe:
    """A recipe by its name (``wsss.recipes()``) or from a YAML file, with fields changed by their dotted keys.

    ``data`` is what ``prepare`` returned, or its place; None generates the synthetic images. ``scale`` is toy, small or
    paper; None takes toy for synthetic images, else what fits this machine. ``profile`` is paper or released.

    Raises UserError for an unknown name or key (and says which was probably meant), for a value of a wrong type, and
    where there is no prepared data.

        wsss.recipe("cam", data=data, scale="small", seed=1, **{"train.epochs": 5})
    """
    from wsss_ray.recipe import replace_settings
    from wsss_ray.studies import resolve, settle_scale

    given = os.fspath(name)
    if data is not None and not isinstance(data, Data):
        data = Data(data)
    uri = None if data is None else data.uri
    found = resolve(given, settle_scale(scale, given, uri, profile).scale, profile)
    changes = {**({} if uri is None else {"data.uri": uri}), **overrides}
    return replace_settings(found, changes) if changes else found


def plan(recipe: Recipe, out: Where = "results") -> Plan:
    """What ``run`` would do below ``out``, without doing it: its steps, which are reused, how long the rest may take.

    Raises UserError as ``run`` would before it starts.

        wsss.plan(recipe).table
    """
    from wsss_ray.experiments.plan import plan_run

    return plan_run(recipe, os.fspath(out))


def run(recipe: Recipe, out: Where = "results", callbacks: Sequence[Listener] = (), address: str | None = None) -> Run:
    """Carry out a recipe: train, localize, refine, segment, predict, score.

    Finished steps below ``out`` are reused, and the same call resumes after an interruption.

    ``callbacks`` hear what happens as it happens (``wsss.Listener``: ``hear_start``, ``hear_epoch``, ``hear_step``,
    ``hear_end``). It runs in the Ray session of this process where there is one, joins the cluster at ``address``, or
    starts a local one that ends with the run.

    Raises UserError for what the caller can mend, most of it before Ray starts.

        run = wsss.run(wsss.recipe("cam"), out="results")
        run.scores
    """
    from wsss_ray.experiments.run import RunOptions
    from wsss_ray.experiments.run import run as run_recipe
    from wsss_ray.stages.run import Listener

    wrong = next((one for one in callbacks if not isinstance(one, Listener)), None)
    if wrong is not None:
        raise UserError(f"callbacks: {wrong!r} is no wsss.Listener; derive a class from it and give an instance")
    with show_in_cell():
        finished = run_recipe(recipe, RunOptions(os.fspath(out), address, listeners=tuple(callbacks)))
    return Run(finished.folder)


class Run:
    """A finished run: ``Run("results/runs/cam-1a2b3c4d")``, or the beginning of its name below ``out``, opens one."""

    def __init__(self, where: Where, out: Where = "results") -> None:
        """Raises UserError where there is no such run, and lists those there are."""
        from wsss_ray.artifacts.record import open_run

        self._opened: RunFolder = open_run(os.fspath(where), os.fspath(out))

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self._opened.name

    @property
    def folder(self) -> str:
        """Where its recipe, record and panels lie."""
        return self._opened.folder

    @property
    def recipe(self) -> Recipe:
        """The recipe, every value resolved: ``wsss.run`` of it repeats the run."""
        from wsss_ray.recipe import validate

        return validate(self._opened.recipe, self.folder)

    @property
    def record(self) -> dict[str, Any]:
        """All that was recorded (``run.json``)."""
        return self._opened.record

    @property
    def scores(self) -> pd.DataFrame:
        """A row per scored step and variant, with its protocol; shares are in [0, 1]."""
        from wsss_ray.reports.frames import build_score_frame

        return build_score_frame(self._opened)

    @property
    def history(self) -> pd.DataFrame:
        """A row per training and epoch: losses, average precision, learning rate, images/s."""
        from wsss_ray.reports.frames import build_history_frame

        return build_history_frame(self._opened)

    def curve(self) -> pd.DataFrame:
        """Mean IoU in [0, 1] by background threshold, a column per step that has a curve (``seeds``)."""
        from wsss_ray.reports.frames import build_curve_frame

        return build_curve_frame(self._opened)

    def per_class(self, step: str | None = None) -> pd.DataFrame:
        """IoU in [0, 1] by class: of every scored step its usual variant, or of one ``step`` all variants.

        UserError for a step that was not scored.
        """
        from wsss_ray.reports.frames import build_class_frame

        return build_class_frame(self._opened, step)

    def show(self, images: int | Sequence[str] = 4, split: str | None = None) -> Image:
        """Panels of so many images, or of those with these ids: image, ground truth, and what the run made of it.

        ``split`` is ``train`` or ``val``; None takes the training images where the run made maps or masks of them.
        UserError for an unknown id or split.
        """
        from wsss_ray.data.manifest import open_data
        from wsss_ray.reports.panels import SHEETS, choose_rows, draw_rows, find_rows
        from wsss_ray.score.names import STEPS

        made: dict[str, dict[str, str]] = {}
        for step in STEPS.values():
            folder = self._opened.artifact(step.kind)
            if folder is not None:
                made.setdefault(SHEETS[step.split], {})[step.kind] = folder
        sheet = split or next(iter(made), "none")
        if sheet not in made:
            raise UserError(f"{self.name}: nothing to show of split {sheet!r}; choose one of {', '.join(made)}")
        data = open_data(self.record["data"])
        name = self.record["splits"][next(key for key, value in SHEETS.items() if value == sheet)]
        rows = choose_rows(data.shards(name), images) if isinstance(images, int) else find_rows(data, name, images)
        return draw_rows(data, rows, made[sheet])

    def maps(self, image_id: str) -> dict[str, np.ndarray]:
        """Class -> its map of an image, (H, W) float32 in [0, 1]: of the classes in its image-level labels.

        UserError where the run kept no maps, or none of this image.
        """
        from wsss_ray.artifacts.tables import decode_maps

        maps = decode_maps(self._find_row(("maps",), image_id))
        return {
            self._opened.labels[index + 1]: full for index, full in zip(maps.classes.tolist(), maps.full(), strict=True)
        }

    def mask(self, image_id: str) -> np.ndarray:
        """The mask of an image, (H, W) uint8, 0 background, 255 unknown: the pseudo mask of a training image, the
        prediction of a validation image.

        UserError where the run made no masks, or none of this image.
        """
        from wsss_ray.data.image import decode_mask
        from wsss_ray.score.names import STEPS

        row = self._find_row(MASKS, image_id)
        columns = [name for step in STEPS.values() if step.kind in MASKS for name in step.variants]
        return decode_mask(next(row[name] for name in columns if row.get(name) is not None), image_id)

    def _find_row(self, kinds: Sequence[str], image_id: str) -> dict[str, Any]:
        """The row of an image in the first of these artifacts that has it."""
        from wsss_ray.artifacts.tables import list_ids, read_row

        folders = [folder for kind in kinds if (folder := self._opened.artifact(kind)) is not None]
        for folder in folders:
            row = read_row(folder, image_id)
            if row is not None:
                return row
        what = " and ".join(kinds)
        known = [name for folder in folders for name in list_ids(folder)]
        if not known:
            raise UserError(f"{self.name}: run has no {what}; available: {', '.join(sorted(self.record['artifacts']))}")
        hint = suggest(image_id, known) or f"the first of {len(known)} is {known[0]}"
        raise UserError(f"{self.name}: no image {image_id!r} in its {what}; {hint}")

    @property
    def _head(self) -> str:
        recipe = self._opened.recipe
        return f"Run {self.name}: {recipe['method']['name']} at {recipe['scale']}, seed {recipe['seed']}"

    @property
    def _remarks(self) -> list[str]:
        from wsss_ray.reports.closing import list_unscored
        from wsss_ray.score.names import STEPS

        reasons = [f"{STEPS[step].title}: not scored: {why}" for step, why in list_unscored(self._opened).items()]
        return reasons or ([] if len(self.scores) else ["no ground truth, so nothing was scored"])

    def __repr__(self) -> str:
        scored = [f"{step} {variant} {100 * miou:.1f}" for (step, variant), miou in self.scores["miou"].items()]
        return "\n".join([self._head, *([f"mIoU %: {', '.join(scored)}"] if scored else []), *self._remarks])

    def _repr_html_(self) -> str:
        from wsss_ray.reports.frames import write_html

        return write_html(self._head, self.scores, self._remarks)
