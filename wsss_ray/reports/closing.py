"""The closing table of a run: every number with its protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from wsss_ray.cluster.progress import console

if TYPE_CHECKING:
    from wsss_ray.artifacts.record import FinishedRun as Run


def rows(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, protocol) lines."""
    lines: list[tuple[str, str, str]] = []
    for title, history in run.history.items():
        if history and history[-1].get("mean_ap") is not None:
            epoch = history[-1]["epoch"] + 1
            lines.append((f"image-level mAP ({title})", percent(history[-1]["mean_ap"]), f"val, after epoch {epoch}"))
    for name, scores in run.scores.items():
        for variant, values in scores.items():
            if "protocol" in values:
                lines.append((f"{name} mIoU", percent(values["miou"]), values["protocol"]))
                for part, recall in values.get("part_recall", {}).items():
                    lines.append((f"  recall of part {part}", percent(recall), variant))
    return lines


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}"


def closing_table(run: Run) -> None:
    """Print scores, where the images are, and how to compare."""
    table = Table(title=f"{run.recipe.name} ({run.recipe.scale}, seed {run.recipe.seed})", title_justify="left")
    for column, justify in (("score", "left"), ("%", "right"), ("protocol", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for line in rows(run):
        table.add_row(*line)
    console.print(table)
    console.print(f"images: {run.folder}/panels", soft_wrap=True)
    console.print(f"recipe:   {run.folder}/recipe.yaml (run it again with 'wsss run FILE')", soft_wrap=True)
    console.print("compare:  wsss ui")
