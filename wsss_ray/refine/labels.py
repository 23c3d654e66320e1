"""The refiners without a network, and the setting by which PSA and IRN choose the one that makes their labels.

What trains no network stands to the left of what does: it makes masks by itself, and the masks that a network of a
refiner learns from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SerializeAsAny

from wsss_ray.config import UserError
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import CRFRefinerConfig
from wsss_ray.refine.pamr import PAMRConfig, PARConfig
from wsss_ray.refine.seeds import (
    ConfidentPowerSeedsConfig,
    ConfidentSeedsConfig,
    PowerSeedsConfig,
    QuantileSeedsConfig,
    ThresholdSeedsConfig,
)
from wsss_ray.registry import Registry, require_settings

GROUP, KIND = "wsss_ray.refiners", "refiner"

WITHOUT_NETWORK: dict[str, type[RefinerConfig]] = {
    "seeds": ThresholdSeedsConfig,
    "power": PowerSeedsConfig,
    "confident": ConfidentSeedsConfig,
    "confident_power": ConfidentPowerSeedsConfig,
    "quantile": QuantileSeedsConfig,
    "crf": CRFRefinerConfig,
    "pamr": PAMRConfig,
    "par": PARConfig,
}
"""Name -> settings of the refiners of this package that train no network."""

_LABELLERS: Registry[type[RefinerConfig]] = Registry(GROUP, KIND, WITHOUT_NETWORK, require_settings(RefinerConfig))
"""These and the refiners of installed packages."""


def _read_refiner(value: object) -> object:
    """A mapping with the ``name`` of a refiner -> its settings; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise ValueError(
            f"give the 'name' of a refiner that trains no network, such as {next(iter(WITHOUT_NETWORK))!r}"
        )
    name = str(value["name"])
    # Other packages are loaded only for a name of theirs: a broken one is reported once, by REFINERS.
    if name in WITHOUT_NETWORK:
        return WITHOUT_NETWORK[name].model_validate(dict(value))
    try:
        return _LABELLERS[name].model_validate(dict(value))
    except UserError as error:
        raise ValueError(f"{error}; 'labels' takes a refiner that trains no network") from None


def _refuse_network(refiner: RefinerConfig) -> RefinerConfig:
    if refiner.trainable:
        raise ValueError(
            f"refiner {refiner.name!r} trains a network itself: give one that does not, such as 'confident'"
        )
    return refiner


LabelRefiner = Annotated[SerializeAsAny[RefinerConfig], BeforeValidator(_read_refiner), AfterValidator(_refuse_network)]
"""The settings of any refiner that trains no network, from this package or another, by ``name``."""
