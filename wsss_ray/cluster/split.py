# SPDX-License-Identifier: Apache-2.0
"""Shards whose network runs on GPUs and whose rest runs on the cores beside them: two operators of one Ray Data
pipeline, whose object store holds the first one back where the second is slower.
"""

from __future__ import annotations

import pickle
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle

from wsss_ray import storage
from wsss_ray.artifacts.tables import name_part, write_table
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.process import begin_work, keep
from wsss_ray.config import UserError
from wsss_ray.engine.train import measure_peak_memory

MAX_DEATHS = 2
"""How often the work of a worker that died is tried again."""
Part = Any
"""What the network says of one image, and what the other side needs beside it; picklable."""


class Reader(Protocol):
    """The side of the network."""

    def read_parts(self, shard: str) -> Iterator[tuple[int, Part]]:
        """(place in the shard, part) of every image, in any order."""


class Finisher(Protocol):
    """The other side."""

    def make_row(self, part: Part) -> dict[str, Any]:
        """The output row of one image."""


@dataclass(frozen=True)
class Split:
    """Both sides of a worker, and the form of its rows."""

    make_reader: Callable[[], Reader]
    make_finisher: Callable[[], Finisher]
    schema: pa.Schema


class SplitWorker:
    """Both sides in one process, for machines without GPUs."""

    def __init__(self, split: Split) -> None:
        self.reader, self.finisher, self.schema = split.make_reader(), split.make_finisher(), split.schema

    def make_table(self, shard: str) -> pa.Table:
        """One row for every image."""
        rows = {place: self.finisher.make_row(part) for place, part in self.reader.read_parts(shard)}
        return build_table(rows, self.schema)


def build_table(rows: Mapping[int, Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows by their places -> the table of a shard."""
    return pa.Table.from_pylist([dict(rows[place]) for place in sorted(rows)], schema=schema)


def run_split(
    split: Split, out: str, shards: Sequence[tuple[str, int]], machines: Machines
) -> Iterator[tuple[str, float]]:
    """(name, largest memory in MB) of every shard whose file was written; UserError with a worker's own message."""
    num_images = dict(shards)
    waiting: defaultdict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for found in _build_pipeline(split, [name for name, _ in shards], machines).iter_rows():
        if found["error"]:
            raise UserError(str(found["error"]))
        shard = str(found["shard"])
        waiting[shard][int(found["place"])] = pickle.loads(found["row"])
        if len(waiting[shard]) == num_images[shard]:
            write_table(build_table(waiting.pop(shard), split.schema), storage.join(out, name_part(shard)))
            yield shard, float(found["memory"])


def use_gpu_actors(num_shards: int, machines: Machines) -> dict[str, Any]:
    """How Ray Data runs a class that holds a network: Ray ends the process of a task that had a GPU, an actor stays."""
    size = min(machines.inference_workers, num_shards)
    return {
        # One shard waits behind the one in work: without it an actor idles 0.2 s after each; with more of them one
        # actor may hold several at the end while another has none.
        "compute": ray.data.ActorPoolStrategy(
            min_size=size, max_size=num_shards if machines.grows else size, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": 1,
        "num_gpus": 1,
        # Ray 2.60 warns of these, but has no other way to say them: its own limit is none.
        "max_restarts": MAX_DEATHS,
        "max_task_retries": MAX_DEATHS,
    }


def use_tasks(machines: Machines, num_parts: int | None = None) -> dict[str, Any]:
    """How Ray Data runs a function on cores: on all there are, also of nodes that join, or on so many at once."""
    size = None if machines.grows else min(machines.cpu_workers, num_parts or machines.cpu_workers)
    return {"compute": ray.data.TaskPoolStrategy(size=size), "num_cpus": 1, "max_retries": MAX_DEATHS}


def _build_pipeline(split: Split, names: Sequence[str], machines: Machines) -> Any:
    names_only = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=len(names))
    parts = names_only.map_batches(
        _ReaderActor,
        fn_constructor_args=(cloudpickle.dumps(split.make_reader),),
        batch_size=1,
        **use_gpu_actors(len(names), machines),
    )
    return parts.map_batches(
        _finish,  # type: ignore[arg-type]
        fn_args=(cloudpickle.dumps(split.make_finisher), uuid.uuid4().hex),
        batch_size=1,
        **use_tasks(machines),
    )


class _ReaderActor:
    """Builds its reader once; yields a batch of one image at a time."""

    def __init__(self, make_reader: bytes) -> None:
        import torch

        begin_work(threads=1)
        self.reader: Reader = cloudpickle.loads(make_reader)()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        shard = str(batch["shard"][0])
        try:
            for place, part in self.reader.read_parts(shard):
                yield self._pack(shard, place, pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
        except UserError as error:
            yield self._pack(shard, -1, b"", str(error))

    def _pack(self, shard: str, place: int, part: bytes, error: str = "") -> dict[str, Any]:
        memory = measure_peak_memory(self.device)
        return {"shard": [shard], "place": [place], "part": [part], "error": [error], "memory": [memory]}


def _finish(batch: dict[str, np.ndarray], make_finisher: bytes, job: str) -> dict[str, Any]:
    """One image, in a Ray task."""
    found = {key: [batch[key][0]] for key in ("shard", "place", "error", "memory")}
    if found["error"][0]:
        return {**found, "row": [b""]}
    try:
        finisher: Finisher = keep(job, lambda: _open_finisher(make_finisher))
        row = finisher.make_row(pickle.loads(batch["part"][0]))
    except UserError as error:
        return {**found, "error": [str(error)], "row": [b""]}
    return {**found, "row": [pickle.dumps(row, pickle.HIGHEST_PROTOCOL)]}


def _open_finisher(make_finisher: bytes) -> Finisher:
    begin_work(threads=1)
    made: Finisher = cloudpickle.loads(make_finisher)()
    return made
