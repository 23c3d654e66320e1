# SPDX-License-Identifier: Apache-2.0
"""What kills its worker is named, and costs nothing else: a shard ends its step; an image is found by halving."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("ray")

import ray

from tests.fake_run import prepare as prepare_images
from tests.local_ray import start_ray
from wsss_ray import storage
from wsss_ray.artifacts.tables import read_table
from wsss_ray.cluster import rounds
from wsss_ray.cluster import shards as cluster_shards
from wsss_ray.cluster.join import lay_out
from wsss_ray.cluster.parts import DEADLY
from wsss_ray.cluster.progress import Bar
from wsss_ray.cluster.shards import ShardJob, run_shards
from wsss_ray.config import UserError
from wsss_ray.data.image import encode_jpeg
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.data.source import Item, Source, blank_row
from wsss_ray.recipe import Resources
from wsss_ray.serve.listing import ImageRef
from wsss_ray.serve.predict import SCHEMA, leave_deadly, write_plan
from wsss_ray.stages.prepare import prepare

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


@pytest.mark.parametrize("tasks", [32, 1], ids=["a_shard_a_task", "three_shards_a_task"])
def test_a_death_that_passes_costs_nothing(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    """Three times: as often as a shard is tried beside the others; alone it goes well."""
    counted: list[int] = []

    class Counting(Bar):
        def advance(self, amount: int = 1, note: str | None = None) -> None:
            counted.append(amount)
            super().advance(amount, note)

    monkeypatch.setattr(cluster_shards, "Bar", Counting)
    monkeypatch.setattr(rounds, "TASKS_PER_WORKER", tasks)
    (tmp_path / "deaths").mkdir()
    run_shards(make_job(tmp_path / "out", "shard-4.parquet", tmp_path / "deaths"), lay_out([(2, 0)], Resources()))
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 6
    assert sum(counted) == 6, "every image is counted once, whoever wrote its shard"


class ImageWorker:
    """Dies over one image of a prepared data set."""

    def __init__(self, data: str) -> None:
        self.data = data

    def make_table(self, shard: str) -> pa.Table:
        names = [row["image_id"] for row in read_shard(self.data, shard, columns=["image_id"])]
        if "007" in names:
            os.kill(os.getpid(), signal.SIGSEGV)
        return pa.table({"image_id": names})


def test_the_images_of_a_deadly_shard_are_named(two_cores: None, tmp_path: Path) -> None:
    data = prepare_images(tmp_path / "data")
    shards = [(shard.path, shard.num_rows) for shard in load_manifest(data).shards]
    job = ShardJob("localize", partial(ImageWorker, data), shards, str(tmp_path / "out"), data=data)
    with pytest.raises(UserError, match=r"5 images: 005, 006, 007, 008, 009\) kills its worker .* prepare the data"):
        run_shards(job, lay_out([(2, 0)], Resources()))


def load_item(item: Item) -> dict[str, object]:
    """An image of noise; the process dies over one of them."""
    if item.image_id == "03":
        os.kill(os.getpid(), signal.SIGKILL)
    pixels = np.random.default_rng(int(item.image_id)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return blank_row(item.image_id) | {"image": encode_jpeg(pixels), "labels": [0], "height": 16, "width": 16}


def make_source(ids: Sequence[int]) -> Source:
    items = [Item(f"{number:02d}", None, (0,), splits=("train",)) for number in ids]
    return Source("deadly", ["thing"], items, load_item, splits=("train",))


@pytest.mark.faults
def test_an_image_that_kills_whoever_reads_it(two_cores: None, tmp_path: Path) -> None:
    machines = lay_out([(2, 0)], Resources())
    with pytest.raises(UserError) as refused:
        prepare(make_source([3, 4]), str(tmp_path / "refused"), machines)
    assert str(refused.value) == f"03: {DEADLY}; fix them, or leave them out with --skip-bad"
    assert not (tmp_path / "refused").exists()
    source = make_source(range(8))
    found = prepare(source, str(tmp_path / "skipped"), machines, skip_bad=True)
    good = prepare(make_source([0, 1, 2, 4, 5, 6, 7]), str(tmp_path / "good"), machines)
    assert found.num_images == 7
    assert found.options["skipped"] == 1
    assert f"left out 1 of 8 images that cannot be used: 03: {DEADLY}" in source.notes
    assert found.splits["train"].digest == good.splits["train"].digest


class Chunks:
    """Rows of a chunk of names; dies over one of them."""

    def __init__(self, plan: str) -> None:
        self.plan = plan

    def make_table(self, shard: str) -> pa.Table:
        chunk = storage.read_json(storage.join(self.plan, f"{shard}.json"))
        if any(one["image"] == "deadly" for one in chunk):
            os.kill(os.getpid(), signal.SIGSEGV)
        keys = ("image", "where", "stamp")
        return pa.Table.from_pylist([{key: one[key] for key in keys} for one in chunk], schema=SCHEMA)


@pytest.mark.faults
def test_prediction_goes_on_without_a_deadly_image(two_cores: None, tmp_path: Path) -> None:
    plan, state = str(tmp_path / "plan"), str(tmp_path / "state")
    names = ["a", "b", "deadly", "c", "d", "e", "f"]
    images = [ImageRef(name, f"/images/{name}.jpg", "1") for name in names]
    rescue = partial(leave_deadly, plan, state)
    job = ShardJob("predict", partial(Chunks, plan), write_plan(images, plan), state, rescue=rescue)
    run_shards(job, lay_out([(2, 0)], Resources()))
    rows = [row for name in storage.list_names(state) for row in read_table(storage.join(state, name)).to_pylist()]
    assert sorted(row["image"] for row in rows) == sorted(names)
    assert {row["image"]: row["error"] for row in rows if row["error"]} == {"deadly": f"/images/deadly.jpg: {DEADLY}"}
    assert len(storage.list_names(state)) == 2
