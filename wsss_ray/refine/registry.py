# SPDX-License-Identifier: Apache-2.0
"""The refiners by name: those of this package, and what installed packages add to ``wsss_ray.refiners``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsss_ray.registry import Lazy, Registry, require_settings

if TYPE_CHECKING:
    from wsss_ray.refine.base import RefinerConfig

REFINERS: Registry[type[RefinerConfig]] = Registry(
    "wsss_ray.refiners",
    "refiner",
    {
        "seeds": Lazy("wsss_ray.refine.seeds:ThresholdSeedsConfig"),
        "power": Lazy("wsss_ray.refine.seeds:PowerSeedsConfig"),
        "confident": Lazy("wsss_ray.refine.seeds:ConfidentSeedsConfig"),
        "confident_power": Lazy("wsss_ray.refine.seeds:ConfidentPowerSeedsConfig"),
        "quantile": Lazy("wsss_ray.refine.seeds:QuantileSeedsConfig"),
        "crf": Lazy("wsss_ray.refine.crf:CRFRefinerConfig"),
        "pamr": Lazy("wsss_ray.refine.pamr:PAMRConfig"),
        "par": Lazy("wsss_ray.refine.pamr:PARConfig"),
        "psa": Lazy("wsss_ray.refine.psa:PSAConfig"),
        "irn": Lazy("wsss_ray.refine.irn:IRNConfig"),
    },
    require_settings(Lazy("wsss_ray.refine.base:RefinerConfig")),
)
"""Name -> settings of the refiner."""
