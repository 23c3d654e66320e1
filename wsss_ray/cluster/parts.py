# SPDX-License-Identifier: Apache-2.0
"""Work over parts of a data set that share nothing: one Ray task each, results as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from wsss_ray.cluster.join import Machines

Work = Callable[..., dict[str, Any]]
"""(batch of one part, *arguments) -> one result, every value in a list of its own; importable on the workers."""


def run_parts(
    work: Work, parts: Sequence[Mapping[str, Any]], arguments: tuple[Any, ...], layout: Machines
) -> Iterator[dict[str, Any]]:
    """The result of each part, in any order; at most ``layout.cpu_workers`` run at once, one core each."""
    pipeline = ray.data.from_items(list(parts), override_num_blocks=len(parts)).map_batches(
        work,
        fn_args=arguments,
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=layout.cpu_workers),
        num_cpus=1,
    )
    yield from pipeline.iter_rows()
