# SPDX-License-Identifier: Apache-2.0
"""Training workers on the cluster: one on CPUs is a plain task in a process that is kept, more or those on GPUs are a
worker group of Ray Train.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from wsss_ray import storage
from wsss_ray.cluster.board import Notes, Notices, open_notes
from wsss_ray.cluster.join import Machines, fit_training
from wsss_ray.cluster.nodes import count_places, list_draining, list_nodes, name_node
from wsss_ray.cluster.process import begin_work, forget
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.engine.train import Request
from wsss_ray.engine.validate import World

log = logging.getLogger(__name__)
MAX_FAILURES = 3
"""How often a training whose worker died goes on from its last checkpoint."""
RESIZE_SECONDS = 300.0
"""Between two looks for nodes that came back: taking them in costs what was done since the last checkpoint."""
ROOM_SECONDS = 20.0
"""For how long those that come next wait for room; others may have taken it."""
NEWS_SECONDS = 25.0
"""Within which all of Ray counts a node that has joined: a group that begins sooner begins without it."""
LOOK_SECONDS = 3.0
"""Between two looks for nodes that are drained, and of the first worker at what it is asked."""
WAIT_SECONDS = 20.0
"""After which a training that has not begun says what it waits for."""
GROUP = "group"
"""What Ray Train keeps of a worker group, beside the training's own checkpoint."""


class Requests:
    """What the driver asks of a training: looked up by a thread on its first worker, taken between two steps."""

    def __init__(self, notes: Notes) -> None:
        self._notes, self._asked, self._ended = notes, Request.NOTHING, threading.Event()
        self._lock = threading.Lock()

    def take(self) -> Request:
        """What is asked, once."""
        with self._lock:
            asked, self._asked = self._asked, Request.NOTHING
        return asked

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Look while this is open."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=10)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # the board's node is lost: the driver with it
                asked = Request(self._notes.take_request())
                with self._lock:
                    self._asked = max(self._asked, asked)


@dataclass(frozen=True)
class Seat:
    """Where a training worker stands, whom it tells how far it is, and what it is asked."""

    world: World
    notes: Notes
    requests: Requests


@dataclass(frozen=True)
class TrainingWork:
    """What is run on every worker; it finds the last checkpoint itself, for it may be called again."""

    title: str
    work: Callable[[Seat], None]
    """Picklable."""
    out: str
    """Folder that all workers share."""


def run_workers(job: TrainingWork, machines: Machines, hear_epoch: Callable[[Mapping[str, Any]], None]) -> None:
    """Run a training to its end; ``hear_epoch`` is called in this process, from another thread, with every epoch.

    Where a node of it is drained it leaves that node and goes on where there is room. Raises UserError with a worker's
    own message, RuntimeError where workers failed more than ``MAX_FAILURES`` times.
    """
    notes = open_notes()
    wanted = {
        "GPU" if machines.use_gpu else "CPU": machines.train_workers * (1 if machines.use_gpu else machines.train_cpus)
    }
    watch = NodeWatch(job.title, notes, machines)
    with _show_progress(job.title, notes, hear_epoch, wanted, watch):
        try:
            layout, left = watch.choose_layout(), True
            while left:
                if machines.use_gpu or machines.train_workers > 1:
                    _run_group(job, notes, layout)
                else:
                    _run_alone(job, notes, layout)
                left = notes.read().left
                if left:
                    layout = watch.choose_layout()
                    watch.wait_for_room(layout)
        except Exception as error:
            said = notes.read().error
            if said:
                raise UserError(said) from None
            raise RuntimeError(f"{job.title}: training failed: {error}") from error
        said = notes.read().error
    notes.close()
    if said:
        raise UserError(said)


class NodeWatch:
    """Asks a training to leave nodes that are drained, and to take in those that come in their place."""

    def __init__(self, title: str, notes: Notes, machines: Machines) -> None:
        self.title, self.notes, self.machines = title, notes, machines
        self._known: set[str] = set()
        self._look_at, self._places = 0.0, 0
        self._room_since = math.inf

    def choose_layout(self) -> Machines:
        """How the training is laid out now: without the nodes that are drained, which Ray would wait for."""
        self.notes.take_request()
        nodes = list_nodes()
        self._places = count_places(nodes, self.machines.train_cpus, self.machines.use_gpu)
        return fit_training(self.machines, nodes) if list_draining() else self.machines

    def wait_for_room(self, layout: Machines) -> None:
        """Until the cluster has taken back what the workers that left had: a group begins with what is free."""
        number = min(layout.train_workers, self._places)
        wanted = ("GPU", number) if layout.use_gpu else ("CPU", number * layout.train_cpus)
        until = time.monotonic() + ROOM_SECONDS
        while ray.available_resources().get(wanted[0], 0) < wanted[1] and time.monotonic() < until:
            time.sleep(0.2)

    def look(self, nodes: Iterable[str]) -> None:
        """Ask what is to be asked of a training that runs on these nodes, every few seconds."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        seats, others, use_gpu = list(nodes), list_nodes(), self.machines.use_gpu
        places = count_places(others, self.machines.train_cpus, use_gpu)
        if new := (list_draining() & set(seats)) - self._known:
            self._known |= new
            room = count_places(others, 1, use_gpu) > 0
            self.notes.ask(Request.LEAVE if room else Request.CHECKPOINT)
            names = ", ".join(name_node(node) for node in sorted(new))
            then = "going on elsewhere" if room else "no other node has room for it"
            log.info(f"{self.title}: node {names} is being drained: checkpoint, {then}")
        elif not 0 < len(seats) < min(places, self.machines.train_workers) or places <= self._places:
            self._room_since = math.inf
        elif math.isinf(self._room_since):
            self._room_since = time.monotonic()
        elif time.monotonic() - self._room_since > NEWS_SECONDS:
            self._places = places
            room_for = min(places, self.machines.train_workers)
            log.info(f"{self.title}: there is room for {room_for} workers: checkpoint, going on with them")
            self.notes.ask(Request.LEAVE)


def _run_alone(job: TrainingWork, notes: Notes, machines: Machines) -> None:
    # Not in the placement group of a trial, which holds no cores for its steps.
    task = _work_alone.options(num_cpus=machines.train_cpus, scheduling_strategy="DEFAULT")
    running = task.remote(job.work, notes, machines.train_cpus)
    try:
        ray.get(running)
    except BaseException:
        ray.cancel(running, force=True)
        raise


@ray.remote(max_retries=MAX_FAILURES)
def _work_alone(work: Callable[[Seat], None], notes: Notes, threads: int) -> None:
    forget()
    begin_work(threads)
    notes.note_seat(0, 1, ray.get_runtime_context().get_node_id())
    requests = Requests(notes)
    with _noted_errors(notes), requests.listen():
        work(Seat(World(), notes, requests))


def _run_group(job: TrainingWork, notes: Notes, machines: Machines) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    filesystem, path = storage.open_fs(job.out)
    filesystem.create_dir(path, recursive=True)
    resources: dict[str, float] = {"CPU": machines.train_cpus}
    if machines.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        _work_in_group,
        train_loop_config={"work": job.work, "notes": notes, "threads": machines.train_cpus},
        torch_config=TorchConfig(backend="nccl" if machines.use_gpu else "gloo"),
        # From one worker on: where a node is lost the others go on from the last epoch, with the same global batch.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as Train V1's
            num_workers=(1, machines.train_workers),  # type: ignore[arg-type]
            use_gpu=machines.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=GROUP,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
    storage.remove_folder(storage.join(job.out, GROUP))


def _work_in_group(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.torch import get_device

    notes: Notes = config["notes"]
    if notes.read().error:
        return  # of an earlier try: another one meets the same
    begin_work(config["threads"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    notes.note_seat(world.rank, world.size, ray.get_runtime_context().get_node_id())
    requests = Requests(notes)
    try:
        with requests.listen() if world.rank == 0 else contextlib.nullcontext():
            config["work"](Seat(world, notes, requests))
    except UserError as error:
        # Raised as well, so that the other workers, who may wait for this one, are ended.
        notes.note_error(str(error))
        raise


@contextlib.contextmanager
def _noted_errors(notes: Notes) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        notes.note_error(str(error))


@contextlib.contextmanager
def _show_progress(
    title: str,
    notes: Notes,
    hear_epoch: Callable[[Mapping[str, Any]], None],
    wanted: Mapping[str, int],
    nodes: NodeWatch,
) -> Iterator[None]:
    """A progress bar fed from the board while training runs; what it waits for where it does not begin."""
    stop = threading.Event()

    def watch() -> None:
        heard: set[int] = set()
        say_at = time.monotonic() + WAIT_SECONDS
        with Bar(title, 0, "steps") as bar:
            ended = False
            while not ended:
                ended = stop.wait(1.0)
                if not ray.is_initialized():
                    continue  # a call would start a cluster of its own
                try:
                    notices = notes.read()
                except Exception:  # a node is lost, or the cluster goes down; the run itself reports why
                    continue
                for epoch in sorted(set(notices.epochs) - heard):
                    heard.add(epoch)
                    hear_epoch(notices.epochs[epoch])
                with contextlib.suppress(Exception):  # as above
                    nodes.look(notices.nodes.values())
                _show_notices(bar, notices)
                if not notices.num_steps and time.monotonic() > say_at:
                    say_at = time.monotonic() + 3 * WAIT_SECONDS
                    _say_what_lacks(title, wanted)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _say_what_lacks(title: str, wanted: Mapping[str, int]) -> None:
    there = ray.cluster_resources()
    for kind, number in wanted.items():
        if there.get(kind, 0) < number:
            log.info(f"{title}: waiting for {number} {kind}s, the cluster has {there.get(kind, 0):g}")


def _show_notices(bar: Bar, notices: Notices) -> None:
    bar.set_total(notices.num_steps)
    bar.keep(notices.steps_before - bar.kept)
    last = notices.epochs.get(max(notices.epochs, default=-1), {})
    precision = f" mAP {last['mean_ap']:.3f}" if last.get("mean_ap") is not None else ""
    bar.at(max(notices.step, notices.steps_before), f"loss {notices.loss:.4f}{precision}")
