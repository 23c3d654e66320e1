# SPDX-License-Identifier: Apache-2.0
"""The numbers that the L2G paper prints, and those that users of its code found."""

from __future__ import annotations

from ._quoted import EPS_IN_L2G
from ._rows import Table

FIGURE = "value only in the figure"
UNSTATED = "DeepLab version of the val column not stated"
USERS = "issues 20 and 36 of the released code"
USERS_SEEDS = "issue 36 of the released code, threshold 0.25"

PUBLISHED: dict[str, Table] = {
    "table1": {
        "CAM": {"seeds": 47.1, "segmentation": 47.5, "note": UNSTATED},
        "CAM + sliding window": {"seeds": 46.1, "segmentation": 47.2, "note": UNSTATED},
        "Local": {"seeds": 48.5, "segmentation": 50.0, "note": UNSTATED},
        "L2G": {
            "seeds": 56.8,
            "segmentation": 54.9,
            "note": "the released script without saliency cannot run; settings are those with saliency",
        },
    },
    "table2": {
        "Local": {"seeds": 48.5, "segmentation": 50.0},
        "L2G": {"seeds": 56.8, "segmentation": 54.9},
        "Local + Shape": {
            "seeds": 68.0,
            "segmentation": 69.9,
            "note": "how the local network is given shape is not stated; here it is its own teacher",
        },
        "L2G + Shape": {"seeds": 70.3, "segmentation": 72.1},
        "L2G released, third party": {"seeds": 69.93, "note": USERS_SEEDS},
    },
    "sampling": {
        "random": {
            "seeds": 68.8,
            "note": "settings not stated; below the 70.3 of four views, although more views are said to help",
        },
        "uniform": {"seeds": 68.5},
    },
    "components": {
        "L2G": {"seeds": 70.3, "segmentation": 72.1},
        "global classification loss": {"seeds": 53.8},
        "shared backbone": {"seeds": 69.2, "segmentation": 70.9},
    },
    "table3": {
        "CAM": {"seeds": 48.0},
        "SC-CAM": {"seeds": 50.9},
        "SEAM": {"seeds": 55.4},
        "AdvCAM": {"seeds": 55.6},
        "L2G": {"seeds": 56.2},
    },
    "table4": {
        "SGAN": {"seeds": 62.8},
        "EPS": {"seeds": 69.4},
        "L2G": {"seeds": 71.9},
        "L2G released, third party": {"seeds": 71.74, "note": USERS_SEEDS},
    },
    "table5": {
        "AffinityNet V1": {"segmentation": 58.4, "test": 60.5},
        "MCOF V1": {"segmentation": 56.2, "test": 57.6},
        "DSRG V2": {"segmentation": 59.0, "test": 60.4},
        "SeeNet V1": {"segmentation": 61.1, "test": 60.7},
        "FickleNet V2": {"segmentation": 61.2, "test": 61.9},
        "OAA+ V1": {"segmentation": 63.1, "test": 62.8},
        "BES V1": {"segmentation": 60.1, "test": 61.1},
        "MCIS V1": {"segmentation": 63.5, "test": 63.6},
        "Multi-Est. V1": {"segmentation": 64.6, "test": 64.2},
        "ICD V1": {"segmentation": 64.0, "test": 63.9},
        "ECS-Net V1": {"segmentation": 62.1, "test": 63.4},
        "DRS V1": {"segmentation": 63.5, "test": 64.5},
        "Group-WSSS V2": {"segmentation": 63.3, "test": 63.6},
        "OAA+++ V1": {"segmentation": 63.7, "test": 63.2},
        "NSROM V2": {"segmentation": 65.5, "test": 65.3},
        **EPS_IN_L2G["vgg16"],
        "L2G V1": {"segmentation": 68.1, "test": 68.8},
        "L2G V2": {"segmentation": 68.5, "test": 68.9},
        "L2G V1, third party, no CRF": {"segmentation": 65.0, "note": USERS},
        "L2G V1, third party": {"segmentation": 68.5, "note": USERS},
        "L2G V2, third party, no CRF": {"segmentation": 66.2, "note": USERS},
        "L2G V2, third party": {"segmentation": 69.3, "note": USERS},
    },
    "table6": {
        "AffinityNet V1": {"segmentation": 61.7, "test": 63.7},
        "MCOF V1": {"segmentation": 60.3, "test": 61.2},
        "DSRG V2": {"segmentation": 61.4, "test": 63.2},
        "SeeNet V1": {"segmentation": 63.1, "test": 62.8},
        "IRNet V1": {"segmentation": 63.5, "test": 64.8},
        "FickleNet V2": {"segmentation": 64.9, "test": 65.3},
        "OAA+ V1": {"segmentation": 65.2, "test": 66.4},
        "SSDD V1": {"segmentation": 66.1, "test": 66.8},
        "SEAM V2": {"segmentation": 64.5, "test": 65.7},
        "SC-CAM V2": {"segmentation": 66.1, "test": 65.9},
        "ICD V1": {"segmentation": 67.8, "test": 68.0},
        "BES V2": {"segmentation": 65.7, "test": 66.6},
        "MCIS V1": {"segmentation": 66.2, "test": 66.9},
        "Multi-Est. V1": {"segmentation": 67.2, "test": 66.7},
        "LIID V2": {"segmentation": 66.5, "test": 67.5},
        "DRS V2": {"segmentation": 71.2, "test": 71.4},
        "Group-WSSS V2": {"segmentation": 68.2, "test": 68.5},
        "ECS-Net V1": {"segmentation": 66.6, "test": 67.6},
        "PMM PSP": {"segmentation": 68.5, "test": 69.0},
        "CDA V2": {"segmentation": 66.1, "test": 66.8},
        "CGNet V1": {"segmentation": 68.4, "test": 68.2},
        "AuxSegNet V1": {"segmentation": 69.0, "test": 68.6},
        "AdvCAM V2": {"segmentation": 68.1, "test": 68.0},
        "NSROM V2": {"segmentation": 70.4, "test": 70.2},
        "EDAM V1": {"segmentation": 70.9, "test": 70.6},
        **EPS_IN_L2G["resnet101"],
        "L2G V1": {"segmentation": 72.0, "test": 73.0},
        "L2G V2": {"segmentation": 72.1, "test": 71.7},
        "L2G V1, third party, no CRF": {"segmentation": 68.5, "note": USERS},
        "L2G V1, third party": {"segmentation": 70.4, "note": USERS},
        "L2G V2, third party, no CRF": {"segmentation": 68.9, "note": USERS},
        "L2G V2, third party": {"segmentation": 71.3, "note": USERS},
        "L2G V2, released checkpoint, third party, about": {"segmentation": 66.0, "note": USERS},
    },
    "table7": {
        "SEC": {"segmentation": 22.4},
        "DSRG": {"segmentation": 26.0},
        "ADL": {"segmentation": 30.8},
        "EPS, VGG-16": {"seeds": 37.2, "segmentation": 35.7},
        "L2G, VGG-16": {"seeds": 43.4, "segmentation": 42.7},
        "L2G, ResNet-101": {"segmentation": 44.2},
        "L2G released, third party": {"seeds": 40.0, "note": "issue 43 of the released code, approximate"},
    },
}
"""Study -> its table; ``table7`` has the seeds of Sec. 4.3 too."""
