"""The refiners by name: those of this package, and what installed packages add to ``wsss_ray.refiners``."""

from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.labels import GROUP, KIND, WITHOUT_NETWORK
from wsss_ray.refine.psa import PSAConfig
from wsss_ray.registry import Registry, require_settings

REFINERS: Registry[type[RefinerConfig]] = Registry(
    GROUP, KIND, {**WITHOUT_NETWORK, "psa": PSAConfig, "irn": IRNConfig}, require_settings(RefinerConfig)
)
"""Name -> settings of the refiner."""
