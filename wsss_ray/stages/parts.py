"""Inference over shards on Ray Data: actors hold the network once, one output file per shard, finished files are kept.

Only shard names go in and only counters come out of the object store; pictures and maps never pass through it. An output file is
renamed into place when it is whole, so a killed run loses at most the shards in flight.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.stages.cluster import Machines
from wsss_ray.stages.progress import Bar


class PartWorker(Protocol):
    """What runs in an actor: one shard in, one table out."""

    def table(self, shard: str) -> pa.Table:
        """The output rows of the shard of this name."""


def part_name(shard: str) -> str:
    """The output file of a shard: same stem, so that any part finds its input."""
    return os.path.splitext(os.path.basename(shard))[0] + ".parquet"


def write_table(table: pa.Table, uri: str) -> None:
    """A Parquet file, atomically, with bytes that depend on its rows alone."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file at any URI."""
    filesystem, path = storage.open_fs(uri)
    return pq.read_table(path, filesystem=filesystem, columns=columns)


class _Actor:
    """The actor of the pool: builds its worker once, then turns shard names into files."""

    def __init__(self, factory: Callable[[], PartWorker], out: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.worker, self.out = factory(), out

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts, errors = [], []
        for shard in batch["shard"].tolist():
            error = ""
            rows = 0
            try:
                table = self.worker.table(shard)
                write_table(table, storage.join(self.out, part_name(shard)))
                rows = table.num_rows
            except UserError as problem:
                error = str(problem)
            counts.append(rows)
            errors.append(error)
        return {"rows": np.array(counts), "error": np.array(errors)}


def run_parts(
    title: str, factory: Callable[[], PartWorker], shards: Sequence[tuple[str, int]], out: str, machines: Machines, gpu: bool = False
) -> None:
    """Run ``factory``'s worker over (name, number of pictures) shards into ``out``, skipping those already there.

    Raises UserError with a worker's own message where its input is bad.
    """
    done = set(storage.list_names(out))
    todo = [(name, count) for name, count in shards if part_name(name) not in done]
    total, ready = sum(count for _, count in shards), sum(count for name, count in shards if part_name(name) in done)
    with Bar(title, total) as bar:
        bar.at(ready, "resumed" if ready else None)
        if not todo:
            return
        actors = min(machines.inference_workers, len(todo))
        items = [{"shard": name} for name, _ in todo]
        per_gpu = machines.gpus / machines.inference_workers if gpu and machines.use_gpu else 0
        pipeline = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(factory, out),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=per_gpu or None,
        )
        try:
            for row in pipeline.iter_rows():
                if row["error"]:
                    raise UserError(str(row["error"]))
                bar.advance(int(row["rows"]))
        except RayError as error:
            raise RuntimeError(f"{title}: a worker failed: {error}") from error
