# SPDX-License-Identifier: Apache-2.0
"""Trainings whose nodes are taken back, and one that is killed in the middle of an epoch, by the real step."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from tests.conftest import TINY
from tests.faults.clusters import add_node, drain, start_cluster, wait_until
from tests.faults.processes import Command
from wsss_ray import storage
from wsss_ray.artifacts.checkpoint import FOLDER, RECORD
from wsss_ray.artifacts.network import MODEL, LocalizerSpec
from wsss_ray.cluster import workers
from wsss_ray.cluster.board import Notes, Notices, open_notes
from wsss_ray.cluster.join import lay_out
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.recipe import override, take_localizer
from wsss_ray.resources import Resources
from wsss_ray.stages.train import HISTORY, TrainJob, run_training
from wsss_ray.studies import resolve

pytestmark = [pytest.mark.faults, pytest.mark.timeout(550)]
NUM_TRAIN, BATCH, EPOCHS = 240, 4, 12
STEPS = NUM_TRAIN // BATCH
LONGER = (
    *(setting for setting in TINY if not setting.startswith(("segment.", "predict."))),
    *("data.toy.num_train=240", "resources.checkpoint_minutes=0.003", "refine=null", "segment=null"),
)
"""One training, with checkpoints between its steps."""
TINY_NET = ("net.options={width: 16}", "net.weights=null", "train.augment.crop=48", "train.validate_images=0")


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """Epochs of CAM with 60 steps each: a fast machine does not end it before a drain is heard of."""
    recipe = override(resolve("cam"), [*TINY_NET, f"train.batch_size={BATCH}", f"train.epochs={EPOCHS}"])
    write_dataset(open_source("toy", num_train=NUM_TRAIN, num_val=4, size=56), str(tmp_path / "data"))
    spec = LocalizerSpec(num_classes=5, localization=take_localizer(recipe))
    return TrainJob(
        spec=spec.model_dump_json(),
        out=str(tmp_path / "out"),
        data=str(tmp_path / "data"),
        split="train",
        val_split="val",
        seed=1,
        threads=1,
        checkpoint_seconds=600,
    )


class Watched:
    """What the workers of a training note."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[Notes] = []
        self.heard: list[int] = []
        self.seen: list[Notices] = []

        def open_and_keep() -> Notes:
            self.notes.append(open_notes())
            return self.notes[-1]

        monkeypatch.setattr(workers, "open_notes", open_and_keep)

    @contextmanager
    def train(
        self, job: TrainJob, num_workers: int, nodes: list[tuple[int, int]], to_end: bool = True
    ) -> Iterator[None]:
        """A training in a thread, followed to its end or left alone."""
        machines = lay_out(nodes, Resources(train_workers=num_workers))
        machines = replace(machines, train_cpus=1)
        errors: list[BaseException] = []

        def run() -> None:
            try:
                run_training("train", job, machines, lambda epoch: self.heard.append(epoch["epoch"]))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        wait_until(lambda: bool(self.notes))
        yield
        while thread.is_alive() and to_end:
            self.look()
            time.sleep(0.3)
        assert not errors, errors

    def look(self) -> Notices:
        notices = self.notes[-1].read()
        self.seen.append(notices)
        return notices

    def wait(self, true: Callable[[Notices], bool]) -> Notices:
        """Until it is true of what is noted."""
        wait_until(lambda: true(self.look()), 200)
        return self.seen[-1]


def test_one_worker_leaves_a_drained_node_and_ends_with_the_same_bits(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_cluster({"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as (cluster, (_, *nodes)):
        watched = Watched(monkeypatch)
        with caplog.at_level(logging.INFO, "wsss_ray"), watched.train(job, 1, [(1, 0), (1, 0)]):
            before = watched.wait(lambda notices: notices.step > 20)
            first = before.nodes[0]
            drain(cluster, first)
            after = watched.wait(lambda notices: notices.nodes.get(0, first) != first)
            (leaving,) = [node for node in nodes if node.node_id == first]
            cluster.remove_node(leaving, allow_graceful=False)
            after = watched.wait(lambda notices: notices.step > after.step)
        assert "is being drained: checkpoint, going on elsewhere" in caplog.text
        steps = [notices.step for notices in watched.seen if notices.step]
        with capsys.disabled():
            print(f"\ndrained at step {before.step} of {STEPS * EPOCHS}: on {first[:6]}, then {after.nodes[0][:6]}")
        assert steps == sorted(steps), "no step is done twice"
        assert watched.heard == list(range(EPOCHS))
        whole = replace(job, out=f"{job.out}-undisturbed")
        run_training("train", whole, lay_out([(1, 0)], Resources()), lambda epoch: None)
    assert storage.read_bytes(f"{job.out}/{MODEL}") == storage.read_bytes(f"{whole.out}/{MODEL}")
    assert read_losses(job.out) == read_losses(whole.out)


def read_losses(out: str) -> list[Any]:
    return [record["losses"] for record in json.loads(storage.read_bytes(f"{out}/{HISTORY}"))]


def test_two_workers_leave_a_drained_node_and_take_in_the_one_in_its_place(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = LocalizerSpec.model_validate_json(job.spec)
    longer = replace(job, spec=override_epochs(spec, 600).model_dump_json())
    with start_cluster({"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as (cluster, (_, first, second)):
        watched = Watched(monkeypatch)
        with caplog.at_level(logging.INFO, "wsss_ray"), watched.train(longer, 2, [(1, 0), (1, 0)], to_end=False):
            watched.wait(lambda notices: notices.step > 10 and len(notices.nodes) == 2)
            drain(cluster, second.node_id)
            alone = watched.wait(lambda notices: list(notices.nodes.values()) == [first.node_id])
            cluster.remove_node(second, allow_graceful=False)
            watched.wait(lambda notices: notices.step > alone.step + 5)
            third = add_node(cluster, 4, num_cpus=1)
            both = watched.wait(lambda notices: len(notices.nodes) == 2)
            assert set(both.nodes.values()) == {first.node_id, third.node_id}
            watched.wait(lambda notices: notices.step > both.step + 5)
        steps = [notices.step for notices in watched.seen if notices.step]
        with capsys.disabled():
            print(f"\ntwo workers, one from step {alone.step} on, two from step {both.step} on, {steps[-1]} at the end")
        assert "there is room for 2 workers" in caplog.text
        assert steps == sorted(steps), "no step is done twice"
        assert watched.heard == list(range(len(watched.heard)))


def override_epochs(spec: LocalizerSpec, epochs: int) -> LocalizerSpec:
    """The same network, trained for longer."""
    part = spec.localization
    train = part.train.model_copy(update={"epochs": epochs})
    return spec.model_copy(update={"localization": part.model_copy(update={"train": train})})


def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``kill -9`` of the whole command, behind a checkpoint between two steps."""
    longer = [part for setting in LONGER for part in ("--set", setting)]
    arguments = ["run", "cam", *longer, "--out"]
    killed = Command(tmp_path, *arguments, str(tmp_path / "killed"))

    def read_number() -> int:
        found = list((tmp_path / "killed" / "train").glob(f"*/{FOLDER}/{RECORD}"))
        return int(json.loads(found[0].read_bytes())["epoch"]) if found else 1

    try:
        # Odd ones are of whole epochs.
        wait_until(lambda: read_number() % 2 == 0 or killed.process.poll() is not None, 300)
        assert killed.process.poll() is None, killed.text
        os.kill(killed.process.pid, signal.SIGKILL)
    finally:
        killed.kill()
    number = read_number()
    for name in ("killed", "whole"):
        again = Command(tmp_path, *arguments, str(tmp_path / name))
        try:
            assert again.process.wait(timeout=300) == 0, again.text
        finally:
            again.kill()
    with capsys.disabled():
        print(f"\nkilled behind the checkpoint of step {number // 2}")
    (one,), (other,) = (sorted((tmp_path / name / "train").glob(f"*/{MODEL}")) for name in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()
    assert read_losses(str(one.parent)) == read_losses(str(other.parent))
