# SPDX-License-Identifier: Apache-2.0
"""A network's side on a GPU and the rest beside it write what one process writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("ray")

import ray

from tests.local_ray import start_ray
from wsss_ray.cluster import rounds
from wsss_ray.cluster.join import lay_out
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.cluster.split import Split, SplitWorker
from wsss_ray.config import UserError
from wsss_ray.recipe import Resources

SHARDS = [("shard-0.parquet", 5), ("shard-1.parquet", 3), ("shard-2.parquet", 1)]
SCHEMA = pa.schema([("image_id", pa.string()), ("sum", pa.float64())])


class Reader:
    """Places in another order than that of the shard, as images of one size are."""

    def read_parts(self, shard: str) -> Iterator[tuple[int, Any]]:
        for place in reversed(range(dict(SHARDS)[shard])):
            yield place, (f"{shard}/{place}", np.full((64, 64), place, np.float32))


class Finisher:
    def __init__(self, forbidden: str) -> None:
        self.forbidden = forbidden

    def make_row(self, part: Any) -> dict[str, Any]:
        name, scores = part
        if name == self.forbidden:
            raise UserError(f"{name}: cannot be used; remove it")
        return {"image_id": name, "sum": float(scores.sum())}


@pytest.fixture(scope="module")
def a_gpu() -> Iterator[None]:
    """Two cores and a GPU by name; networks run on the CPU where torch sees none."""
    start_ray(2, num_gpus=1)
    yield
    ray.shutdown()


def make_job(out: Path, forbidden: str = "") -> ShardJob:
    split = Split(Reader, partial(Finisher, forbidden), SCHEMA)
    return ShardJob("predict", partial(SplitWorker, split), SHARDS, str(out), network=True, split=split)


def test_files_are_those_of_one_process(a_gpu: None, tmp_path: Path) -> None:
    for name, gpus in (("split", 1), ("one", 0)):
        run_shards(make_job(tmp_path / name), lay_out([(2, gpus)], Resources()))
    split, one = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.parquet")} for name in ("split", "one")
    )
    assert len(split) == 3
    assert split == one


def test_rounds_write_every_shard(a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "ROUND", 1)
    monkeypatch.setattr(rounds, "ROUND_PER_WORKER", 1)
    run_shards(make_job(tmp_path), lay_out([(2, 0)], Resources()))
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_task_of_several_shards_writes_them_all(a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = lay_out([(1, 0)], Resources())
    monkeypatch.setattr(rounds, "TASKS_PER_WORKER", 1)
    assert rounds.count_tasks(3, machines) == 1
    run_shards(make_job(tmp_path), machines)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    with pytest.raises(UserError, match="shard-1.parquet/0: cannot be used; remove it"):
        run_shards(make_job(tmp_path / "bad", "shard-1.parquet/0"), machines)
    assert len(list((tmp_path / "bad").glob("*.parquet"))) >= 1


def test_a_bad_image_is_named_and_finished_shards_stay(a_gpu: None, tmp_path: Path) -> None:
    machines = lay_out([(2, 1)], Resources())
    with pytest.raises(UserError, match="shard-1.parquet/0: cannot be used; remove it"):
        run_shards(make_job(tmp_path, "shard-1.parquet/0"), machines)
    run_shards(make_job(tmp_path), machines)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
