# SPDX-License-Identifier: Apache-2.0
"""Work that is run alone, to see whether it is what its worker dies of."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

ATTEMPTS = 3
"""How often work is handed out anew that was lost with its node."""


class WorkerDiedError(Exception):
    """The process died that did a piece of work alone; says of what."""


def run_alone(task: Any, *arguments: Any) -> Any:
    """The result of a Ray task without retries of its own.

    WorkerDiedError where its process died, the error of the task where it failed; a node that was lost with it says
    nothing of the task, which is tried again then.
    """
    lost: RayError | None = None
    for _ in range(ATTEMPTS):
        try:
            return ray.get(task.remote(*arguments))
        except OutOfMemoryError:
            raise WorkerDiedError("out of memory") from None
        except WorkerCrashedError:
            raise WorkerDiedError("a crash, or out of memory") from None
        except RayTaskError:
            raise
        except RayError as error:
            lost = error
    raise lost or RuntimeError("no attempt was made")
