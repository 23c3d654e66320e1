# SPDX-License-Identifier: Apache-2.0
"""What is said of a run that failed while others go on: in a study's row and in a sweep's trial."""

from __future__ import annotations

import traceback

from wsss_ray.config import UserError

LONGEST = 400
"""Characters of a reason."""


def describe_failure(error: Exception) -> tuple[str, str]:
    """(one line for a table, traceback of what is not the user's to fix; empty where it is).

    Of an error of several lines the first says which step it was and the last what happened in its worker.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if isinstance(error, UserError):
        return lines[0][:LONGEST], ""
    said = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return f"{type(error).__name__}: {said}"[:LONGEST], "".join(traceback.format_exception(error))
