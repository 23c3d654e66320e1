# SPDX-License-Identifier: Apache-2.0
"""Numbers that several papers' files quote."""

from __future__ import annotations

from ._rows import Table

EPS_IN_L2G: dict[str, Table] = {
    "vgg16": {
        "EPS V1": {"segmentation": 66.6, "test": 67.9},
        "EPS V2": {"segmentation": 67.0, "test": 67.3},
    },
    "resnet101": {
        "EPS V1": {"segmentation": 71.0, "test": 71.8},
        "EPS V2": {"segmentation": 70.9, "test": 70.8},
    },
}
"""EPS under DeepLab v1 and v2, as L2G's Tables 5 and 6 print it: the EPS paper was not at hand."""
