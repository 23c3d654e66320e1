# SPDX-License-Identifier: Apache-2.0
"""Messages in notebooks: plain lines below the cell, where nothing else was asked of ``logging``."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


class CellHandler(logging.Handler):
    """Messages below the cell that runs."""

    def emit(self, record: logging.LogRecord) -> None:
        """One message, as it is."""
        print(record.getMessage(), file=sys.stdout, flush=True)


@contextlib.contextmanager
def show_in_cell() -> Iterator[None]:
    """Show what the library says, progress included, below a notebook's cell.

    Elsewhere, and where ``logging`` was set up, messages go where it sends them.
    """
    log = logging.getLogger("wsss_ray")
    if not _is_notebook() or log.hasHandlers():
        yield
        return
    handler, level = CellHandler(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    shell = sys.modules.get("IPython")
    return kernel is not None and shell is not None and isinstance(shell.get_ipython(), kernel.ZMQInteractiveShell)
