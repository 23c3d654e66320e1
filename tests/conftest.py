"""Shared fixtures: where the shared test data is, golden arrays, and one torch thread for repeatable numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_root() -> Path:
    """The folder of shared test data: ``WSSS_SHARED``, by default ``../shared`` from the project's root."""
    return Path(os.environ.get("WSSS_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder, or a skip that says what is missing."""
    root = shared_root()
    if not root.is_dir():
        pytest.skip(f"no shared test data at {root}: set WSSS_SHARED to the folder that holds golden/ and data/")
    return root


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """Loader of one golden file by name; skips with a reason where it is absent."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = shared / "golden" / name
        if not path.is_file():
            pytest.skip(f"no golden file {path}")
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load
