# SPDX-License-Identifier: Apache-2.0
"""The closing table of a run: every number with its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from wsss_ray.artifacts.record import RunFolder
from wsss_ray.reports.layout import format_percent
from wsss_ray.reports.terminal import build_text_table
from wsss_ray.score.names import NOT_SCORED, PARTS, STEPS, make_title


def list_scores(run: RunFolder) -> list[tuple[str, str, str]]:
    """(what, value in %, protocol) of everything a run was scored by."""
    lines: list[tuple[str, str, str]] = []
    for title, history in run.record.get("history", {}).items():
        if history and history[-1].get("mean_ap") is not None:
            epoch = history[-1]["epoch"] + 1
            value = format_percent(history[-1]["mean_ap"])
            lines.append((f"image-level mAP ({title})", value, f"val, after epoch {epoch}"))
    unscored = list_unscored(run)
    for step in STEPS:
        if step in unscored:
            lines.append((STEPS[step].title, "-", f"not scored: {unscored[step]}"))
        for variant, values in run.scored(step).items():
            lines.append((f"{make_title(step, variant)}: mIoU", format_percent(values["miou"]), values["protocol"]))
            lines += list_part_recalls(values)
    return lines


def list_unscored(run: RunFolder) -> dict[str, str]:
    """Step -> why it has no score though the data has ground truth."""
    scores = run.record.get("scores", {})
    return {step: str(scores[step][NOT_SCORED]) for step in STEPS if NOT_SCORED in scores.get(step, {})}


def list_part_recalls(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The recall of every part of synthetic objects, below the variant it belongs to."""
    return [
        (f"  recall on {PARTS.get(part, f'part {part}')}", format_percent(recall), "synthetic parts")
        for part, recall in values.get("part_recall", {}).items()
    ]


def describe_run(run: RunFolder) -> list[Table | str]:
    """What a command prints of a finished run: its scores, where its images are, and how to compare."""
    recipe = run.recipe
    title = f"{recipe['name']} ({recipe['scale']}, seed {recipe['seed']})"
    return [
        build_text_table(title, ("score", "%", "protocol"), list_scores(run), numeric=(1,)),
        f"images:   {run.folder}/panels",
        f"recipe:   {run.folder}/recipe.yaml (run it again with 'wsss run FILE')",
        f"report:   wsss report {run.folder}",
        f"compare:  wsss compare {run.folder} OTHER",
    ]
