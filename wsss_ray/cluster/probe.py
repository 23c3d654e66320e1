# SPDX-License-Identifier: Apache-2.0
"""Whether the other nodes of a joined cluster can work with this one: the same folders, versions and time."""

from __future__ import annotations

import contextlib
import functools
import logging
import platform
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wsss_ray import storage
from wsss_ray.cluster.nodes import list_draining
from wsss_ray.config import UserError
from wsss_ray.data.manifest import MANIFEST

log = logging.getLogger(__name__)
PROBE_SECONDS = 60.0
"""Within which a node must answer; the process that does so must start first."""
CLOCK_SECONDS = 60.0
"""How far the clock of a node may be from this one's."""
LOOK_SECONDS = 10.0
"""Between two looks for nodes that joined or left."""
MARK = ".tmp-probe"


@dataclass(frozen=True)
class SharedPlaces:
    """What every node must reach."""

    out: str | None = None
    """Folder or URI of results: read and written."""
    read: tuple[str, ...] = ()
    """Files and folders that are read."""


def list_places(out: str, data: str | None = None) -> SharedPlaces:
    """The folder of results, and a prepared data set where one is given."""
    read = () if data is None else (storage.join(storage.make_absolute(data), MANIFEST),)
    return SharedPlaces(storage.make_absolute(out), read)


@dataclass(frozen=True)
class NodeAnswer:
    """What a node says of itself."""

    versions: dict[str, str]
    clock: float
    """Seconds since 1970."""
    problem: str = ""
    """Why it cannot reach a place."""


def probe_nodes(places: SharedPlaces) -> None:
    """UserError, in one line, for the first of the other nodes that cannot work with this one; each answers in a task
    of its own, all at once.
    """
    problems = find_problems(list_other_nodes(), places)
    if problems:
        more = f" ({len(problems) - 1} other nodes have problems, too)" if len(problems) > 1 else ""
        raise UserError(f"node {problems[0][0]}: {problems[0][1]}{more}")


def list_other_nodes() -> dict[str, str]:
    """Id -> address of the nodes that are there and stay, without this one."""
    here, draining = ray.get_runtime_context().get_node_id(), list_draining()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["NodeID"] not in draining
    }


def find_problems(nodes: dict[str, str], places: SharedPlaces) -> list[tuple[str, str]]:
    """(address, problem) of the nodes among these that cannot work with this one; those that end meanwhile have none.

    A mark written here is read there, and one written there is read here: a folder of the same name is not enough.
    """
    if not nodes:
        return []
    token, start = f"{MARK}-{uuid.uuid4().hex[:12]}", time.time()
    if places.out is not None:
        storage.write_bytes(storage.join(places.out, token), token.encode())
    try:
        asked = {node: _ask_node(node, places, token) for node in nodes}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_SECONDS)
        found = []
        for node, answer in asked.items():
            if answer not in ready:
                ray.cancel(answer, force=True)
                problem = f"no answer within {PROBE_SECONDS:.0f} s; is it overloaded? Remove it or try again"
            else:
                problem = _judge_task(answer, places, f"{token}-{node}", start)
            if problem and any(there["NodeID"] == node and there["Alive"] for there in ray.nodes()):
                found.append((nodes[node], problem))
        return found
    finally:
        for name in (token, *(f"{token}-{node}" for node in nodes)):
            if places.out is not None:
                with contextlib.suppress(OSError):
                    storage.remove(storage.join(places.out, name))


def _ask_node(node: str, places: SharedPlaces, token: str) -> Any:
    on_it = NodeAffinitySchedulingStrategy(node, soft=False)
    return _answer.options(scheduling_strategy=on_it).remote(places, token, f"{token}-{node}")


@ray.remote(num_cpus=0, max_retries=0)
def _answer(places: SharedPlaces, token: str, own: str) -> NodeAnswer:
    return NodeAnswer(list_versions(), time.time(), find_unreachable(places, token, own))


def list_versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    return {"wsss-ray": digest_code(), "Ray": ray.__version__, "Python": platform.python_version()}


@functools.cache
def digest_code() -> str:
    """Of the package's own files: a checkout changes without its version."""
    root, digest = Path(storage.__file__).parent, 0
    for path in sorted(root.rglob("*.py")):
        digest = zlib.crc32(path.relative_to(root).as_posix().encode() + path.read_bytes(), digest)
    return f"{digest:08x}"


def find_unreachable(places: SharedPlaces, token: str, own: str) -> str:
    """Why this process cannot reach a place, or ''; leaves a mark of its own beside the other one."""
    if places.out is not None:
        share = "all nodes must share --out: give a shared folder or a URI such as s3://"
        try:
            if storage.read_bytes(storage.join(places.out, token)) != token.encode():
                return f"reads another file than was written at {places.out}; {share}"
        except (OSError, UserError) as error:
            return f"cannot read --out {places.out} ({_shorten(error)}); {share}"
        try:
            storage.write_bytes(storage.join(places.out, own), own.encode())
        except (OSError, UserError) as error:
            return f"cannot write --out {places.out} ({_shorten(error)}); let it write there"
    for place in places.read:
        try:
            if not storage.exists(place):
                return f"does not see {place}; all nodes must share the data: give a shared folder or a URI"
        except (OSError, UserError) as error:
            return f"cannot read {place} ({_shorten(error)}); let it read there"
    return ""


def _judge_task(answer: Any, places: SharedPlaces, mark: str, start: float) -> str:
    try:
        told: NodeAnswer = ray.get(answer)
    except Exception as error:  # of the node: without the package, or with another one
        return f"cannot run wsss-ray ({_shorten(error)}); install the same version there"
    problem = judge_answer(told, start, time.time())
    if problem or places.out is None:
        return problem
    seen = storage.exists(storage.join(places.out, mark))
    return "" if seen else f"what it writes to --out {places.out} is not seen here; all nodes must share it"


def judge_answer(told: NodeAnswer, start: float, end: float) -> str:
    """What is wrong with a node that was asked between two times of the clock here, or ''."""
    for name, version in list_versions().items():
        if told.versions.get(name) != version:
            return f"has {name} {told.versions.get(name)}, here is {version}; install the same version on both"
    away = max(start - told.clock, told.clock - end, 0.0)
    if away > CLOCK_SECONDS:
        return f"its clock is {away:.0f} s away from the one here; set it, for example by NTP"
    return told.problem


def _shorten(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


@contextlib.contextmanager
def watch_nodes(places: SharedPlaces) -> Iterator[None]:
    """Say which nodes join, leave or are drained while this is open; a node that joins and cannot work is named."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(places, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=LOOK_SECONDS / 2)


def _watch(places: SharedPlaces, stop: threading.Event) -> None:
    known: dict[str, str] | None = None
    while not stop.wait(LOOK_SECONDS if known is not None else 0):
        with contextlib.suppress(Exception):  # the cluster goes down; the run itself says so
            there = list_other_nodes()
            before, known = known, there
            for _, address in ((before or there).items()) - there.items():
                log.info(f"node {address} left the cluster or is being drained; its work goes to the others")
            new = dict(there.items() - (before or there).items())
            bad = dict(find_problems(new, places))
            for address in new.values():
                if address in bad:
                    log.warning(f"node {address} joined, and what runs there will fail: {bad[address]}")
                else:
                    log.info(f"node {address} joined the cluster and is used")
