"""One paper, one file; ``METHODS`` names them."""

from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.eps import EPSConfig

METHODS: dict[str, type[MethodConfig]] = {
    "cam": CAMConfig,
    "eps": EPSConfig,
}
"""Every localizer by its name in a recipe; adding a method is one line here."""

__all__ = ["METHODS", "MethodConfig"]
