# SPDX-License-Identifier: Apache-2.0
"""How kernels are compiled with numba, and where the compiled code is kept between processes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as numba_config

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
FAST = {"contract", "nsz", "arcp", "reassoc", "nnan", "ninf"}
"""What sums of the mean field may do that IEEE does not allow; the lattice's own numbers never do it."""


def compile_kernel(fast: bool = False) -> Callable[[Kernel], Kernel]:
    """Decorator: compiled at the first call of each signature, free of Python's lock, and cached on disk."""

    def wrap(function: Kernel) -> Kernel:
        with _cache_in(find_cache_folder()):
            kernel: Kernel = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST if fast else False)(
                function
            )
            return kernel

    return wrap


def inline_kernel(function: Kernel) -> Kernel:
    """Decorator: compiled into the kernels that call it."""
    kernel: Kernel = numba.njit(fastmath=FAST, error_model="numpy", inline="always")(function)
    return kernel


@lru_cache
def find_cache_folder() -> str:
    """A folder that can be written: numba's own setting, else the user's cache, else one for temporary files.

    Its name holds a digest of these sources: numba itself does not see that a kernel called from another file changed.
    """
    if numba_config.CACHE_DIR:
        return str(numba_config.CACHE_DIR)
    sources = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    name = f"crf-{sources.hexdigest()[:16]}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (Path(home) / "wsss-ray" / name, Path(tempfile.gettempdir()) / f"wsss-ray-{_read_user()}" / name):
        if _is_own_writable(folder):
            return str(folder)
    return tempfile.mkdtemp(prefix="wsss-ray-")


def _read_user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _is_own_writable(folder: Path) -> bool:
    """Whether files can be made in it; code that somebody else put there is never loaded."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Kernels declared inside keep their code in ``folder``; other users of numba in this process keep their own."""
    before = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = folder
    try:
        yield
    finally:
        numba_config.CACHE_DIR = before
