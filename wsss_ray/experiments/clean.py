# SPDX-License-Identifier: Apache-2.0
"""``wsss clean``: artifacts that no run needs, neither a finished one nor one that can be resumed."""

from __future__ import annotations

from wsss_ray.artifacts.usage import Unused, find_unused, list_unfinished, list_used
from wsss_ray.config import UserError
from wsss_ray.experiments.plan import plan_run
from wsss_ray.experiments.settle import STEPS
from wsss_ray.recipe import load


def list_unused(out: str, older_than: float = 0.0) -> list[Unused]:
    """What could be removed below ``out``, the largest first, its newest file at least ``older_than`` seconds old.

    Raises UserError where an unfinished run cannot be read, since nobody knows what it needs.
    """
    used = list_used(out)
    for where in list_unfinished(out):
        try:
            plan = plan_run(load(where), out)
        except UserError as error:
            folder = where.rsplit("/", 1)[0]
            raise UserError(
                f"{folder}: an unfinished run, and what it needs is not known ({error}); remove this folder"
            ) from None
        used |= {f"{step.stage}/{step.digest}" for step in plan.steps}
    return find_unused(out, [step.stage for step in STEPS], used, older_than)
