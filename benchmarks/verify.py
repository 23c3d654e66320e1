# SPDX-License-Identifier: Apache-2.0
"""What verifying files costs: every file of a finished run read with and without its checksum, beside the run's time.

    python benchmarks/verify.py results/runs/cam-1a2b3c4d [--rounds 5]

Both sides in one call, interleaved; the file cache is warm, so that hashing is not hidden behind a disk.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from wsss_ray import storage
from wsss_ray.artifacts.files import read_file, read_parquet
from wsss_ray.artifacts.record import open_run
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard_table

READS = {"data": 6, "train": 2}
"""How often the steps of a run read a file of these stages; others twice."""


def list_readings(folder: str, stage: str) -> list[tuple[Callable[[], object], Callable[[], object]]]:
    """(verified, plain) reading of every file of an artifact."""
    found: list[tuple[Callable[[], object], Callable[[], object]]] = []
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


def measure(readings: list[tuple[Callable[[], object], Callable[[], object]]]) -> tuple[float, float]:
    """CPU seconds of all verified and of all plain readings, interleaved."""
    verified = plain = 0.0
    for checked, unchecked in readings:
        start = time.process_time()
        checked()
        middle = time.process_time()
        unchecked()
        verified, plain = verified + middle - start, plain + time.process_time() - middle
    return verified, plain


def main() -> None:
    """One line for each stage, and the share of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    run = open_run(given.run)
    extra = whole = 0.0
    for step in run.record["steps"]:
        whole += step["seconds"] or 0.0
        readings = list_readings(storage.join(run.out, step["stage"], step["digest"]), step["stage"])
        rounds = [measure(readings) for _ in range(given.rounds)]
        verified, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
        times = READS.get(step["stage"], 2)
        extra += times * (verified - plain)
        print(f"{step['title']:<20} verified {1e3 * verified:7.1f} ms, plain {1e3 * plain:7.1f} ms, read {times} times")
    print(f"verifying: {extra:.3f} s of {whole:.1f} s, {100 * extra / whole:.2f} %")


if __name__ == "__main__":
    main()
