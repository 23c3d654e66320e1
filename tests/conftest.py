# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: where the shared test data is, golden arrays, a local Ray, and a recipe of a few seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.golden_coverage import GoldenCoverage
from tests.golden_files import GoldenFile
from wsss_ray.recipe import Recipe
from wsss_ray.studies import resolve

TINY = (
    "data.toy.num_train=24",
    "data.toy.num_val=8",
    "data.toy.size=64",
    "train.epochs=2",
    "train.batch_size=8",
    "train.augment.crop=56",
    "net.options={width: 16}",
    "net.weights=null",
    "localize.scales=[1.0]",
    "segment.train.epochs=1",
    "segment.train.augment.crop=56",
    "segment.net.options={width: 16}",
    "segment.net.weights=null",
    "predict.scales=[1.0]",
)

ROOT = Path(__file__).resolve().parent.parent

LONGEST = (
    "experiments/test_run.py",
    "experiments/test_sweep_run.py",
    "experiments/test_study_run.py",
    "test_notebooks.py",
    "faults/test_matrix.py",
    "faults/test_damage.py",
    "faults/test_saliency.py",
    "faults/test_drained_training.py",
    "faults/test_tracking_server.py",
)
"""Files that take minutes, the longest first: with several processes, none of them is left for the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Watch which golden arrays are read, and let processes of pytest-xdist share the cores."""
    config.pluginmanager.register(GoldenCoverage(ROOT / "tests", shared_root() / "golden"), "golden coverage")
    # Ray's processes give way to all others by default: beside other tests they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others keep their order."""
    ranks = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    if gone := [path for path in ranks if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names {gone[0]}, which is not there")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


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
def golden(shared: Path) -> Callable[[str], GoldenFile]:
    """Loader of one golden file by name; skips with a reason where it is absent."""

    def load(name: str) -> GoldenFile:
        path = shared / "golden" / name
        if not path.is_file():
            pytest.skip(f"no golden file {path}")
        return GoldenFile(path)

    return load


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray that the steps join; gone at the end of the file, since sweeps start their own."""
    from wsss_ray.cluster.join import join_cluster

    with join_cluster():
        yield


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """CAM on 24 generated images of 64 pixels, every step included."""
    return resolve("cam", settings=TINY)
