# SPDX-License-Identifier: Apache-2.0
"""What verifying files costs: every file of a finished run read with and without its checksum, beside the run's time.

Both readings in turn; the file cache is warm, so that hashing is not hidden behind a disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.claim import CPU, Claim, Given, Goal, Pair
from benchmarks.start import run_fresh
from wsss_ray import storage
from wsss_ray.artifacts.files import read_file, read_parquet
from wsss_ray.artifacts.record import RunFolder
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard_table

READS = {"data": 6, "train": 2}
"""How often the steps of a run read a file of these stages; others twice."""
Readings = list[tuple[Callable[[], object], Callable[[], object]]]
"""(verified, plain) reading of every file."""


def list_readings(folder: str, stage: str) -> Readings:
    """Both readings of every file of an artifact."""
    found: Readings = []
    shards = {shard.path for shard in load_manifest(folder).shards} if stage == "data" else set()
    for name in storage.list_names(folder):
        where = storage.join(folder, name)
        if name in shards:
            found.append((lambda n=name: read_shard_table(folder, n), lambda w=where: _read_plain(w)))  # type: ignore[misc]
        elif name.endswith(".parquet"):
            found.append((lambda n=name: read_parquet(folder, n), lambda w=where: _read_plain(w)))  # type: ignore[misc]
        elif name.endswith((".safetensors", ".json")) and name != "artifact.json":
            found.append((lambda n=name: read_file(folder, n), lambda w=where: storage.read_bytes(w)))  # type: ignore[misc]
    return found


def _read_plain(where: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(where)))


def measure_extra(readings: Readings) -> float:
    """CPU seconds that all verified readings take more than the plain ones, in turn."""
    extra = 0.0
    for checked, unchecked in readings:
        start = time.process_time()
        checked()
        middle = time.process_time()
        unchecked()
        extra += (middle - start) - (time.process_time() - middle)
    return extra


def add_up(run: RunFolder, rounds: int) -> float:
    """CPU seconds that a whole run spends on verifying."""
    total = 0.0
    for step in run.record["steps"]:
        readings = list_readings(storage.join(run.out, step["stage"], step["digest"]), step["stage"])
        extra = statistics.median(measure_extra(readings) for _ in range(rounds))
        total += READS.get(step["stage"], 2) * extra
    return total


def measure(given: Given) -> Iterator[Pair]:
    """One share of the run that ``start`` leaves."""
    run, _ = run_fresh(given.scratch)
    whole = sum(step["seconds"] or 0.0 for step in run.record["steps"])
    yield Pair(
        "CPU time of checksums, all steps",
        top=lambda: {CPU: add_up(run, 1)},
        bottom=lambda: {CPU: whole},
        goals={CPU: Goal(at_most=0.03)},
        rounds=7,
        describe=lambda: "bottom: seconds of all steps",
    )


CLAIM = Claim(
    says="verifying every file that a step reads costs next to nothing",
    ratio="verifying / whole run",
    measure=measure,
    seconds=15,
)
