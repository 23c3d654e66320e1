# SPDX-License-Identifier: Apache-2.0
"""Work over shards on Ray Data: a process builds its worker once, one output file per shard, finished files are kept.

Only shard names go in and only counters come out of the object store; images and maps never pass through it. An output
file is renamed into place when it is whole, so a killed run loses at most the shards in flight.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from wsss_ray import storage
from wsss_ray.artifacts.files import parse_parquet
from wsss_ray.artifacts.tables import encode_table, name_part, write_table
from wsss_ray.cluster.deaths import WorkerDiedError, run_alone
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.process import begin_work, forget, keep
from wsss_ray.cluster.progress import Bar
from wsss_ray.cluster.rounds import count_tasks, take_rounds
from wsss_ray.cluster.split import Split, run_split, use_gpu_actors, use_tasks
from wsss_ray.config import UserError
from wsss_ray.data.shards import read_shard
from wsss_ray.engine.train import measure_peak_memory

log = logging.getLogger(__name__)
READERS = 8
"""Threads that read what an earlier run left."""
Shards = Sequence[tuple[str, int]]
"""(name, number of images) of every shard."""


Rescue = Callable[[str, Callable[[str], bool]], None]
"""(shard that kills its worker, what runs one alone and says whether its worker survived) -> its output is there."""
NAMED = 8
"""Images of a shard that are named."""
DEADLY_FIX = (
    "look for a huge or damaged image among them and prepare the data without it, or lower resources.batch_size; "
    "no step leaves an image out by itself, since scores would then be of other images"
)


class ShardWorker(Protocol):
    """What runs in a process: one shard in, one table out."""

    def make_table(self, shard: str) -> pa.Table:
        """The output rows of the shard of this name."""


@dataclass(frozen=True)
class ShardJob:
    """A worker to be run over shards, and where its output goes."""

    title: str
    make_worker: Callable[[], ShardWorker]
    """Called once in every process; picklable."""
    shards: Shards
    out: str
    network: bool = False
    """Whether the worker holds a network, which goes to a GPU where there is one."""
    split: Split | None = None
    """The two sides of the worker, which run in two places where there are GPUs."""
    row_per_image: bool = True
    """Whether a table has one row for each image of its shard."""
    data: str | None = None
    """The prepared data whose shards they are, by which images are named."""
    rescue: Rescue | None = None
    """What is done with a shard that kills its worker; without it that ends the step."""


@dataclass(frozen=True)
class Throughput:
    """What a job came to, for the artifact's record."""

    images_per_second: float = 0.0
    """Of the shards that were not there yet."""
    peak_memory_mb: float = 0.0
    """Of the largest worker."""


class _Actor:
    """Builds its worker once, then turns shard names into files."""

    def __init__(self, make_worker: bytes, out: str) -> None:
        import torch

        begin_work(threads=1)
        self.worker: ShardWorker = cloudpickle.loads(make_worker)()
        self.out = out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        errors, memory = [], []
        for shard in batch["shard"].tolist():
            error = ""
            try:
                table = self.worker.make_table(shard)
                write_table(table, storage.join(self.out, name_part(shard)))
            except UserError as problem:
                error = str(problem)
            errors.append(error)
            memory.append(measure_peak_memory(self.device))
        return {"shard": batch["shard"], "error": np.array(errors), "memory": np.array(memory)}


def _run_as_task(batch: dict[str, np.ndarray], make_worker: bytes, out: str, job: str) -> dict[str, np.ndarray]:
    """The same without an actor of its own: Ray's idle processes are reused, each builds the worker once."""
    return keep(job, lambda: _Actor(make_worker, out))(batch)


def run_shards(job: ShardJob, machines: Machines) -> Throughput:
    """Run a job over its shards, skipping those whose output is there already.

    Raises UserError with a worker's own message where its input is bad.
    """
    done = find_done(job)
    waiting = [(name, count) for name, count in job.shards if name not in done]
    total, left = sum(count for _, count in job.shards), sum(count for _, count in waiting)
    start, memory = time.monotonic(), 0.0
    num_images = dict(job.shards)
    with Bar(job.title, total) as bar:
        bar.keep(total - left)
        if not waiting:
            return Throughput()
        heard = set()
        try:
            for shard, used in _run_waiting(job, waiting, machines):
                memory = max(memory, used)
                heard.add(shard)
                bar.advance(num_images[shard])
        except RayTaskError as error:
            raise RuntimeError(f"{job.title}: a worker failed: {error}") from error
        except RayError:
            for shard in _run_one_by_one(job, done | heard, machines):
                bar.advance(num_images[shard])
    _check_complete(job)
    return Throughput(left / max(time.monotonic() - start, 1e-9), memory)


def _run_waiting(job: ShardJob, waiting: Shards, machines: Machines) -> Iterator[tuple[str, float]]:
    """(name, memory in MB) of every shard as its file is written."""
    if job.split is not None and machines.use_gpu:
        yield from run_split(job.split, job.out, waiting, machines)
        return
    names, key = [name for name, _ in waiting], uuid.uuid4().hex
    # Actors would have to read their network again in every round; tasks find it in their process.
    for taken in [names] if job.network and machines.use_gpu else take_rounds(names, machines):
        for row in _build_pipeline(job, taken, machines, key).iter_rows():
            if row["error"]:
                raise UserError(str(row["error"]))
            yield str(row["shard"]), float(row["memory"])


def _run_one_by_one(job: ShardJob, heard: set[str], machines: Machines) -> Iterator[str]:
    """Shards that are not done, each in a task of its own: workers died, and this shows over which one.

    UserError names it; where all go well this time, the name of each that nobody has ``heard`` of, as its file is
    written or at once where the worker that died had come so far.
    """
    done = find_done(job)
    for place, (shard, num_images) in enumerate(job.shards):
        if shard in done:
            if shard not in heard:
                yield shard
            continue
        try:
            _run_alone(job, shard, machines)
        except WorkerDiedError as death:
            if job.rescue is None:
                images = f"{num_images} images{_name_images(job, shard)}"
                raise UserError(
                    f"{job.title}: {shard} (number {place + 1} of {len(job.shards)}, {images}) kills its worker "
                    f"({death}); {DEADLY_FIX}"
                ) from None
            job.rescue(shard, partial(_survives, job, machines))
        yield shard


def _survives(job: ShardJob, machines: Machines, shard: str) -> bool:
    try:
        _run_alone(job, shard, machines)
    except WorkerDiedError:
        return False
    return True


def _run_alone(job: ShardJob, shard: str, machines: Machines) -> None:
    """Write the output of one shard in a process of its own; WorkerDiedError where that dies."""
    task = _work_alone.options(num_cpus=1, num_gpus=1 if job.network and machines.use_gpu else 0)
    try:
        (error,) = run_alone(task, cloudpickle.dumps(job.make_worker), job.out, shard)["error"]
    except RayTaskError as failure:
        raise RuntimeError(f"{job.title}: a worker failed: {failure}") from failure
    if error:
        raise UserError(error)


def _name_images(job: ShardJob, shard: str) -> str:
    """The images of a shard, by their ids."""
    if job.data is None:
        return ""
    names = [row["image_id"] for row in read_shard(job.data, shard, columns=["image_id"])]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f": {', '.join(names[:NAMED])}{more}"


@ray.remote(max_retries=0)
def _work_alone(make_worker: bytes, out: str, shard: str) -> dict[str, list[Any]]:
    forget()
    found = _Actor(make_worker, out)({"shard": np.array([shard])})
    return {name: values.tolist() for name, values in found.items()}


def find_done(job: ShardJob) -> set[str]:
    """Names of the shards whose output is there and whole: an earlier run, killed since, may have left half of it."""
    there = set(storage.list_names(job.out))
    parts = [(name, count) for name, count in job.shards if name_part(name) in there]
    with ThreadPoolExecutor(READERS) as pool:
        whole = pool.map(lambda part: _is_whole(job, *part), parts)
        return {name for (name, _), good in zip(parts, whole, strict=True) if good}


def _is_whole(job: ShardJob, shard: str, num_images: int) -> bool:
    where = storage.join(job.out, name_part(shard))
    try:
        data = storage.read_bytes(where)
        table = parse_parquet(data, where)
        # Pages have checksums, the rest of a file has none: it is whole where its rows are written like that.
        if encode_table(table) == data and (table.num_rows == num_images or not job.row_per_image):
            return True
    except UserError:
        pass
    log.warning("%s: damaged, computed again", where)
    return False


def _check_complete(job: ShardJob) -> None:
    """UserError where the output of a shard is not to be seen from here, whatever its worker said."""
    there = set(storage.list_names(job.out))
    missing = [name_part(name) for name, _ in job.shards if name_part(name) not in there]
    if missing:
        raise UserError(
            f"{job.out}: {len(missing)} of {len(job.shards)} files are not there ({missing[0]} is the first), though "
            "they were written: all nodes must share --out; give a shared folder or a URI such as s3://"
        )


def _build_pipeline(job: ShardJob, names: Sequence[str], machines: Machines, key: str) -> Any:
    on_gpu = job.network and machines.use_gpu
    num_tasks = len(names) if on_gpu else count_tasks(len(names), machines)
    names_only = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=num_tasks)
    arguments = cloudpickle.dumps(job.make_worker), job.out
    if on_gpu:
        return names_only.map_batches(
            _Actor, fn_constructor_args=arguments, batch_size=1, **use_gpu_actors(len(names), machines)
        )
    return names_only.map_batches(
        _run_as_task,  # type: ignore[arg-type]
        fn_args=(*arguments, key),
        batch_size=1,
        **use_tasks(machines, num_tasks),
    )
