"""One paper, one file or folder; ``METHODS`` names them."""

from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.eps import EPSConfig
from wsss_ray.methods.esol.network import ESOLConfig
from wsss_ray.methods.ktse.config import KTSEConfig
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.methods.smaf import SMAFConfig
from wsss_ray.methods.ssss.config import SSSSConfig
from wsss_ray.methods.wsfcn.config import WSFCNConfig
from wsss_ray.registry import Registry, require_settings

METHODS: Registry[type[MethodConfig]] = Registry(
    "wsss_ray.methods",
    "method",
    {
        "cam": CAMConfig,
        "eps": EPSConfig,
        "esol": ESOLConfig,
        "ktse": KTSEConfig,
        "l2g": L2GConfig,
        "smaf": SMAFConfig,
        "ssss": SSSSConfig,
        "wsfcn": WSFCNConfig,
    },
    require_settings(MethodConfig),
)
"""Every localizer by its name in a recipe. A method is one line here, or an entry point of another package."""

__all__ = ["METHODS", "MethodConfig"]
