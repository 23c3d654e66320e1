# SPDX-License-Identifier: Apache-2.0
"""Who listens to a run: the log, MLflow, and the panels of what it made."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.artifacts.store import Artifact
from wsss_ray.experiments.code import list_changed, stamp_code
from wsss_ray.methods.base import MethodConfig
from wsss_ray.recipe import Localization, Recipe, dump
from wsss_ray.reports.panels import draw_panels
from wsss_ray.score.names import choose_variant, name_metric, take_scored
from wsss_ray.stages.run import Listener, Run
from wsss_ray.tracking import Tracker, flatten

log = logging.getLogger(__name__)


class StepLog(Listener):
    """Says which steps were loaded instead of computed, and what a training's history warns of."""

    def __init__(self) -> None:
        self.chain: Sequence[Localization] = ()

    def hear_start(self, run: Run) -> None:
        """Remember the localizers, whose methods know what their history says."""
        self.chain = run.recipe.chain

    def hear_step(self, title: str, artifact: Artifact) -> None:
        """One line for a step that was loaded, one for a warning."""
        if artifact.reused:
            log.info(f"{title}: reused {artifact.stage}/{artifact.digest}")
        if artifact.record["step"].get("kind") == "localizer":
            warning = warn_of(self.chain[title.count("base ")].method, artifact.record["history"])
            if warning is not None:
                log.warning(f"{title}: {warning}")


class CodeLog(Listener):
    """Says of every step computed behind a change of the code that it may be of the old code and the new one."""

    def __init__(self, tracker: Tracker, recipe: Recipe) -> None:
        self.tracker, self.recipe = tracker, recipe
        self.stamps = stamp_code(recipe)

    def hear_step(self, title: str, artifact: Artifact) -> None:
        """One line, and a tag in MLflow."""
        changed = [] if artifact.reused else list_changed(self.stamps, stamp_code(self.recipe))
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            log.warning(
                f"{title}: code changed while this run went on ({changed[0]}{more}), and this step may mix both: "
                f"remove {artifact.uri} and run the command again"
            )
            self.tracker.set_tags({f"code_changed.{title.replace(' ', '_')}": ", ".join(changed)})


def warn_of(method: MethodConfig, history: Sequence[Mapping[str, Any]]) -> str | None:
    """What the records of a training's epochs warn of; ``recall`` joins the loss parts where seeds were scored."""
    recalls = [{"recall": epoch["seed_recall"]} if "seed_recall" in epoch else {} for epoch in history]
    return method.warning([{**epoch["losses"], **own} for epoch, own in zip(history, recalls, strict=True)])


class MlflowLog(Listener):
    """Logs recipe, speed, memory, histories, artifacts and scores of every step as soon as it is finished."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def hear_start(self, run: Run) -> None:
        """The settled recipe as parameters and as a file."""
        self.tracker.log_params(flatten(run.recipe.model_dump(mode="json")))
        self.tracker.log_text(dump(run.recipe), "recipe.yaml")

    def hear_step(self, title: str, artifact: Artifact) -> None:
        """Metrics and tags of one step."""
        name, record = title.replace(" ", "_"), artifact.record
        # What the parts of a resumed step took that were done before, nobody knows.
        measured = ("images_per_second", "peak_memory_mb", *([] if record.get("resumed") else ["seconds"]))
        self.tracker.log_metrics({f"{name}/{key}": record.get(key) for key in measured})
        for epoch in record.get("history", []):
            self.tracker.log_metrics(_name_epoch(name, epoch), step=epoch["epoch"])
        where = f"{artifact.stage}/{artifact.digest}"
        self.tracker.set_tags({f"artifact.{name}": where, f"reused.{name}": str(artifact.reused)})
        weights = record["step"].get("weights")
        if weights:
            self.tracker.set_tags({f"weights.{name}": weights})
        if "scores" in record:
            log_scores(self.tracker, title.removeprefix("score "), record["scores"])
        self.tracker.flush()


class PanelLog(Listener):
    """Draws the panels of a finished run and adds them to its MLflow run."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def hear_end(self, finished: FinishedRun) -> None:
        """Panels into the run's folder and into MLflow."""
        chosen = finished.recipe.data
        splits = {"score": chosen.score_split, "val": chosen.val_split}
        artifacts = {name: artifact.uri for name, artifact in finished.artifacts.items()}
        self.tracker.log_files(draw_panels(finished.data, splits, artifacts, finished.folder), "panels")


def _name_epoch(name: str, epoch: Mapping[str, Any]) -> dict[str, float | None]:
    losses = {
        f"{name}/{part}" if part.startswith("monitor/") else f"{name}/loss/{part}": value
        for part, value in epoch["losses"].items()
    }
    keys = ("mean_ap", "images_per_second", "peak_memory_mb", "learning_rate")
    seeds = ("seed_miou", "seed_recall", "seed_precision")
    return {**losses, **{f"{name}/{key}": epoch.get(key) for key in (*keys, *seeds)}}


def log_scores(tracker: Tracker, step: str, found: Mapping[str, Any]) -> None:
    """All numbers of a scored step, its curve by whole per cent, and its usual number under a name of its own."""
    tracker.log_metrics(dict(flatten_scores(step, found)))
    for percent, miou in _read_curve(found).items():
        tracker.log_metrics({f"{step}/miou_at_threshold_percent": miou}, step=percent)
    variant = choose_variant(step, found)
    if variant is not None:
        # One short name per step, whatever its variant: what compare pages and parallel coordinates are built on.
        tracker.log_metrics({f"miou/{step}": found[variant]["miou"]})


def flatten_scores(
    step: str, found: Mapping[str, Any], without: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, float | None]]:
    """Names and values in MLflow: ``seeds/fixed/miou``, ``seeds/fixed/iou/dog`` ...

    Of a variant that is the same in ``without`` only the mIoU.
    """
    known = {} if without is None else take_scored(step, without)
    for variant, values in take_scored(step, found).items():
        if values == known.get(variant):
            yield name_metric(step, variant, "miou"), values["miou"]
            continue
        for key, value in values.items():
            if isinstance(value, (int, float)):
                yield name_metric(step, variant, key), value
        for label, value in values["iou"].items():
            yield name_metric(step, variant, f"iou/{label}"), value
        for part, value in values.get("part_recall", {}).items():
            yield name_metric(step, variant, f"recall_of_part/{part}"), value


def _read_curve(found: Mapping[str, Any]) -> dict[int, float]:
    """Threshold in whole per cent -> mIoU at the threshold nearest to it: MLflow keeps one value a step."""
    curve = found.get("curve", {"thresholds": [], "miou": []})
    nearest: dict[int, tuple[float, float]] = {}
    for threshold, miou in zip(curve["thresholds"], curve["miou"], strict=True):
        percent = round(100 * threshold)
        off = abs(100 * threshold - percent)
        if percent not in nearest or off < nearest[percent][0]:
            nearest[percent] = (off, miou)
    return {percent: miou for percent, (_, miou) in nearest.items()}
