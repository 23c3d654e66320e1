# SPDX-License-Identifier: Apache-2.0
"""One paper, one file or folder; ``METHODS`` names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsss_ray.registry import Lazy, Registry, require_settings

if TYPE_CHECKING:
    from wsss_ray.methods.base import MethodConfig

METHODS: Registry[type[MethodConfig]] = Registry(
    "wsss_ray.methods",
    "method",
    {
        "cam": Lazy("wsss_ray.methods.cam:CAMConfig"),
        "eps": Lazy("wsss_ray.methods.eps:EPSConfig"),
        "esol": Lazy("wsss_ray.methods.esol.network:ESOLConfig"),
        "ktse": Lazy("wsss_ray.methods.ktse.config:KTSEConfig"),
        "l2g": Lazy("wsss_ray.methods.l2g.network:L2GConfig"),
        "smaf": Lazy("wsss_ray.methods.smaf:SMAFConfig"),
        "ssss": Lazy("wsss_ray.methods.ssss.config:SSSSConfig"),
        "wsfcn": Lazy("wsss_ray.methods.wsfcn.config:WSFCNConfig"),
    },
    require_settings(Lazy("wsss_ray.methods.base:MethodConfig")),
)
"""Every localizer by its name in a recipe. A method is one line here, or an entry point of another package."""
