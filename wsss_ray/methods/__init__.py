"""One paper, one file; ``METHODS`` names them."""

from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.eps import EPSConfig
from wsss_ray.methods.esol.network import Esol
from wsss_ray.methods.ktse.config import Ktse
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.methods.smaf import SMAFConfig
from wsss_ray.methods.ssss.config import Ssss
from wsss_ray.methods.wsfcn.network import Wsfcn

METHODS: dict[str, type[MethodConfig]] = {
    "cam": CAMConfig,
    "eps": EPSConfig,
    "esol": Esol,
    "ktse": Ktse,
    "l2g": L2GConfig,
    "smaf": SMAFConfig,
    "ssss": Ssss,
    "wsfcn": Wsfcn,
}
"""Every localizer by its name in a recipe; adding a method is one line here."""

__all__ = ["METHODS", "MethodConfig"]
