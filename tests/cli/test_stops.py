# SPDX-License-Identifier: Apache-2.0
"""A stop that comes where Python loses exceptions shows no traceback, and ends the command after its patience."""

import subprocess
import sys

LOST = """
import os, signal, time
from cli import stops

stops.PATIENCE = 0.5

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

with stops.stop_on_signals():
    Late()
    time.sleep(30)
"""


def test_a_lost_interrupt_ends_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert done.stderr == "wsss: ended by SIGTERM; run the same command to resume\n"
