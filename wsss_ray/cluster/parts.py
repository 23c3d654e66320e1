# SPDX-License-Identifier: Apache-2.0
"""Work over parts of a data set that share nothing: one Ray task each, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import ray

from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.split import use_tasks

Work = Callable[..., dict[str, Any]]
"""(batch of one part, *arguments) -> one result, every value in a list of its own; importable on the workers."""


ROUND, ROUND_PER_WORKER = 256, 16
"""Parts that are handed to Ray at once: so many, and at least so many a worker, so that ends of rounds cost little."""


def run_parts(
    work: Work, parts: Iterable[Mapping[str, Any]], arguments: tuple[Any, ...], layout: Machines
) -> Iterator[dict[str, Any]]:
    """The result of each part, in any order, one core each (see ``use_tasks``).

    Parts are taken in rounds as they are needed, so that any number of them fits into memory.
    """
    source = iter(parts)
    while taken := list(islice(source, max(ROUND, ROUND_PER_WORKER * layout.cpu_workers))):
        pipeline = ray.data.from_items(taken, override_num_blocks=len(taken)).map_batches(
            work, fn_args=arguments, batch_size=1, **use_tasks(layout)
        )
        yield from pipeline.iter_rows()
