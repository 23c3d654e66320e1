# SPDX-License-Identifier: Apache-2.0
"""Work over parts of a data set that share nothing: one Ray task each, results as they come."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from wsss_ray.cluster.deaths import WorkerDiedError, run_alone
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.rounds import count_tasks, take_rounds
from wsss_ray.cluster.split import use_tasks
from wsss_ray.config import UserError

log = logging.getLogger(__name__)
Part = Mapping[str, Any]
"""What is worked on; ``items`` holds its images, packed."""
Result = dict[str, Any]
Work = Callable[..., Result]
"""(part, *arguments) -> its result; importable on the workers."""
Bury = Callable[[Result, list[Any]], Result]
"""(result of a part without some of its items, these items) -> what is said of all of them."""
DEADLY = "kills the process that reads it (a crash, or out of memory)"
"""What is said of such an item."""
_OVER = "workers die over images that are good one by one: too little memory for them together; close other programs"
pack_items: Callable[[list[Any]], bytes] = cloudpickle.dumps
unpack_items: Callable[[bytes], list[Any]] = cloudpickle.loads
"""The items of a part, as they travel."""


def run_parts(
    work: Work, parts: Iterable[Part], arguments: tuple[Any, ...], layout: Machines, bury: Bury
) -> Iterator[Result]:
    """The result of each part, in any order, on one core each (see ``use_tasks``).

    A part over which workers die again and again is done without the items that kill them, which are found by halving
    it.
    """
    for taken in take_rounds(parts, layout):
        left = dict(enumerate(taken))
        placed = [{"place": place, "part": _pack(dict(part))} for place, part in left.items()]
        pipeline = ray.data.from_items(placed, override_num_blocks=count_tasks(len(placed), layout)).map_batches(
            _work_on,  # type: ignore[arg-type]
            fn_args=(work, arguments),
            batch_size=1,
            **use_tasks(layout),
        )
        try:
            for row in pipeline.iter_rows():
                left.pop(int(row["place"]))
                yield _read_result(row)
        except RayTaskError:
            raise
        except RayError:
            for part in left.values():
                yield _run_without_deadly(work, part, arguments, bury)


def _work_on(batch: dict[str, np.ndarray], work: Work, arguments: tuple[Any, ...]) -> Result:
    found = _work(_unpack(batch["part"][0]), work, arguments)
    return {"place": batch["place"], **{name: [value] for name, value in found.items()}}


def _work(part: Part, work: Work, arguments: tuple[Any, ...]) -> Result:
    """The result of a part, packed, or the user's error that it came to, word for word."""
    try:
        return {"result": _pack(work(part, *arguments)), "error": ""}
    except UserError as error:
        return {"result": b"", "error": str(error)}


def _read_result(row: Result) -> Result:
    if row["error"]:
        raise UserError(str(row["error"]))
    found: Result = _unpack(row["result"])
    return found


def _pack(value: Any) -> bytes:
    """Bytes to travel: what is said of images is the same words again and again, of which the driver holds a tenth."""
    return zlib.compress(cloudpickle.dumps(value), level=1)


def _unpack(data: bytes) -> Any:
    return cloudpickle.loads(zlib.decompress(data))


def _run_without_deadly(work: Work, part: Part, arguments: tuple[Any, ...], bury: Bury) -> Result:
    """The result of a part whose worker may have died over it."""
    found = _run_alone(work, part, arguments)
    if found is not None:
        return found
    items = unpack_items(part["items"])
    log.warning(f"a worker dies over one of {len(items)} images; looking for it")
    deadly = _find_deadly(items, lambda some: _run_alone(work, _take(part, some), arguments) is not None)
    alive = [item for place, item in enumerate(items) if place not in deadly]
    found = _run_alone(work, _take(part, alive), arguments)
    if found is None:
        raise UserError(_OVER)
    return bury(found, [items[place] for place in sorted(deadly)])


def _find_deadly(items: list[Any], survives: Callable[[list[Any]], bool]) -> set[int]:
    """Places of the items over which a worker dies; of all items one does."""
    if len(items) == 1:
        return {0}
    deadly, middle = set(), len(items) // 2
    for start, half in ((0, items[:middle]), (middle, items[middle:])):
        if not survives(half):
            deadly |= {start + place for place in _find_deadly(half, survives)}
    return deadly


def _take(part: Part, items: list[Any]) -> Part:
    return {**part, "items": pack_items(items)}


def _run_alone(work: Work, part: Part, arguments: tuple[Any, ...]) -> Result | None:
    """The result of a part; None where its worker died."""
    try:
        found = run_alone(_work_alone, work, dict(part), arguments)
    except WorkerDiedError:
        return None
    return _read_result(found)


@ray.remote(num_cpus=1, max_retries=0)
def _work_alone(work: Work, part: Part, arguments: tuple[Any, ...]) -> Result:
    return _work(part, work, arguments)
