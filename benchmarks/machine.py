# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on, and CPU time and memory of processes as Linux counts them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "ray", "numpy", "pyarrow", "numba", "mlflow")
VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
TICKS = os.sysconf("SC_CLK_TCK")


def describe_machine() -> dict[str, str]:
    """CPU, cores, memory, system and versions, and how busy it was when asked."""
    found = {
        "CPU": read_cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def read_cpu() -> str:
    """The model of the processor, with the vector units that decide about bf16."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in lines.items()}
        units = [unit for unit in VECTOR_UNITS if unit in known.get("flags", "").split()]
        return f"{known.get('model name', platform.machine())} ({', '.join(units) or 'no AVX2'})"
    return platform.processor() or platform.machine()


def list_tree(root: int) -> set[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[int(entry.name)] = int(_read_stat(int(entry.name))[1])
    found = {root}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found


def read_cpu_seconds(processes: Iterable[int]) -> float:
    """User and system time of these processes, and of their children that have ended; the dead count nothing."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += sum(int(value) for value in _read_stat(process)[11:15]) / TICKS
    return total


def _read_stat(process: int) -> list[str]:
    """The fields of ``/proc/N/stat`` from the state on (field 3 of proc(5))."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def reset_peak() -> None:
    """Let this process's peak of memory begin now."""
    Path("/proc/self/clear_refs").write_text("5")


def read_peak_mb() -> float:
    """The peak of this process's resident memory since ``reset_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
