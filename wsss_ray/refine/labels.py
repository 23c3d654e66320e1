# SPDX-License-Identifier: Apache-2.0
"""The setting by which PSA and IRN choose the refiner that makes the masks their network learns from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SerializeAsAny

from wsss_ray.config import UserError
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.registry import REFINERS


def _read_refiner(value: object) -> object:
    """A mapping with the ``name`` of a refiner -> its settings; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise ValueError(f"give the 'name' of a refiner that trains no network, such as {next(iter(REFINERS))!r}")
    try:
        return REFINERS[str(value["name"])].model_validate(dict(value))
    except UserError as error:
        raise ValueError(f"{error}; 'labels' takes a refiner that trains no network") from None


def _refuse_network(refiner: RefinerConfig) -> RefinerConfig:
    if refiner.trainable:
        raise ValueError(
            f"refiner {refiner.name!r} trains a network itself: 'labels' takes a refiner that trains no network, such "
            "as 'confident'"
        )
    return refiner


LabelRefiner = Annotated[SerializeAsAny[RefinerConfig], BeforeValidator(_read_refiner), AfterValidator(_refuse_network)]
"""The settings of any refiner that trains no network, from this package or another, by ``name``."""
