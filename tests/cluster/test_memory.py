# SPDX-License-Identifier: Apache-2.0
"""Freed tensors are used again: the kernel maps their pages once. What a driver is done with goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from wsss_ray.cluster.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    torch.ones(16 << 20).mul(2).sum()
for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HELD = """
import gc, sys
from pathlib import Path
from wsss_ray.cluster.memory import give_memory_back
gc.disable()
def read_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])
class Circle:
    def __init__(self):
        self.itself, self.bytes = self, bytes(3000)
before = read_pages()
kept = []
for _ in range(20_000):
    Circle()
    kept.append(bytearray(40))
if sys.argv[1] == "given back":
    give_memory_back()
print(read_pages() - before)
"""


def ask(script: str, mode: str) -> int:
    """The number that a script prints in a process of its own."""
    told = subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked, other C libraries keep their own counsel")
def test_pages_of_freed_tensors_are_not_faulted_in_again() -> None:
    """Ten rounds over tensors of 64 MiB, after the twenty in which the heap finds its size."""
    assert 4 * ask(FAULTS, "kept") < ask(FAULTS, "as it is")


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_what_a_driver_has_done_with_goes_back() -> None:
    """60 MB of objects that hold themselves, between others that stay."""
    assert 4 * ask(HELD, "given back") < ask(HELD, "as it is")
