# SPDX-License-Identifier: Apache-2.0
"""How much of a fresh ``wsss run cam`` is work: decoding, networks, CRF and scoring, and how much is start-up.

The whole is the command's time on the clock. Of trainings, work is the time of their loops, from the history; of the
other steps, what the same work takes again in this one process, warm, divided by the run's workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.claim import WALL, Claim, Given, Goal, Pair, Reading
from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder, list_finished, open_run
from wsss_ray.artifacts.store import Artifact, Store
from wsss_ray.artifacts.tables import name_part, write_table
from wsss_ray.cluster.join import Machines, lay_out
from wsss_ray.cluster.shards import ShardJob, Throughput
from wsss_ray.data.manifest import open_data
from wsss_ray.recipe import SettledRecipe, load
from wsss_ray.stages import histogram, localize, predict, refine, score
from wsss_ray.stages.run import Run, Steps

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


class Alone:
    """Does the work of steps in this process, warm, and notes how long each takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run_shards(self, job: ShardJob, machines: Machines) -> Throughput:
        """In the place of ``cluster.shards.run_shards``: the same tables, from one worker."""
        worker = job.make_worker()
        worker.make_table(job.shards[0][0])
        start = time.monotonic()
        for shard, _ in job.shards:
            write_table(worker.make_table(shard), storage.join(job.out, name_part(shard)))
        self.seconds[job.title] = time.monotonic() - start
        return Throughput()


def repeat_steps(run: RunFolder, out: str) -> dict[str, float]:
    """Step -> seconds that its work takes in this process, one thread; its results go below ``out``."""
    torch.set_num_threads(1)
    recipe = SettledRecipe.model_validate(load(storage.join(run.folder, "recipe.yaml")).model_dump(mode="json"))
    made = {
        name: Artifact(entry["stage"], entry["digest"], str(run.artifact(name)), {})
        for name, entry in run.record["artifacts"].items()
    }
    machines = lay_out([(1, 0)], recipe.resources)
    again, alone = Run(recipe, open_data(run.record["data"]), Steps(Store(out)), machines), Alone()
    modules = (localize, histogram, refine, predict, score)
    before = [module.run_shards for module in modules]
    for module in modules:
        setattr(module, "run_shards", alone.run_shards)  # noqa: B010 (the one in each module)
    try:
        localize.localize(again, "localize", recipe, made["network"])
        assert recipe.refine is not None
        refine.refine(again, made["maps"], recipe.refine, recipe.affinity)
        predict.predict(again, made["segmenter"])
        for name, results in (("seeds", "maps"), ("masks", "masks"), ("segmentation", "predictions")):
            score.score(again, name, made[results])
    finally:
        for module, function in zip(modules, before, strict=True):
            setattr(module, "run_shards", function)  # noqa: B010
    return alone.seconds


def measure_parts(run: RunFolder, out: str) -> dict[str, float]:
    """Part -> its seconds of work on the clock, as the run's workers would have shared it."""
    parts = {}
    for title, history in run.record["history"].items():
        images = _count_images(history, run.recipe["segment" if title == "segment" else "train"])
        seconds = sum(count / epoch["images_per_second"] for count, epoch in zip(images, history, strict=True))
        parts[f"training loop ({title})"] = seconds
    num_workers = len(os.sched_getaffinity(0))
    return {**parts, **{title: seconds / num_workers for title, seconds in repeat_steps(run, out).items()}}


def _count_images(history: list[dict[str, Any]], part: dict[str, Any]) -> list[int]:
    """Images of every epoch of a training that drops its last batch where that is not whole."""
    steps = [epoch["step"] for epoch in history]
    size = part.get("train", part)["batch_size"]
    return [(after - before) * size for before, after in zip([0, *steps], steps, strict=False)]


def measure(given: Given) -> Iterator[Pair]:
    """One run: its work, and every part of it, as shares of the whole."""
    run, whole = run_fresh(given.scratch)
    parts = measure_parts(run, str(given.scratch / "start" / "again"))

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
    seconds=160,
)
