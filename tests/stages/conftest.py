"""A local Ray for the tests of a file, and a recipe that walks the whole road in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from wsss_ray.studies import resolve

from wsss_ray.recipe import Recipe

TINY = (
    "data.toy.num_train=24",
    "data.toy.num_val=8",
    "data.toy.size=64",
    "train.epochs=2",
    "train.batch_size=8",
    "train.augment.crop=56",
    "net.options={width: 16}",
    "localize.scales=[1.0]",
    "segment.train.epochs=1",
    "segment.train.augment.crop=56",
    "segment.net.options={width: 16}",
    "predict.scales=[1.0]",
)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray that the steps join; gone at the end of the file, since sweeps start their own."""
    from wsss_ray.stages.cluster import cluster

    with cluster():
        yield


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """CAM on 24 generated pictures of 64 pixels, every step included."""
    return resolve("cam", settings=TINY)
