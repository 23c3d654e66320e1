# SPDX-License-Identifier: Apache-2.0
"""A node that is lost while two workers train: the training goes on with one, from the last epoch."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from tests.faults.clusters import start_cluster
from wsss_ray.artifacts.checkpoint import read_checkpoint, write_checkpoint
from wsss_ray.cluster.join import lay_out
from wsss_ray.cluster.workers import Seat, TrainingWork, run_workers
from wsss_ray.recipe import Resources

pytestmark = pytest.mark.faults
EPOCHS = 8


def work(out: str, seat: Seat) -> None:
    """Epochs of a second each, with all workers waiting for each other as gradients make them."""
    import torch
    import torch.distributed as dist

    last = read_checkpoint(out)
    done: list[int] = [] if last is None else json.loads(last["history"])
    if seat.world.rank == 0:
        seat.notes.note_history([{"epoch": epoch} for epoch in range(len(done))], len(done))
    for epoch in range(len(done), EPOCHS):
        time.sleep(1)
        if seat.world.size > 1:
            dist.all_reduce(torch.ones(1))
        done.append(seat.world.size)
        if seat.world.rank == 0:
            write_checkpoint(out, epoch, {"history": json.dumps(done).encode()})
            seat.notes.note_step(epoch + 1, EPOCHS, 0.0)
            seat.notes.note_epoch({"epoch": epoch})


@pytest.fixture
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    with start_cluster({"num_cpus": 1}, {"num_cpus": 1}) as (cluster, (_, second)):
        yield cluster, second


@pytest.mark.timeout(600)
def test_the_other_goes_on(two_nodes: tuple[Cluster, Any], tmp_path: Path) -> None:
    cluster, second = two_nodes
    out = str(tmp_path / "out")

    def lose() -> None:
        while len(heard) < 2:
            time.sleep(0.2)
        cluster.remove_node(second, allow_graceful=False)

    heard: list[int] = []
    loser = threading.Thread(target=lose, daemon=True)
    loser.start()
    machines = lay_out([(1, 0), (1, 0)], Resources(train_workers=2))
    run_workers(TrainingWork("train", partial(work, out), out), machines, lambda epoch: heard.append(epoch["epoch"]))
    last = read_checkpoint(out)
    assert last is not None
    sizes = json.loads(last["history"])
    assert len(sizes) == EPOCHS
    assert sizes[0] == 2
    assert sizes[-1] == 1
    assert heard == list(range(EPOCHS))
