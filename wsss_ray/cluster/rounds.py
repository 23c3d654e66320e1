# SPDX-License-Identifier: Apache-2.0
"""Work is handed to Ray in rounds: it keeps what it knows of each part until the last of them is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.memory import give_memory_back

ROUND, ROUND_PER_WORKER = 256, 16
"""Parts or shards of a round: so many, and at least so many a worker, so that ends of rounds cost little."""
TASKS_PER_WORKER = 32
"""Ray's tasks of a round, each of one part or several."""
Taken = TypeVar("Taken")


def take_rounds(items: Iterable[Taken], machines: Machines) -> Iterator[list[Taken]]:
    """All items, in rounds, taken as they are needed, so that any number of them fits into memory.

    Memory is given back between them: Ray keeps 10 kB of each part until it is asked, which takes 0.3 s.
    """
    source, size = iter(items), max(ROUND, ROUND_PER_WORKER * machines.cpu_workers)
    taken = list(islice(source, size))
    while taken:
        yield taken
        taken = list(islice(source, size))
        if taken:
            give_memory_back()


def count_tasks(num_parts: int, machines: Machines) -> int:
    """Tasks for the parts of a round: one each, but no more than keep all workers busy, also where some nodes join.

    A driver grows by 2 kB with every task: Ray never forgets one.
    """
    return min(num_parts, TASKS_PER_WORKER * machines.cpu_workers)
