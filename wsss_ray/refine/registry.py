"""The refiners by name."""

from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.pamr import PAMRConfig, PARConfig
from wsss_ray.refine.psa import PSAConfig
from wsss_ray.refine.seeds import (
    ConfidentPowerSeedsConfig,
    ConfidentSeedsConfig,
    PowerSeedsConfig,
    ThresholdSeedsConfig,
)

REFINERS: dict[str, type[RefinerConfig]] = {
    "seeds": ThresholdSeedsConfig,
    "power": PowerSeedsConfig,
    "confident": ConfidentSeedsConfig,
    "confident_power": ConfidentPowerSeedsConfig,
    "crf": CRFRefinerConfig,
    "pamr": PAMRConfig,
    "par": PARConfig,
    "psa": PSAConfig,
    "irn": IRNConfig,
}
"""Name -> settings of the refiner."""
