# SPDX-License-Identifier: Apache-2.0
"""A Ray of a fixed size for tests, on the loopback address."""

from __future__ import annotations

from typing import Any

import ray

from wsss_ray.cluster.join import START_ATTEMPTS


def start_ray(num_cpus: int, **options: Any) -> Any:
    """What ``ray.init`` returns; tried again where Ray's agents are late, as they are on a busy machine."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            return ray.init(
                address="local",
                num_cpus=num_cpus,
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                **{"include_dashboard": False, **options},
            )
        except Exception as error:  # Ray raises plain exceptions
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("no attempt was made")
