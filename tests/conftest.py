"""Shared fixtures: where the shared test data is, golden arrays, a local Ray, and a recipe of a few seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.golden_files import NOT_RUN, GoldenFile
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks back at which golden arrays were read runs last."""
    items.sort(key=lambda item: item.path.name == "test_golden_coverage.py")


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember the tests of golden files that this session leaves out."""
    NOT_RUN.update(item.nodeid for item in items if "golden" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember the tests of golden files that were skipped."""
    report = yield
    if report.skipped and "golden" in getattr(item, "fixturenames", ()):
        NOT_RUN.add(item.nodeid)
    return report


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
