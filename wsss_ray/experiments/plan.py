# SPDX-License-Identifier: Apache-2.0
"""What a run would do, without doing it: its steps in order, which of them are finished, and what they took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from wsss_ray import storage
from wsss_ray.artifacts.record import list_finished, open_run
from wsss_ray.artifacts.store import Artifact, Step, Store
from wsss_ray.cluster.join import Machines
from wsss_ray.config import UserError
from wsss_ray.data.manifest import DataSet, Manifest, load_manifest, open_data
from wsss_ray.data.sources import open_source
from wsss_ray.experiments.run import run_steps
from wsss_ray.experiments.settle import check_recipe, settle_recipe
from wsss_ray.recipe import Recipe
from wsss_ray.reports.terminal import build_text_table
from wsss_ray.stages.prepare import PrepareStep
from wsss_ray.stages.run import Compute, Run, Steps

if TYPE_CHECKING:
    import pandas as pd

NO_MACHINES = Machines(cpus=1, gpus=0, train_workers=1, train_cpus=1, inference_workers=1, cpu_workers=1)
"""Nothing is computed, so nothing is laid out."""


@dataclass(frozen=True)
class PlannedStep:
    """A step of a run to come."""

    title: str
    stage: str
    digest: str | None
    """Names its artifact; None where that follows from images which are not generated yet."""
    finished: bool
    seconds: float | None
    """What it took; of a step to be computed what it took in the median of the finished runs of this recipe at this
    scale below the same folder, None where there is none."""


@dataclass(frozen=True, repr=False)
class Plan:
    """The steps of a run to come, in order."""

    recipe: str
    scale: str
    out: str
    steps: tuple[PlannedStep, ...]

    @property
    def to_do(self) -> list[PlannedStep]:
        """The steps that will be computed."""
        return [step for step in self.steps if not step.finished]

    @property
    def seconds(self) -> float | None:
        """How long the rest took in earlier runs; None where one of its steps was never run here."""
        known = [step.seconds for step in self.to_do]
        return None if None in known else float(sum(one for one in known if one is not None))

    @property
    def title(self) -> str:
        """Of what, at which scale, where."""
        return f"{self.recipe} ({self.scale}) below {self.out}"

    @property
    def rest(self) -> str:
        """What is left to do, and about how long it takes."""
        if not self.to_do:
            return "nothing to compute"
        known = f", about {self.seconds / 60:.1f} min by earlier runs" if self.seconds is not None else ""
        return f"{len(self.to_do)} steps to compute{known}"

    @property
    def table(self) -> pd.DataFrame:
        """The steps as a pandas table: state, seconds, artifact."""
        import pandas as pd

        described = [_describe(step) for step in self.steps]
        columns = dict(zip(HEADINGS, zip(*described, strict=True), strict=True))
        seconds = [step.seconds for step in self.steps]
        return pd.DataFrame(columns).assign(seconds=pd.Series(seconds, dtype=float)).set_index("step")

    def __repr__(self) -> str:
        return f"Plan of {self.title}\n{self.table.to_string(na_rep='-', float_format='%.0f')}\n{self.rest}"

    def _repr_html_(self) -> str:
        from wsss_ray.reports.frames import write_html

        shown = self.table.assign(seconds=["-" if s.seconds is None else f"{s.seconds:.0f}" for s in self.steps])
        return write_html(f"Plan of {self.title}", shown, [self.rest])


HEADINGS = ("step", "state", "seconds", "artifact")


def _describe(step: PlannedStep) -> tuple[str, str, str, str]:
    """Title, state, seconds, artifact."""
    return (
        step.title,
        "reused" if step.finished else "to compute",
        "-" if step.seconds is None else f"{step.seconds:.0f}",
        "-" if step.digest is None else f"{step.stage}/{step.digest}",
    )


@dataclass(frozen=True)
class _Dry(Steps):
    """Steps that are looked up and never computed."""

    listed: list[tuple[str, Artifact]] = field(default_factory=list)

    def find_or_compute(self, title: str, step: Step, compute: Compute) -> Artifact:
        """The finished artifact, or one that is not there."""
        uid = step.digest
        missing = Artifact(step.stage, uid, self.store.folder(step.stage, uid), {"scores": {}})
        found = self.store.find(step.stage, uid) or missing
        self.listed.append((title, found))
        return found


def plan_run(recipe: Recipe, out: str) -> Plan:
    """The steps of a recipe below ``out``; UserError as ``run`` would raise it. Nothing is written."""
    check_recipe(recipe)
    steps = _Dry(Store(out))
    data, known = _open_data(recipe, steps)
    run_steps(Run(settle_recipe(recipe, data.manifest), data, steps, NO_MACHINES))
    durations = read_durations(recipe, out)
    return Plan(
        recipe=recipe.name,
        scale=recipe.scale,
        out=out,
        steps=tuple(
            PlannedStep(
                title,
                artifact.stage,
                artifact.digest if known or artifact.stage == PrepareStep.stage else None,
                artifact.reused,
                artifact.record.get("seconds") if artifact.reused else durations.get(title),
            )
            for title, artifact in steps.listed
        ),
    )


def _open_data(recipe: Recipe, steps: _Dry) -> tuple[DataSet, bool]:
    """The data, and whether its digests are those it will have."""
    if recipe.data.uri is not None:
        return open_data(recipe.data.uri), True
    step = PrepareStep(toy=recipe.data.toy.model_dump(mode="json"))
    artifact = steps.find_or_compute("data", step, _refuse)
    if artifact.reused:
        return DataSet(artifact.uri, load_manifest(artifact.uri)), True
    source = open_source("toy", config=recipe.data.toy)
    empty = {"num_images": 0, "digest": "", "has_masks": True, "has_saliency": True}
    splits = {"train": empty, "val": empty}
    have = {"splits": splits, "shards": (), "num_images": 0, "has_masks": True, "has_saliency": True}
    manifest = Manifest.model_validate(
        {"source": source.name, "classes": source.classes, "palette": source.palette, **have}
    )
    return DataSet(artifact.uri, manifest), False


def _refuse(folder: str) -> Mapping[str, Any]:
    raise RuntimeError(f"a plan computes nothing, also not {folder}")


def read_durations(recipe: Recipe, out: str) -> dict[str, float]:
    """Title -> median seconds of the steps that finished runs of this recipe and scale below ``out`` computed."""
    found: dict[str, list[float]] = defaultdict(list)
    runs = storage.join(storage.make_absolute(out), "runs")
    for name in list_finished(runs):
        try:
            run = open_run(storage.join(runs, name))
        except UserError:  # a damaged record says nothing about time
            continue
        if (run.recipe.get("name"), run.recipe.get("scale")) == (recipe.name, recipe.scale):
            for step in run.record["steps"]:
                if step["seconds"] is not None and not step.get("resumed"):
                    found[step["title"]].append(step["seconds"])
    return {title: median(seconds) for title, seconds in found.items()}


def describe_plan(plan: Plan) -> list[Table | str]:
    """What a command prints of a plan: the steps, and how long the rest took in earlier runs."""
    return [build_text_table(plan.title, HEADINGS, [_describe(step) for step in plan.steps], numeric=(2,)), plan.rest]
