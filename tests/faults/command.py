# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, which is called hundreds of times; what it ended with and printed."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from wsss_ray.cli.main import main


@dataclass(frozen=True)
class Told:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def is_line(self) -> bool:
        """Whether it was refused, in one line."""
        return self.code == 2 and len(self.err.strip().splitlines()) == 1 and self.err.startswith("wsss: ")


def call(*args: str, cwd: Path) -> Told:
    """A command to its end in the folder ``cwd``; code -1, and the traceback, where an exception came out of it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["wsss", *args]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            code = -1
            traceback.print_exc()
    return Told(code, out.getvalue(), err.getvalue())
