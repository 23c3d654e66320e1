# SPDX-License-Identifier: Apache-2.0
"""The histogram step: how often each value occurs in the class maps of the training images; no ground truth is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import decode_maps, name_part, read_table
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.refine.histogram import NUM_BINS, count_values
from wsss_ray.stages.run import Run

VERSION = 1
"""1: as first written."""
SCHEMA = pa.schema([("counts", pa.list_(pa.int64()))])


@dataclass(frozen=True)
class HistogramStep(Step):
    """What can change a histogram."""

    stage: ClassVar[str] = "histogram"
    version: ClassVar[int] = VERSION
    maps: str
    """The class maps."""


class HistogramWorker:
    """Class maps of a shard -> the counts of their values."""

    def __init__(self, maps: str) -> None:
        self.maps = maps

    def make_table(self, shard: str) -> pa.Table:
        """One row for the whole shard."""
        counts = np.zeros(NUM_BINS, np.int64)
        for row in read_table(storage.join(self.maps, name_part(shard))).to_pylist():
            counts += count_values(decode_maps(row))
        return pa.Table.from_pylist([{"counts": counts.tolist()}], schema=SCHEMA)


def count_map_values(run: Run, maps: Artifact) -> Artifact:
    """The histogram of all class maps of the training split."""

    def compute(folder: str) -> dict[str, Any]:
        shards = run.data.shards(run.recipe.data.train_split)
        job = ShardJob("histogram", partial(HistogramWorker, maps.uri), shards, folder, row_per_image=False)
        done = run_shards(job, run.machines)
        counts = np.zeros(NUM_BINS, np.int64)
        for shard, _ in shards:
            counts += np.asarray(read_table(storage.join(folder, name_part(shard)))["counts"][0].as_py(), np.int64)
        return {"histogram": counts.tolist(), **asdict(done)}

    return run.steps.find_or_compute("histogram", HistogramStep(maps=maps.digest), compute)


def read_histogram(artifact: Artifact) -> np.ndarray:
    """(NUM_BINS,) int64 counts of a finished histogram."""
    return np.asarray(artifact.record["histogram"], np.int64)
