# SPDX-License-Identifier: Apache-2.0
"""What a run was scored by, as pandas tables: what notebooks show and go on with. Shares are in [0, 1]."""

from __future__ import annotations

import pandas as pd
from markupsafe import Markup

from wsss_ray.artifacts.record import RunFolder
from wsss_ray.config import UserError
from wsss_ray.reports.rendering import render
from wsss_ray.score.names import NUMBERS, STEPS, choose_variant


def build_score_frame(run: RunFolder) -> pd.DataFrame:
    """A row per scored step and variant: every number, the threshold where there is one, and the protocol."""
    scored = {(step, variant): values for step in STEPS for variant, values in run.scored(step).items()}
    columns = [*NUMBERS, "threshold", "protocol"]
    index = pd.MultiIndex.from_tuples(list(scored), names=["step", "variant"]) if scored else None
    rows = [[values.get(key) for key in columns] for values in scored.values()]
    return pd.DataFrame(rows, columns=columns, index=index).dropna(axis=1, how="all" if scored else "any")


def build_curve_frame(run: RunFolder) -> pd.DataFrame:
    """Mean IoU by background threshold: a column per step that has a curve (seeds)."""
    curves = {step: run.record["scores"].get(step, {}).get("curve") for step in STEPS}
    found = {
        step: pd.Series(curve["miou"], index=pd.Index(curve["thresholds"], name="threshold"))
        for step, curve in curves.items()
        if curve is not None
    }
    return pd.DataFrame(found)


def build_class_frame(run: RunFolder, step: str | None = None) -> pd.DataFrame:
    """IoU by class, background first: a column per scored step, of its usual variant, or per variant of one ``step``.

    A class that was left out of the mean is NaN. UserError for a step that was not scored.
    """
    if step is None:
        usual = {name: choose_variant(name, run.scored(name)) for name in STEPS}
        columns = {name: run.scored(name)[variant] for name, variant in usual.items() if variant is not None}
    else:
        columns = run.scored(step) if step in STEPS else {}
        if not columns:
            scored = [name for name in STEPS if run.scored(name)]
            raise UserError(f"{run.name}: {step!r} was not scored; choose one of {', '.join(scored) or 'none'}")
    return pd.DataFrame(
        {name: pd.Series(values["iou"], dtype=float).reindex(run.labels) for name, values in columns.items()},
        index=pd.Index(run.labels, name="class"),
    )


def build_history_frame(run: RunFolder) -> pd.DataFrame:
    """A row per training and epoch: its losses, its average precision where it was measured, its rate and speed."""
    rows = {
        (title, epoch["epoch"] + 1): {
            **{f"loss/{name}": value for name, value in epoch["losses"].items()},
            **{key: value for key, value in epoch.items() if isinstance(value, (int, float)) and key != "epoch"},
        }
        for title, history in run.record.get("history", {}).items()
        for epoch in history
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["training", "epoch"]) if rows else None
    return pd.DataFrame(list(rows.values()), index=index)


def write_html(head: str, frame: pd.DataFrame, notes: list[str]) -> str:
    """A line, a table with shares in %, and lines below it, as HTML; every text is escaped."""
    shown = frame.copy()
    for name in shown.columns:
        if name in NUMBERS:
            shown[name] = shown[name].map(lambda value: "-" if pd.isna(value) else f"{100 * value:.1f}")
    shown.columns = pd.Index([NUMBERS.get(str(name), str(name)) for name in shown.columns])
    with pd.option_context("display.max_colwidth", None):
        # pandas escapes what stands in the cells.
        table = Markup(shown.to_html(na_rep="-", border=0)) if len(shown) else ""
    return str(render("parts", "frame", head=head, table=table, texts=notes))
