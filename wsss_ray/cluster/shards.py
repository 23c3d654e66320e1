"""Inference over shards on Ray Data: actors hold a network once, one output file per shard, finished files are kept.

Only shard names go in and only counters come out of the object store; images and maps never pass through it. An
output file is
renamed into place when it is whole, so a killed run loses at most the shards in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from wsss_ray import storage
from wsss_ray.artifacts.tables import (
    part_name,
    write_table,
)
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.engine.train import peak_memory_mb

Shards = Sequence[tuple[str, int]]


class PartWorker(Protocol):
    """What runs in an actor: one shard in, one table out."""

    def table(self, shard: str) -> pa.Table:
        """The output rows of the shard of this name."""


class _Actor:
    """Builds its worker once, then turns shard names into files."""

    def __init__(self, factory: Callable[[], PartWorker], out: str) -> None:
        import torch

        torch.set_num_threads(1)
        keep_freed_memory()
        self.worker, self.out = factory(), out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        errors, memory = [], []
        for shard in batch["shard"].tolist():
            error = ""
            try:
                table = self.worker.table(shard)
                write_table(table, storage.join(self.out, part_name(shard)))
            except UserError as problem:
                error = str(problem)
            errors.append(error)
            memory.append(peak_memory_mb(self.device))
        return {"shard": batch["shard"], "error": np.array(errors), "memory": np.array(memory)}


_in_this_process: dict[bytes, _Actor] = {}


def _as_task(batch: dict[str, np.ndarray], factory: bytes, out: str) -> dict[str, np.ndarray]:
    """The same without an actor of its own: Ray's idle processes are reused, each builds the worker once."""
    key = factory + out.encode()
    if key not in _in_this_process:
        _in_this_process.clear()
        _in_this_process[key] = _Actor(cloudpickle.loads(factory), out)
    return _in_this_process[key](batch)


def run_parts(
    title: str,
    factory: Callable[[], PartWorker],
    shards: Sequence[tuple[str, int]],
    out: str,
    machines: Machines,
    network: bool = False,
) -> dict[str, float]:
    """Run ``factory``'s worker over (name, number of images) shards into ``out``, skipping those already there.

    Returns {"images_per_second", "peak_memory_mb"} of this call. Raises UserError with a worker's own message where
    its input is bad.
    """
    done = set(storage.list_names(out))
    todo = [(name, count) for name, count in shards if part_name(name) not in done]
    total, ready = sum(count for _, count in shards), sum(count for name, count in shards if part_name(name) in done)
    start, memory = time.monotonic(), 0.0
    images = dict(shards)
    with Bar(title, total) as bar:
        bar.at(ready, "resumed" if ready else None)
        if not todo:
            return {"images_per_second": 0.0, "peak_memory_mb": 0.0}
        workers = min(machines.inference_workers, len(todo))
        shards_only = ray.data.from_items([{"shard": name} for name, _ in todo], override_num_blocks=len(todo))
        if network:
            pipeline = shards_only.map_batches(
                _Actor,
                fn_constructor_args=(factory, out),
                batch_size=1,
                # One shard waits behind the one in work: without it an actor idles 0.2 s after each; with more of them
                # one actor may hold several at the end while another has none.
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
                num_cpus=1,
                num_gpus=machines.gpus / machines.inference_workers if machines.use_gpu else None,
            )
        else:
            pipeline = shards_only.map_batches(
                _as_task,  # type: ignore[arg-type]
                fn_args=(cloudpickle.dumps(factory), out),
                batch_size=1,
                compute=ray.data.TaskPoolStrategy(size=workers),
                num_cpus=1,
            )
        try:
            for row in pipeline.iter_rows():
                if row["error"]:
                    raise UserError(str(row["error"]))
                memory = max(memory, float(row["memory"]))
                bar.advance(images[str(row["shard"])])
        except RayError as error:
            raise RuntimeError(f"{title}: a worker failed: {error}") from error
    return {"images_per_second": (total - ready) / max(time.monotonic() - start, 1e-9), "peak_memory_mb": memory}


def _summary(done: dict[str, float]) -> dict[str, Any]:
    return {"images_per_second": done["images_per_second"], "peak_memory_mb": done["peak_memory_mb"]}
