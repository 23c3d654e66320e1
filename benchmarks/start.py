# SPDX-License-Identifier: Apache-2.0
"""How much of a fresh ``wsss run cam`` is work: decoding, networks, CRF and scoring, and how much is start-up.

The whole is the command's time on the clock. Of trainings, work is the time of their loops, from the history; of the
other steps, what their workers take over the same shards in this one process, warm, divided by the run's workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.claim import WALL, Claim, Given, Goal, Pair, Reading
from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder, list_finished, open_run
from wsss_ray.cluster.shards import ShardWorker
from wsss_ray.data.manifest import open_data
from wsss_ray.recipe import Recipe, load
from wsss_ray.score.names import STEPS
from wsss_ray.stages.localize import LocalizeWorker
from wsss_ray.stages.predict import PredictWorker
from wsss_ray.stages.refine import RefineWorker
from wsss_ray.stages.score import ScoreWorker

ROOT = Path(__file__).resolve().parents[1]


def run_fresh(scratch: Path) -> tuple[RunFolder, float]:
    """``wsss run cam`` into an empty folder, or the run that is there already; and its time on the clock."""
    out = scratch / "start"
    note = out / "seconds"
    if not note.exists():
        out.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-c", "from wsss_ray.cli.main import main; main()", "run", "cam"]
        # A cache of its own: a fresh run finds no copies of shards.
        env = {**os.environ, "PYTHONPATH": path, "WSSS_CACHE": str(out / "cache")}
        start = time.monotonic()
        done = subprocess.run(
            [*command, "--out", str(out / "results")], cwd=out, env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        note.write_text(str(time.monotonic() - start), encoding="utf-8")
    runs = str(out / "results" / "runs")
    (name,) = list_finished(runs)
    return open_run(storage.join(runs, name)), float(note.read_text(encoding="utf-8"))


def list_workers(run: RunFolder) -> dict[str, tuple[str, Callable[[], ShardWorker]]]:
    """Part -> (its split, its worker), as the steps of the run had them."""
    recipe: Recipe = load(storage.join(run.folder, "recipe.yaml"))
    data, batch = run.record["data"], recipe.resources.batch_size
    made = {name: str(run.artifact(name)) for name in run.record["artifacts"]}
    settled = storage.read_json(storage.join(made["masks"], "artifact.json")).get("settled")
    refiner = recipe.refine if settled is None else type(recipe.refine).model_validate(settled)
    assert refiner is not None
    train, val, scored = recipe.data.train_split, recipe.data.val_split, recipe.data.score_split
    config = recipe.score.model_copy(update={"background": recipe.background})
    found: dict[str, tuple[str, Callable[[], ShardWorker]]] = {
        "maps": (str(train), partial(LocalizeWorker, data, made["network"], recipe, batch)),
        "refinement (CRF)": (str(train), partial(RefineWorker, data, made["maps"], refiner, None)),
        "prediction": (val, partial(PredictWorker, data, made["segmenter"], recipe.predict, batch)),
    }
    for name, results in (("seeds", "maps"), ("masks", "masks"), ("segmentation", "predictions")):
        split = val if STEPS[name].split == "val" else str(scored)
        worker = partial(ScoreWorker, data, made[results], STEPS[name].kind, config, len(run.labels))
        found[f"scores of {name}"] = (split, worker)
    return found


def measure_parts(run: RunFolder) -> dict[str, float]:
    """Part -> its seconds of work on the clock, as the run's workers would have shared it."""
    torch.set_num_threads(1)
    num_workers = len(os.sched_getaffinity(0))
    data = open_data(run.record["data"])
    parts = {}
    for title, history in run.record["history"].items():
        images = _count_images(history, run.recipe["segment" if title == "segment" else "train"])
        parts[f"training loop ({title})"] = sum(
            count / epoch["images_per_second"] for count, epoch in zip(images, history, strict=True)
        )
    for name, (split, make_worker) in list_workers(run).items():
        shards = [shard for shard, _ in data.shards(split)]
        worker = make_worker()
        worker.make_table(shards[0])
        start = time.monotonic()
        for shard in shards:
            worker.make_table(shard)
        parts[name] = (time.monotonic() - start) / num_workers
    return parts


def _count_images(history: list[dict[str, Any]], part: dict[str, Any]) -> list[int]:
    """Images of every epoch of a training that drops its last batch where that is not whole."""
    steps = [epoch["step"] for epoch in history]
    size = part.get("train", part)["batch_size"]
    return [(after - before) * size for before, after in zip([0, *steps], steps, strict=False)]


def measure(given: Given) -> Iterator[Pair]:
    """One run: its work, and every part of it, as shares of the whole."""
    run, whole = run_fresh(given.scratch)
    parts = measure_parts(run)

    def read(seconds: float) -> Callable[[], Reading]:
        return lambda: {WALL: seconds}

    steps = ", ".join(f"{step['title']} {step['seconds']:.0f}" for step in run.record["steps"])
    yield Pair(
        "decode, networks, CRF, scores",
        top=read(sum(parts.values())),
        bottom=read(whole),
        goals={WALL: Goal(at_least=0.7)},
        rounds=1,
        warm=False,
        describe=lambda: f"seconds of the steps: {steps}",
    )
    for name, seconds in parts.items():
        yield Pair(name, top=read(seconds), bottom=read(whole), rounds=1, warm=False)


CLAIM = Claim(
    says="most of a fresh toy run is work, not start-up",
    ratio="work / whole command",
    measure=measure,
    seconds=170,
)
