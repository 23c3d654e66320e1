"""The refiner that makes a refiner network's training labels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from wsss_ray.refine.base import RefinerConfig


def read_labels(value: object) -> object:
    """A mapping with the ``name`` of any registered refiner -> its settings; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    registry: dict[str, type[RefinerConfig]] = import_module("wsss_ray.refine.registry").REFINERS
    name = value.get("name")
    if name not in registry:
        raise ValueError(f"no refiner {name!r} for 'labels'; known: {', '.join(registry)}")
    return registry[name].model_validate(dict(value))
