# SPDX-License-Identifier: Apache-2.0
"""The numbers that the ESOL paper prints."""

from __future__ import annotations

from wsss_ray.refine.psa import LABELS_NOTE

from ._rows import Table

INFERRED = "what learns without the offsets is not stated; here the weights of the second convolution"
NO_EXPANSION = "without offsets to learn there is no expansion"
WHICH_CRF = "CRF not stated; here PSA's, with background (1 - max)^4"
PUBLISHED: dict[str, Table] = {
    "table1": {
        "PSA, PSA": {"seeds": 48.0, "masks": 61.0},
        "Mixup-CAM, PSA": {"seeds": 50.1, "masks": 61.9},
        "CDA, PSA": {"seeds": 48.9, "masks": 63.3, "note": "seeds with CRF 57.5"},
        "SC-CAM, PSA": {"seeds": 50.9, "masks": 63.4, "note": "seeds with CRF 55.3"},
        "MBMNet, IRN": {"seeds": 50.2, "masks": 66.8},
        "BES, IRN": {"seeds": 50.4, "masks": 67.2},
        "CONTA, IRN": {"seeds": 48.8, "masks": 67.9},
        "CDA, IRN": {"seeds": 50.8, "masks": 67.7, "note": "seeds with CRF 58.4"},
        "IRN, CRF": {"seeds": 48.8, "masks": 53.7, "note": WHICH_CRF},
        "IRN, IRN": {"seeds": 48.8, "masks": 66.3, "note": "48.4 in Table 6 and the text"},
        "ESOL, CRF": {"seeds": 53.6, "masks": 61.4, "note": WHICH_CRF},
        "ESOL, PSA": {"seeds": 53.6, "masks": 66.4, "note": LABELS_NOTE},
        "ESOL, IRN": {"seeds": 53.6, "masks": 68.7},
    },
    "table1_coco": {
        "CONTA": {"seeds": 28.7, "masks": 35.2, "note": "as reported by CONTA"},
        "IRN": {"seeds": 33.5, "masks": 42.9, "note": "run by ESOL's authors"},
        "ESOL": {"seeds": 35.7, "masks": 44.6},
    },
    "table2": {
        "ADL, VGG-16": {"segmentation": 30.8},
        "CONTA, ResNet-50": {"segmentation": 33.4},
        "SEAM, ResNet-38": {"segmentation": 32.8},
        "IRN, ResNet-101": {"segmentation": 41.4},
        "ESOL, ResNet-101": {"segmentation": 42.6},
    },
    "table3": {
        "BoxSup": {"supervision": "boxes", "segmentation": 62.0, "test": 64.6},
        "Song et al.": {"supervision": "boxes", "segmentation": 70.2},
        "BBAM": {"supervision": "boxes", "segmentation": 73.7, "test": 73.7},
        "IRN": {"supervision": "I", "segmentation": 63.5, "test": 64.8},
        "SEAM": {"supervision": "I", "segmentation": 64.5, "test": 65.7},
        "BES": {"supervision": "I", "segmentation": 65.7, "test": 66.6},
        "SC-CAM": {"supervision": "I", "segmentation": 66.1, "test": 65.9},
        "RRM": {"supervision": "I", "segmentation": 66.3, "test": 66.5},
        "CONTA": {"supervision": "I", "segmentation": 66.1, "test": 66.7},
        "ESOL": {
            "segmentation": 69.9,
            "test": 69.3,
            "note": "whether DeepLab starts from COCO's weights, as deeplab-pytorch does, is not stated",
        },
    },
    "table4": {
        "SeeNet": {"supervision": "S", "segmentation": 63.1, "test": 62.8},
        "FickleNet": {"supervision": "S", "segmentation": 64.9, "test": 65.3},
        "CIAN": {"supervision": "S", "segmentation": 64.3, "test": 65.3},
        "Zhang et al.": {"supervision": "S", "segmentation": 66.6, "test": 66.7},
        "Fan et al.": {"supervision": "S", "segmentation": 67.2, "test": 66.7},
        "Sun et al.": {"supervision": "S", "segmentation": 66.2, "test": 66.9},
        "LIID": {"supervision": "S", "segmentation": 66.5, "test": 67.5},
        "Li et al.": {"supervision": "S", "segmentation": 68.2, "test": 68.5},
        "Yao et al.": {"supervision": "S", "segmentation": 68.3, "test": 68.5},
        "ESOL": {
            "supervision": "S",
            "segmentation": 71.1,
            "test": 70.4,
            "note": "not run: how masks and saliency maps are combined is not stated",
        },
    },
    "table5": {"ESOL": {"note": "published: 10 hours on one GPU of 12 GB; AdvCAM 106, RIB 27"}},
    "table6": {
        "Baseline": {"seeds": 48.4, "note": "48.8 in Table 1"},
        "w/o (DT_e + FL)": {"seeds": 48.5, "note": NO_EXPANSION},
        "w/o DT_e": {"seeds": 49.1, "note": NO_EXPANSION},
        "w/o FL": {"seeds": 51.8},
        "w/o (DT_s + L_area)": {"seeds": 50.1, "note": INFERRED},
        "w/o DT_s": {"seeds": 50.9, "note": INFERRED},
        "w/o L_area": {"seeds": 52.8},
        "Expansion + Shrinkage": {"seeds": 53.6},
    },
}
"""Study -> its table; the figures' values are not in the paper's text."""
