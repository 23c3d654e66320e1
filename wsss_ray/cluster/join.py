# SPDX-License-Identifier: Apache-2.0
"""Joining a Ray cluster, or starting one on this machine's loopback address, and what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import ray
from ray.util.annotations import RayDeprecationWarning

from wsss_ray.cluster.guard import guard_cluster, mark_own_ray
from wsss_ray.cluster.nodes import Node, count_places, list_possible_nodes
from wsss_ray.cluster.probe import SharedPlaces, probe_nodes, watch_nodes
from wsss_ray.cluster.ray_data import adapt_ray_data
from wsss_ray.cluster.shared_memory import choose_store
from wsss_ray.config import UserError
from wsss_ray.recipe import Resources

log = logging.getLogger(__name__)
ANSWER_SECONDS = 10.0
"""Within which the head of a cluster that is joined must answer."""
LOOPBACK = "127.0.0.1"
START_ATTEMPTS = 3
KEPT_MS = 3_600_000
"""How long an idle process of a local node is kept for the next step, which finds PyTorch imported there."""
ORPHANS_AFTER = (2.0, 3.0, 5.0, 10.0)
"""Seconds between looks for what dead trainings hold."""


@dataclass(frozen=True)
class Machines:
    """How work is laid out on the cluster that was joined."""

    cpus: int
    gpus: int
    train_workers: int
    train_cpus: int
    """Threads of each training worker."""
    inference_workers: int
    """Processes that hold a network: one for each GPU, or core where there are none; each uses one thread, so that
    their number changes no bit of a result."""
    cpu_workers: int
    """Processes of the steps without a network: preparation, saliency, CRF, scores."""
    grows: bool = False
    """Whether steps may use more than this where nodes join: nobody else shares the cluster, no number was given."""

    @property
    def use_gpu(self) -> bool:
        """Whether networks run on GPUs."""
        return self.gpus > 0


@contextlib.contextmanager
def join_cluster(address: str | None = None, places: SharedPlaces | None = None) -> Iterator[None]:
    """A connection to Ray: the session of this process where it has one, which is left as it was; else ``address`` or
    RAY_ADDRESS where given; otherwise a local cluster that ends with the run.

    Raises UserError where the address does not answer or asks for a token, or a node of the cluster cannot reach
    ``places``.
    """
    if ray.is_initialized():
        with adapt_ray_data():
            yield
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    logging.getLogger("ray").setLevel(_choose_level())
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        with _own_signals():
            if address:
                refuse_silent(address)
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
            else:
                _start_here()
    except UserError:
        raise
    except Exception as error:  # Ray raises plain exceptions
        where, hint = "start Ray on this machine", explain_start(error)
        if address:
            where = f"join Ray at {address}"
            hint = "is it running there? A token-protected cluster needs RAY_AUTH_MODE=token and its token"
        raise UserError(f"cannot {where}: {str(error).splitlines()[0]}; {hint}") from error
    try:
        with guard_cluster(address), adapt_ray_data():
            # Ray 2.60 warns of settings of tasks for which it has no other way yet.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Now that Ray Data is imported, which sets levels of its own.
            for name in ("ray.data", "ray.train", "ray.tune"):
                logging.getLogger(name).setLevel(_choose_level())
            with _watched_nodes(places if address else None):
                yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _watched_nodes(places: SharedPlaces | None) -> Iterator[None]:
    """Nodes that can work with this one, and word of those that come and go; nothing without places."""
    if places is None:
        yield
        return
    probe_nodes(places)
    with watch_nodes(places):
        yield


def explain_start(error: Exception) -> str:
    """What to do where a local Ray does not start."""
    known = {
        "AF_UNIX path length": "set TMPDIR to a shorter folder, such as /tmp",
        "Permission denied": "let HOME and TMPDIR name folders that can be written",
        "Read-only file system": "let HOME and TMPDIR name folders that can be written",
        "/dev/shm": "enlarge it (in a container: --shm-size=4g)",
        "No space left": "free some space in TMPDIR and /dev/shm",
        "Address already in use": "another program took the port; try again",
    }
    found = [fix for words, fix in known.items() if words in str(error)]
    return found[0] if found else "is it too busy? Try again, or join a cluster by --address"


def refuse_silent(address: str) -> None:
    """UserError where no Ray answers at an address within ``ANSWER_SECONDS``: Ray itself tries for many minutes."""
    place, where = address.removeprefix("ray://"), f"--address {address} (or RAY_ADDRESS)"
    fix = "start it there, correct the address, or leave both out (or --address local) to run on this machine"
    if place == "local":
        return
    if place == "auto":
        place = _find_running() or ""
        if not place:
            return  # Ray says that it found none
    host, colon, port = place.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f"{where}: no HOST:PORT; {fix}")
    began = time.monotonic()
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS / 2).close()
    except OSError as error:
        raise UserError(f"{where}: nothing answers at {place} ({error.strerror or error}); {fix}") from None
    if address.startswith("ray://"):
        return
    answered = threading.Event()
    threading.Thread(target=_ask_head, args=(place, answered), daemon=True).start()
    if not answered.wait(ANSWER_SECONDS - (time.monotonic() - began)):
        raise UserError(f"{where}: what listens at {place} does not answer as Ray does; {fix}")


def _ask_head(place: str, answered: threading.Event) -> None:
    """Ask the head of a cluster for something small; an error is an answer, too."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        GcsClient(address=place).internal_kv_get(b"wsss", timeout=ANSWER_SECONDS)
    except Exception as error:
        log.debug("%s: %s", place, error)
        if "timed out" in str(error).lower() or "unavailable" in str(error).lower() or "deadline" in str(error).lower():
            return
    answered.set()


def _find_running() -> str | None:
    """Where Ray believes a cluster of this machine to run."""
    try:
        from ray._private.services import canonicalize_bootstrap_address

        found: str | None = canonicalize_bootstrap_address("auto")
    except Exception:  # Ray says what is wrong when it joins
        return None
    return found


def _start_here() -> None:
    """A node of this run's own, tried again where it is late: Ray gives its agents too short a time on a busy machine.

    ``local``, since without an address Ray joins whatever ``ray start`` has left running here.
    """
    mark_own_ray()
    for left in reversed(range(START_ATTEMPTS)):
        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    _node_ip_address=LOOPBACK,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    **choose_store(),
                    _system_config={"idle_worker_killing_time_threshold_ms": KEPT_MS, "task_oom_retries": 2},
                )
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """The handlers of signals stay as they are: Ray's own end a driver at once, with a dump of its stack."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take the loopback address for its node, as it does by itself on macOS and Windows.

    On Linux it puts the machine's own address in its place, since others could join; its services then listen on all
    interfaces. Nobody joins the node of a run.
    """
    try:
        from ray._private import ray_constants
    except ImportError:  # Ray's own, which another version may lack: a token guards what listens
        yield
        return
    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _choose_level() -> int:
    """From which level on Ray's own messages are shown: errors, unless this package's debugging is."""
    return logging.INFO if log.isEnabledFor(logging.DEBUG) else logging.ERROR


def plan_machines(resources: Resources, share: int = 1) -> Machines:
    """The layout of one of ``share`` runs on what the joined cluster has or may become; UserError where it asks for
    more.
    """
    return lay_out(list_possible_nodes(resources.nodes), resources, share)


def lay_out(nodes: Sequence[Node], resources: Resources, share: int = 1) -> Machines:
    """``plan_machines`` of these nodes; the threads of a training worker never exceed what a node can give it."""
    cpus, gpus = max(1, count_places(nodes, 1)), count_places(nodes, 1, use_gpu=True)
    cpus, gpus = max(1, cpus // share), max(1, gpus // share) if gpus else 0
    if resources.gpus is False:
        gpus = 0
    if resources.gpus and not gpus:
        raise UserError("resources.gpus: the cluster has no GPU; leave it out to use CPUs")
    limit = gpus or cpus
    if resources.train_workers > limit:
        kind = "GPUs" if gpus else "CPUs"
        raise UserError(
            f"resources.train_workers: {resources.train_workers} workers, but the cluster has {limit} {kind}; lower it"
        )
    inference = min(resources.inference_workers or limit, limit)
    threads = max(1, cpus // resources.train_workers)
    while threads > 1 and count_places(nodes, threads, gpus > 0) < share * resources.train_workers:
        threads -= 1
    cpu_workers = min(resources.inference_workers or cpus, cpus) if not gpus else cpus
    grows = share == 1 and resources.inference_workers is None
    return Machines(cpus, gpus, resources.train_workers, threads, inference, cpu_workers, grows)


def fit_training(machines: Machines, nodes: Sequence[Node]) -> Machines:
    """The same with no more training workers, and no more threads for each, than these nodes hold; as it was where
    they hold none.
    """
    for threads in range(machines.train_cpus, 0, -1):
        places = count_places(nodes, threads, machines.use_gpu)
        if places:
            return replace(machines, train_cpus=threads, train_workers=min(machines.train_workers, places))
    return machines


def choose_concurrency(resources: Resources, asked: int | None, num_jobs: int) -> int:
    """How many runs go on at the same time: one per GPU, or per two cores, for each training worker.

    UserError where more are asked for than have room.
    """
    return fit_runs(list_possible_nodes(resources.nodes), resources, asked, num_jobs)


def fit_runs(nodes: Sequence[Node], resources: Resources, asked: int | None, num_jobs: int) -> int:
    """``choose_concurrency`` on these nodes."""
    whole = lay_out(nodes, resources)
    limit = max(1, count_places(nodes, 1, whole.use_gpu) // whole.train_workers)
    if asked is not None and asked > limit:
        raise UserError(
            f"--max-concurrent {asked}: the cluster has room for {limit} runs of {whole.train_workers} training "
            "worker(s); lower it, or join a larger cluster with --address"
        )
    largest = max((cpus for cpus, _ in nodes), default=1)
    usual = limit if whole.use_gpu else max(1, count_places(nodes, min(2, max(1, largest))) // whole.train_workers)
    return max(1, min(asked or usual, num_jobs))


def release_orphans() -> None:
    """Give back what trainings hold whose driver died or was stopped: now, and a few times in the background.

    Ray keeps the placement group of a Train controller that is killed until the job ends, and whatever wants its cores
    would wait for ever. Ray notes such a death some seconds late. Never raises.
    """

    def later() -> None:
        for seconds in ORPHANS_AFTER:
            time.sleep(seconds)
            _remove_orphans()

    _remove_orphans()
    threading.Thread(target=later, daemon=True).start()


def _remove_orphans() -> None:
    if not ray.is_initialized():
        return  # what follows would start a cluster
    with contextlib.suppress(Exception):  # all of it is Ray's own, which another version may lack
        from ray._private.state import state
        from ray._raylet import PlacementGroupID
        from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        job = ray.get_runtime_context().get_job_id()
        for raw in state._connect_and_get_accessor().get_placement_group_table():  # noqa: SLF001 (Ray has no public way)
            group = PlacementGroupTableData.FromString(raw)
            # Groups that no actor made (Tune's own are the driver's) are marked as if their actor were dead.
            by_actor = group.creator_actor_id.strip(b"\xff") != b""
            if (
                by_actor
                and group.creator_actor_dead
                and not group.is_detached
                and group.creator_job_id.hex() == job
                and group.state != PlacementGroupTableData.REMOVED
            ):
                remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def find_this_node() -> str:
    """The resource that pins the drivers of runs to this node, where their file locks hold."""
    address = ray.util.get_node_ip_address()
    have = ray.cluster_resources()
    return f"node:{address}" if f"node:{address}" in have else next(key for key in have if key.startswith("node:"))
