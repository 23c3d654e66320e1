"""Joining a Ray cluster, or starting one on this machine's loopback address, and what it has."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from wsss_ray.config import UserError
from wsss_ray.recipe import Resources

START_ATTEMPTS = 3


@dataclass(frozen=True)
class Machines:
    """How work is laid out on the cluster that was joined."""

    cpus: int
    gpus: int
    train_workers: int
    train_cpus: int
    """Threads of each training worker."""
    inference_workers: int
    """Processes of the inference stages; each uses one thread, so that their number changes no bit of a result."""

    @property
    def use_gpu(self) -> bool:
        """Whether networks run on GPUs."""
        return self.gpus > 0


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """A connection to Ray: ``address`` or RAY_ADDRESS where given, otherwise a local cluster that ends with the run.

    Raises UserError where the address does not answer or asks for a token.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        else:
            _start_here()
    except Exception as error:  # Ray raises plain exceptions
        where, hint = "start Ray on this machine", "is it too busy? Try again, or join a cluster by --address"
        if address:
            where = f"join Ray at {address}"
            hint = "is it running there? A token-protected cluster needs RAY_AUTH_MODE=token and its token"
        raise UserError(f"cannot {where}: {str(error).splitlines()[0]}; {hint}") from error
    _quiet()
    try:
        yield
    finally:
        ray.shutdown()


def _start_here() -> None:
    """A local node, tried again where it is late: Ray gives its agents a fixed time, too short on a busy machine."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
        else:
            return


def _quiet() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def machines(resources: Resources, share: int = 1) -> Machines:
    """The layout of one of ``share`` runs on the joined cluster; UserError where it asks for more than there is."""
    have = ray.cluster_resources()
    cpus, gpus = max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))
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
    workers = min(resources.inference_workers or limit, limit)
    return Machines(cpus, gpus, resources.train_workers, max(1, cpus // resources.train_workers), workers)


def concurrency(resources: Resources, asked: int | None, num_jobs: int) -> int:
    """How many runs go on at the same time: one per GPU, or per two cores, for each training worker.

    UserError where more are asked for than have room.
    """
    whole = machines(resources)
    limit = max(1, (whole.gpus or whole.cpus) // whole.train_workers)
    if asked is not None and asked > limit:
        raise UserError(
            f"--max-concurrent {asked}: the cluster has room for {limit} runs of {whole.train_workers} training "
            "worker(s); lower it, or join a larger cluster with --address"
        )
    usual = limit if whole.use_gpu else max(1, limit // 2)
    return max(1, min(asked or usual, num_jobs))


def this_node() -> str:
    """The resource that pins the drivers of runs to this node, where their file locks hold."""
    address = ray.util.get_node_ip_address()
    have = ray.cluster_resources()
    return f"node:{address}" if f"node:{address}" in have else next(key for key in have if key.startswith("node:"))
