"""``wsss run``: the whole road of one recipe, its MLflow run, its panels and its closing table."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wsss_ray import storage
from wsss_ray.artifacts import network as build
from wsss_ray.artifacts.network import NetworkSpec
from wsss_ray.artifacts.record import Run, open_run
from wsss_ray.artifacts.store import Artifact, Store, digest
from wsss_ray.cluster.join import cluster, machines
from wsss_ray.cluster.progress import console
from wsss_ray.data.manifest import DataSet, Manifest, load_manifest
from wsss_ray.data.saliency import words
from wsss_ray.experiments import road
from wsss_ray.experiments.road import Walk
from wsss_ray.nets.weights import locate
from wsss_ray.recipe import Localization, NetConfig, Recipe, dump
from wsss_ray.reports.closing import print_closing_table
from wsss_ray.score.names import STEPS
from wsss_ray.stages import predict, refine, score
from wsss_ray.tracking import Tracker, flatten


def preflight(recipe: Recipe) -> None:
    """Everything that can be refused without Ray: data, splits, saliency, backbones, weights; each names its fix."""
    if recipe.data.uri is not None:
        road.settle(recipe, load_manifest(storage.absolute(recipe.data.uri)))
    nets: list[NetConfig] = []
    part: Localization | None = recipe
    while part is not None:
        nets.append(part.net)
        part = part.base
    nets += [extra.net for extra in (recipe.affinity, recipe.segment) if extra is not None]
    for net in nets:
        with torch.device("meta"):
            build.backbone(net, pretrained=False)
        if net.weights is not None:
            locate(net.weights)


def run(
    recipe: Recipe,
    out: str,
    address: str | None = None,
    parent: str | None = None,
    quiet: bool = False,
    label: str | None = None,
    share: int = 1,
    on_epoch: Callable[[str, dict[str, Any]], None] = lambda title, epoch: None,
) -> Run:
    """Walk the road of ``recipe``; artifacts, MLflow and panels lie below ``out``.

    ``label`` names the MLflow run, a child of run ``parent``; ``share`` runs share the cluster; ``on_epoch`` hears the
    title and record of every training epoch. Raises UserError for anything the user can mend, before Ray starts where
    that is possible.
    """
    preflight(recipe)
    store = Store(out)
    tracker = Tracker(store.uri, label or recipe.name, run_tags(recipe), parent)
    status = "FAILED"
    try:
        with cluster(address):
            walk = Walk(recipe, store, machines(recipe.resources, share), on_epoch=on_epoch)
            finished = take(walk, tracker)
            status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with contextlib.suppress(Exception):
            tracker.finish(status)
    finished.mlflow_run = tracker.run_id
    if not quiet:
        print_closing_table(open_run(finished.folder))
    return finished


def take(walk: Walk, tracker: Tracker) -> Run:
    """Every step of the recipe, each logged as soon as it is done."""
    road.open_data(walk)
    recipe = walk.recipe
    assert walk.manifest is not None
    folder = storage.join(walk.store.uri, "runs", f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}")
    storage.write_bytes(storage.join(folder, "recipe.yaml"), dump(recipe).encode())
    tracker.params(flatten(recipe.model_dump(mode="json")))
    tracker.text(dump(recipe), "recipe.yaml")
    walk.on_step = lambda title, artifact: log_step(tracker, title, artifact)
    for title, artifact in walk.steps:
        log_step(tracker, title, artifact)
    done = Run(folder, recipe, {}, {})

    network = road.localizer(walk, recipe)
    done.artifacts["network"] = network
    masks = None
    if recipe.refine is not None or not recipe.predicts:
        maps = road.localize(walk, "localize", recipe, network)
        done.artifacts["maps"] = maps
        _score(walk, tracker, done, "seeds", "maps", maps, str(recipe.data.score_split))
        if recipe.refine is not None:
            masks = refined(walk, maps)
            done.artifacts["masks"] = masks
            _score(walk, tracker, done, "masks", "masks", masks, str(recipe.data.score_split))
    answering = network if recipe.segment is None else None
    if recipe.segment is not None and masks is not None:
        spec = NetworkSpec(kind="segmenter", num_classes=walk.num_classes, segment=recipe.segment)
        answering = road.train_network(walk, "segment", spec, {"masks": masks})
        done.artifacts["segmenter"] = answering
    if answering is not None and recipe.predicts:
        predictions = predicted(walk, answering)
        done.artifacts["predictions"] = predictions
        _score(walk, tracker, done, "segmentation", "predictions", predictions, recipe.data.val_split)
    done.history = {title: a.record["history"] for title, a in walk.steps if "history" in a.record}
    done.train_seconds = sum(a.record.get("seconds", 0.0) for _, a in walk.steps if a.stage == "train")
    finish(walk, tracker, done)
    return done


def refined(walk: Walk, maps: Artifact) -> Artifact:
    """Pseudo masks of the training split; PSA and IRN first make labels and train their network on them."""
    recipe = walk.recipe
    refiner = recipe.refine
    assert refiner is not None
    network = None
    if refiner.trainable:
        labels = refine_step(walk, "refine labels", maps, refiner.training_labels(), None)
        spec = NetworkSpec(kind="affinity", num_classes=walk.num_classes, refiner=refiner, affinity=recipe.affinity)
        network = road.train_network(walk, "refine train", spec, {"masks": labels})
    return refine_step(walk, "refine", maps, refiner, network)


def refine_step(walk: Walk, title: str, maps: Artifact, refiner: Any, network: Artifact | None) -> Artifact:
    """One refiner over all class maps."""
    split = str(walk.recipe.data.train_split)
    inputs = {"maps": maps.digest, **({"network": network.digest} if network else {})}
    uri = network.uri if network else None
    return walk.stage(
        "refine",
        title,
        {"refiner": refiner.model_dump(mode="json")},
        inputs,
        lambda folder: refine.refine(
            title, walk.data, walk.shards(split), maps.uri, refiner, uri, folder, walk.machines
        ),
    )


def predicted(walk: Walk, network: Artifact) -> Artifact:
    """Masks of the validation split."""
    assert walk.manifest is not None
    recipe = walk.recipe
    split = recipe.data.val_split
    net = recipe.net if recipe.segment is None else recipe.segment.net
    config = {"predict": recipe.predict.model_dump(mode="json"), "normalize": net.normalize.model_dump(mode="json")}
    inputs = {"network": network.digest, "data": walk.manifest.splits[split].digest}
    return walk.stage(
        "predict",
        "predict",
        config,
        inputs,
        lambda folder: predict.predict(
            "predict",
            walk.data,
            walk.shards(split),
            network.uri,
            recipe.predict,
            folder,
            walk.machines,
            recipe.resources,
        ),
    )


def _score(
    walk: Walk, tracker: Tracker, done: Run, name: str, kind: score.Kind, artifact: Artifact, split: str
) -> None:
    """Score one artifact where there are masks, and log it."""
    assert walk.manifest is not None
    manifest = walk.manifest
    if not manifest.splits[split].has_masks:
        console.print(f"score {name}: split {split!r} has no masks, so there is nothing to score against")
        return
    recipe = walk.recipe
    settings = recipe.score
    if settings.background is None:
        settings = settings.model_copy(update={"background": recipe.method.background()})
    told = protocols(recipe, split, saliency_words(recipe, manifest))
    protocol = {name: told[name] for name in score.PROTOCOLS[kind]}
    dumped = settings.model_dump(mode="json", exclude=None if settings.at else {"at"})
    config = {"kind": kind, "score": dumped, "split": split, "protocol": protocol}
    inputs = {kind: artifact.digest, "data": walk.manifest.splits[split].digest}
    made = walk.stage(
        "score",
        f"score {name}",
        config,
        inputs,
        lambda folder: score.score(
            f"score {name}",
            walk.data,
            walk.shards(split),
            artifact.uri,
            kind,
            settings,
            manifest,
            protocol,
            folder,
            walk.machines,
        ),
    )
    done.artifacts[f"score {name}"] = made
    done.scores[name] = made.record["scores"]
    tracker.metrics(score.flat_metrics(name, made.record["scores"]))
    for percent, miou in by_percent(score.curve_metrics(made.record["scores"])).items():
        tracker.metrics({f"{name}/miou_at_threshold_percent": miou}, step=percent)
    headline = next((made.record["scores"][v] for v in STEPS[name].variants if v in made.record["scores"]), None)
    if headline is not None:
        # One short name per step, whatever its variant: what compare pages and parallel coordinates are built on.
        tracker.metrics({f"miou/{name}": headline["miou"]})
    tracker.flush()


def by_percent(points: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Threshold in whole per cent -> mIoU at the threshold nearest to it: MLflow keeps one value a step."""
    nearest: dict[int, tuple[float, float]] = {}
    for threshold, miou in points:
        percent = round(100 * threshold)
        off = abs(100 * threshold - percent)
        if percent not in nearest or off < nearest[percent][0]:
            nearest[percent] = (off, miou)
    return {percent: miou for percent, (_, miou) in nearest.items()}


def saliency_words(recipe: Localization, manifest: Manifest) -> str:
    """Where the saliency that some localizer of this recipe learns from came from; empty where none does."""
    if "saliency" in recipe.method.needs:
        return words(manifest.options.get("saliency"))
    return saliency_words(recipe.base, manifest) if recipe.base is not None else ""


def protocols(recipe: Recipe, split: str, extra: str = "") -> dict[str, str]:
    """What each scored variant means, in words that belong beside its number; ``extra`` ends each of them."""
    background = recipe.score.background if recipe.score.background is not None else recipe.method.background()
    labels = (
        "image labels used at test time" if recipe.predict.gate.classes == "labels" else "no image labels at test time"
    )
    views = (
        f"scales {', '.join(f'{scale:g}' for scale in recipe.predict.scales)}{' + flip' if recipe.predict.flip else ''}"
    )
    refiner = recipe.refine.name if recipe.refine is not None else "none"
    said = {
        "fixed": f"{split}, threshold {background:g} fixed by the method, image labels used",
        "best": f"{split}, threshold {{threshold:g}} chosen on {split} ground truth, image labels used",
        "mask": f"{split}, refined by {refiner}, image labels used",
        "single_scale": f"{split}, single scale, {labels}",
        "multi_scale": f"{split}, {views}, {labels}",
        "crf": f"{split}, {views} + CRF, {labels}",
    }
    return {name: f"{text}, {extra}" if extra else text for name, text in said.items()}


def log_step(tracker: Tracker, title: str, artifact: Artifact) -> None:
    """A step's speed, memory and curves, and whether it was computed or loaded."""
    name = title.replace(" ", "_")
    record = artifact.record
    tracker.metrics(
        {
            f"{name}/seconds": record.get("seconds"),
            f"{name}/images_per_second": record.get("images_per_second"),
            f"{name}/peak_memory_mb": record.get("peak_memory_mb"),
        }
    )
    for epoch in record.get("history", []):
        values = {f"{name}/loss/{part}": value for part, value in epoch["losses"].items()}
        values |= {
            f"{name}/{key}": epoch[key] for key in ("mean_ap", "images_per_second", "peak_memory_mb", "learning_rate")
        }
        values |= {f"{name}/{key}": epoch.get(key) for key in ("seed_miou", "seed_recall", "seed_precision")}
        tracker.metrics(values, step=epoch["epoch"])
    tracker.tags({f"artifact.{name}": f"{artifact.stage}/{artifact.digest}", f"reused.{name}": str(artifact.reused)})
    weights = record.get("inputs", {}).get("weights")
    if weights:
        tracker.tags({f"weights.{name}": weights})
    tracker.flush()


def finish(walk: Walk, tracker: Tracker, done: Run) -> None:
    """Scores and panels into the run's folder and into MLflow."""
    from wsss_ray.reports.panels import draw_panels

    summary = {
        "scores": done.scores,
        "history": done.history,
        "artifacts": {
            name: {
                "stage": a.stage,
                "digest": a.digest,
                "content": a.record.get("content"),
                "seconds": a.record.get("seconds"),
            }
            for name, a in done.artifacts.items()
        },
        "steps": [
            {
                "title": title,
                "stage": a.stage,
                "digest": a.digest,
                "reused": a.reused,
                **{key: a.record.get(key) for key in ("seconds", "images_per_second", "peak_memory_mb")},
            }
            for title, a in walk.steps
        ],
        "data": walk.data,
        "classes": list(walk.manifest.classes) if walk.manifest is not None else [],
        "splits": {"score": walk.recipe.data.score_split, "val": walk.recipe.data.val_split},
        "mlflow_run": tracker.run_id,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    storage.write_json(storage.join(done.folder, "run.json"), summary)
    assert walk.manifest is not None
    data = DataSet(walk.data, walk.manifest)
    artifacts = {name: artifact.uri for name, artifact in done.artifacts.items()}
    splits = {"score": str(walk.recipe.data.score_split), "val": walk.recipe.data.val_split}
    tracker.files(draw_panels(data, splits, artifacts, done.folder), "panels")


def run_tags(recipe: Recipe) -> dict[str, str]:
    """What runs are searched by."""
    return {
        "kind": "run",
        "method": recipe.method.name,
        "network": recipe.net.backbone,
        "refiner": recipe.refine.name if recipe.refine is not None else "none",
        "profile": recipe.method.profile,
        "scale": recipe.scale,
        "data": data_name(recipe.data.uri),
        "seed": str(recipe.seed),
        "git_commit": git_commit(),
        **({"masks_in_training": "val seeds of every epoch"} if recipe.train.validate_seeds else {}),
        **recipe.tags,
    }


def data_name(uri: str | None) -> str:
    """What data is searched by: the last part of its place, ``toy`` for generated images."""
    return (uri or "toy").rstrip("/").rsplit("/", 1)[-1]


def git_commit() -> str:
    """The commit of the working folder, marked where it has changes; "unknown" outside a repository."""
    try:
        here = Path(__file__).resolve().parent
        show = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return (
            subprocess.run(show, capture_output=True, text=True, timeout=10, env=os.environ).stdout.strip() or "unknown"
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
