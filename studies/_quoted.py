"""Numbers of other methods as the papers print them: mIoU in per cent on VOC 2012 val and test."""

from __future__ import annotations

from wsss_ray.experiments.study import Metric, Row


def quoted(values: dict[str, float], metric: Metric = "segmentation", note: str = "") -> tuple[Row, ...]:
    """Rows that are not run."""
    return tuple(Row(name, None, {metric: value}, note) for name, value in values.items())


def column(table: dict[str, tuple[float, float]], index: int) -> tuple[Row, ...]:
    """One column of a table below."""
    return quoted({name: values[index] for name, values in table.items()})


L2G_TABLE5: dict[str, tuple[float, float]] = {
    "AffinityNet V1": (58.4, 60.5),
    "MCOF V1": (56.2, 57.6),
    "DSRG V2": (59.0, 60.4),
    "SeeNet V1": (61.1, 60.7),
    "FickleNet V2": (61.2, 61.9),
    "OAA+ V1": (63.1, 62.8),
    "BES V1": (60.1, 61.1),
    "MCIS V1": (63.5, 63.6),
    "Multi-Est. V1": (64.6, 64.2),
    "ICD V1": (64.0, 63.9),
    "ECS-Net V1": (62.1, 63.4),
    "DRS V1": (63.5, 64.5),
    "Group-WSSS V2": (63.3, 63.6),
    "OAA+++ V1": (63.7, 63.2),
    "NSROM V2": (65.5, 65.3),
}
"""Table 5: val, test."""

L2G_TABLE6: dict[str, tuple[float, float]] = {
    "AffinityNet V1": (61.7, 63.7),
    "MCOF V1": (60.3, 61.2),
    "DSRG V2": (61.4, 63.2),
    "SeeNet V1": (63.1, 62.8),
    "IRNet V1": (63.5, 64.8),
    "FickleNet V2": (64.9, 65.3),
    "OAA+ V1": (65.2, 66.4),
    "SSDD V1": (66.1, 66.8),
    "SEAM V2": (64.5, 65.7),
    "SC-CAM V2": (66.1, 65.9),
    "ICD V1": (67.8, 68.0),
    "BES V2": (65.7, 66.6),
    "MCIS V1": (66.2, 66.9),
    "Multi-Est. V1": (67.2, 66.7),
    "LIID V2": (66.5, 67.5),
    "DRS V2": (71.2, 71.4),
    "Group-WSSS V2": (68.2, 68.5),
    "ECS-Net V1": (66.6, 67.6),
    "PMM PSP": (68.5, 69.0),
    "CDA V2": (66.1, 66.8),
    "CGNet V1": (68.4, 68.2),
    "AuxSegNet V1": (69.0, 68.6),
    "AdvCAM V2": (68.1, 68.0),
    "NSROM V2": (70.4, 70.2),
    "EDAM V1": (70.9, 70.6),
}
"""Table 6: val, test."""

L2G_THIRD_PARTY: dict[str, dict[str, float]] = {
    "vgg16": {
        "L2G V1, third party, no CRF": 65.0,
        "L2G V1, third party": 68.5,
        "L2G V2, third party, no CRF": 66.2,
        "L2G V2, third party": 69.3,
    },
    "resnet101": {
        "L2G V1, third party, no CRF": 68.5,
        "L2G V1, third party": 70.4,
        "L2G V2, third party, no CRF": 68.9,
        "L2G V2, third party": 71.3,
        "L2G V2, released checkpoint, third party, about": 66.0,
    },
}
"""What users of the released code found on val."""

SMAF_TABLE1: dict[str, tuple[float, float]] = {
    "PSA, ResNet-38": (61.7, 63.2),
    "IRN, ResNet-50": (63.5, 64.8),
    "ICD, saliency": (64.1, 64.3),
    "SEAM, ResNet-38": (64.5, 65.7),
    "MCIS": (66.2, 66.9),
    "EDAM, saliency": (70.9, 70.6),
    "AdvCAM": (68.1, 68.0),
    "SIPE": (68.8, 69.7),
}
"""SMAF Table 1: val, test, on ResNet-101 unless said."""

SMAF_TABLE2: dict[str, tuple[float, float]] = {
    "ICD": (59.9, 62.2),
    "SEAM": (55.4, 56.8),
    "EDAM": (52.8, 58.2),
    "SIPE": (58.6, 64.7),
    "PPC with EPS": (70.5, 73.3),
}
"""SMAF Table 2, VOC train: seeds, and with a CRF."""

ESOL_TABLE3: dict[str, dict[str, tuple[float, float | None]]] = {
    "boxes": {"BoxSup": (62.0, 64.6), "Song et al.": (70.2, None), "BBAM": (73.7, 73.7)},
    "I": {
        "IRN": (63.5, 64.8),
        "SEAM": (64.5, 65.7),
        "BES": (65.7, 66.6),
        "SC-CAM": (66.1, 65.9),
        "RRM": (66.3, 66.5),
        "CONTA": (66.1, 66.7),
    },
}
"""ESOL Table 3 by supervision: val, test, on ResNets."""

ESOL_TABLE4: dict[str, dict[str, tuple[float, float | None]]] = {
    "I+S": {
        "SeeNet": (63.1, 62.8),
        "FickleNet": (64.9, 65.3),
        "CIAN": (64.3, 65.3),
        "Zhang et al.": (66.6, 66.7),
        "Fan et al.": (67.2, 66.7),
        "Sun et al.": (66.2, 66.9),
        "LIID": (66.5, 67.5),
        "Li et al.": (68.2, 68.5),
        "Yao et al.": (68.3, 68.5),
    },
}
"""ESOL Table 4: val, test, with saliency."""


def supervised(table: dict[str, dict[str, tuple[float, float | None]]]) -> tuple[Row, ...]:
    """Rows of a table above: val, with supervision and test in the note."""
    return tuple(
        Row(name, None, {"segmentation": val}, f"supervision {kind}" + (f"; test {test}" if test else ""))
        for kind, values in table.items()
        for name, (val, test) in values.items()
    )


KTSE_TABLE3 = """DRS, I+S, 71.2, 71.4
NSROM, I+S, 70.4, 70.2
EPS, I+S, 71.0, 71.8
AuxSeg, I+S, 69.0, 68.6
PPC with saliency, I+S, 72.6, 73.6
RCA, I+S, 72.2, 72.8
L2G, I+S, 72.1, 71.7
W-OOD, I+O, 69.8, 69.9
CLIP-ES, I+L, 71.1, 71.4
LPCAM, I+S, 71.8, 72.1
AdvCAM, I, 68.1, 68.0
CDA, I, 66.1, 66.8
OC-CSE, I, 68.4, 68.2
RIB, I, 68.3, 68.6
AMR, I, 68.8, 69.1
MCTformer, I, 71.9, 71.6
AFA, I, 66.0, 66.3
SIPE, I, 68.8, 69.7
ReCAM, I, 68.5, 68.4
PPC, I, 67.7, 67.4
ViT-PCM, I, 70.3, 70.9
S-BCE, I, 70.0, 71.3
AEFT, I, 70.9, 71.7
ToCo, I, 69.8, 70.5
OCR, I, 72.7, 72.0
ACR, I, 71.9, 71.9
BECO, I, 72.1, 71.8
FPR, I, 70.3, 70.1
MARS, I, 70.3, 71.2"""
"""Table 3, one line a method: supervision, val, test."""
