# SPDX-License-Identifier: Apache-2.0
"""A shard that kills its worker ends the step with its name, and costs no other shard."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("ray")

import ray

from tests.local_ray import start_ray
from wsss_ray.cluster.join import lay_out
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import UserError
from wsss_ray.recipe import Resources

SHARDS = [(f"shard-{number}.parquet", 1) for number in range(6)]


class Worker:
    """Dies over one shard: whenever it comes, or the first time alone."""

    def __init__(self, deadly: str, once: Path | None) -> None:
        self.deadly, self.once = deadly, once

    def make_table(self, shard: str) -> pa.Table:
        if shard == self.deadly and (self.once is None or len(list(self.once.iterdir())) < 3):
            if self.once is not None:
                (self.once / str(time.monotonic_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"image_id": [shard]})


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    start_ray(2)
    yield
    ray.shutdown()


def make_job(out: Path, deadly: str, once: Path | None = None) -> ShardJob:
    return ShardJob("localize", partial(Worker, deadly, once), SHARDS, str(out))


def test_it_is_named_and_the_others_are_kept(two_cores: None, tmp_path: Path) -> None:
    machines = lay_out([(2, 0)], Resources())
    start = time.monotonic()
    with pytest.raises(UserError, match=r"localize: shard-2.parquet \(number 3 of 6, 1 images\) kills its worker"):
        run_shards(make_job(tmp_path, "shard-2.parquet"), machines)
    assert time.monotonic() - start < 100
    assert len(list(tmp_path.glob("*.parquet"))) >= 2
    run_shards(make_job(tmp_path, "none"), machines)
    assert len(list(tmp_path.glob("*.parquet"))) == 6


def test_a_death_that_passes_costs_nothing(two_cores: None, tmp_path: Path) -> None:
    """Three times: as often as a shard is tried beside the others; alone it goes well."""
    (tmp_path / "deaths").mkdir()
    run_shards(make_job(tmp_path / "out", "shard-4.parquet", tmp_path / "deaths"), lay_out([(2, 0)], Resources()))
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 6
