# SPDX-License-Identifier: Apache-2.0
"""Freed tensors are used again: the kernel maps their pages once."""

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


def faults(mode: str) -> int:
    """Page faults of ten rounds over tensors of 64 MiB, after the twenty in which the heap finds its size."""
    told = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked, other C libraries keep their own counsel")
def test_pages_of_freed_tensors_are_not_faulted_in_again() -> None:
    assert 4 * faults("kept") < faults("as it is")
