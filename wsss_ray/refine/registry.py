"""The refiners by name."""

from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import CrfRefiner
from wsss_ray.refine.irn import Irn
from wsss_ray.refine.pamr import PamrRefiner, ParRefiner
from wsss_ray.refine.psa import Psa
from wsss_ray.refine.seeds import ConfidentPowerSeeds, ConfidentSeeds, PowerSeeds, ThresholdSeeds

REFINERS: dict[str, type[RefinerConfig]] = {
    "seeds": ThresholdSeeds,
    "power": PowerSeeds,
    "confident": ConfidentSeeds,
    "confident_power": ConfidentPowerSeeds,
    "crf": CrfRefiner,
    "pamr": PamrRefiner,
    "par": ParRefiner,
    "psa": Psa,
    "irn": Irn,
}
"""Name -> settings of the refiner."""
