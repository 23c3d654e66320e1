# SPDX-License-Identifier: Apache-2.0
"""A lost Ray ends the command in one line, though what the main thread is in swallows the interrupt."""

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import contextlib, time
from wsss_ray.cluster import guard

guard.LOOK_SECONDS, guard.AGAIN_SECONDS, guard.END_SECONDS = 0.1, 0.3, 1.2
guard._mute_dumps = contextlib.nullcontext  # which imports Ray
guard._open_guard = lambda address: guard.Guard("nothing.sock", "127.0.0.1:1", None)

def swallow(times):
    for _ in range(times):
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(30)

try:
    with guard.guard_cluster(None):
        swallow({times})
        time.sleep(30)
except guard.ClusterLostError as error:
    print("said:", error)
time.sleep(1)
"""
LOST = "Ray on this machine has ended (it was killed, or memory ran out); run the same command to resume"


@pytest.mark.parametrize(
    ("times", "code", "out", "err"),
    [(0, 0, f"said: {LOST}\n", ""), (2, 0, f"said: {LOST}\n", ""), (100, 2, "", f"wsss: {LOST}\n")],
)
def test_it_asks_again_and_ends_the_process_at_last(tmp_path: Path, times: int, code: int, out: str, err: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(times=times)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
