# SPDX-License-Identifier: Apache-2.0
"""Everything below ``<out>``, read and compared with what was written: artifacts, runs and prepared data."""

from __future__ import annotations

from dataclasses import dataclass

from wsss_ray import storage
from wsss_ray.artifacts.files import find_damage, mark_damaged
from wsss_ray.artifacts.record import list_finished, open_run
from wsss_ray.artifacts.store import read_artifact
from wsss_ray.artifacts.usage import list_artifacts
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.data.manifest import MANIFEST
from wsss_ray.data.shards import check
from wsss_ray.experiments.settle import STEPS


@dataclass(frozen=True)
class Checked:
    """What was verified, and every problem in a line."""

    num_artifacts: int
    num_runs: int
    problems: list[str]


def check_all(out: str) -> Checked:
    """Verify every file of every finished artifact and run below ``out``; UserError where there is none."""
    root = storage.make_absolute(out)
    folders = list_artifacts(root, dict.fromkeys(step.stage for step in STEPS))
    runs = list_finished(storage.join(root, "runs"))
    if not folders and not runs:
        raise UserError(f"{out}: no artifacts or runs here; give the --out of a run")
    problems: list[str] = []
    with Bar("check", len(folders), "artifacts") as bar:
        for folder in folders:
            problems += check_artifact(folder)
            bar.advance()
    for name in runs:
        try:
            open_run(storage.join(root, "runs", name))
        except UserError as error:
            problems.append(str(error))
    return Checked(len(folders), len(runs), problems)


def check_artifact(folder: str) -> list[str]:
    """Every problem of an artifact, in a line each."""
    try:
        damaged = find_damage(folder, read_artifact(folder))
        found = [f"{storage.join(folder, name)}: damaged or gone" for name in damaged]
        if damaged:
            mark_damaged(folder)
        if not found and storage.exists(storage.join(folder, MANIFEST)):
            found = [f"{folder}: {problem}" for problem in check(folder)]
    except UserError as error:
        found = [str(error)]
    return found
