# SPDX-License-Identifier: Apache-2.0
"""CAM, EPS, SMAF and L2G on ResNet-38, from an image to fused maps and labels, against the released scripts."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.golden_rules import fill_resnet38_set_a, set_a
from wsss_ray.contracts import FusionRule
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.eps import EPSConfig
from wsss_ray.methods.l2g.network import L2GConfig
from wsss_ray.methods.smaf import SMAFConfig, make_student_maps
from wsss_ray.nets import build_backbone

Golden = Callable[[str], dict[str, np.ndarray]]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COCO = ((0.471, 0.448, 0.408), (0.234, 0.239, 0.242))
HEADS = {
    "cls": {"head.weight": ("cls/fc8.weight", 4)},
    "eps": {"head.classifier.weight": ("eps/fc8.weight", 8)},
    "smaf": {
        "base.head.reduce.weight": ("smaf/cov_feat.weight", 2),
        "base.head.classifier.weight": ("smaf/fc8.weight", 6),
    },
    "l2g": {
        "head.classifier.weight": ("l2g/fc8.weight", 4),
        "head.correlation.project.0.weight": ("l2g/f8_3.weight", 1),
        "head.correlation.project.1.weight": ("l2g/f8_4.weight", 1),
        "head.correlation.embed.weight": ("l2g/f9.weight", 2),
    },
}
"""Parameter of ours -> the name its golden weight is made from, and its gain."""


@lru_cache(maxsize=1)
def trunk(salt: str) -> nn.Module:
    """ResNet-38 with rule-made weights, made once for all files of a salt."""
    backbone = build_backbone("resnet38")
    fill_resnet38_set_a(backbone, salt)
    return backbone.eval()


def localizer(kind: str, arrays: dict[str, np.ndarray]) -> tuple[nn.Module, MethodConfig]:
    """The method with the file's weights. L2G without its local network: the global one is all that inference uses."""
    salt, num_classes = str(arrays["salt"]), len(arrays["label"])
    backbone: Any = trunk(salt)
    config: MethodConfig
    if kind == "cls":
        config = CAMConfig()
    elif kind == "eps":
        config = EPSConfig()
    elif kind == "smaf":
        config = SMAFConfig(profile="released")
    else:
        config = L2GConfig(profile="released", shared=True)
    base = EPSConfig(bottleneck=128).build(backbone, num_classes) if kind == "smaf" else None
    model = config.build(backbone, num_classes, base)
    with torch.no_grad():
        for name, (key, gain) in HEADS[kind].items():
            parameter = model.get_parameter(name)
            parameter.copy_(torch.from_numpy(set_a(key, parameter.shape, salt, "weight", gain)))
            stored = key.split("/")[1]
            assert np.allclose(parameter.flatten()[:8], arrays[f"first8_{stored}"], atol=1e-6), key
    return model.eval(), config


def passes(arrays: dict[str, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]) -> list[Tensor]:
    """One (2, 3, h, w) pair of image and mirrored image per scale; PIL bicubic on the original."""
    image = Image.fromarray(arrays["image"])
    pairs = []
    for scale in arrays["scales"].tolist():
        size = (round(image.width * scale), round(image.height * scale))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
        tensor = torch.from_numpy((pixels - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
        pairs.append(torch.cat([tensor, tensor.flip(3)]))
    return pairs


def fuse(rule: FusionRule, planes: list[Tensor], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A fusion rule in plain words: (before normalising, fused), (P, H, W) each.

    ``planes`` are (P, h, w) maps in turn of an image and of its mirror image, scale by scale.
    """
    assert rule.rectify in ("none", "before", "after")
    assert rule.normalize == "max"
    total = torch.zeros(len(planes[0]), *size, dtype=torch.float64)
    for index, plane in enumerate(planes):
        plane = plane.clamp(min=0) if rule.rectify == "before" else plane
        grown = torch.nn.functional.interpolate(plane[None], size=size, mode=rule.interpolation)[0]
        total += grown.flip(2) if index % 2 else grown
    raw = total / len(planes) if rule.reduce == "mean" else total
    fused = raw.clamp(min=0)
    return raw, fused / (fused.amax(dim=(1, 2), keepdim=True) + rule.epsilon)


def label_map(fused: Tensor, present: np.ndarray, background: float) -> np.ndarray:
    """Arg-max of the background constant (first, so that ties are background) and the present classes."""
    stacked = np.concatenate([np.full((1, *fused.shape[1:]), background), fused.numpy()])
    return np.concatenate([[0], present + 1])[stacked.argmax(axis=0)]


@pytest.mark.parametrize("name", ["cls", "eps", "smaf", "l2g", "l2g_coconorm"])
def test_released_inference(golden: Golden, name: str) -> None:
    arrays = golden(f"06_infer_{name}.npz")
    kind = name.split("_")[0]
    model, config = localizer(kind, arrays)
    present = arrays["present"]
    planes: list[Tensor] = []
    for index, pair in enumerate(passes(arrays, *(COCO if name.endswith("coconorm") else IMAGENET))):
        with torch.no_grad():
            scores, maps = model.evidence(pair), model.maps(pair)
        heads = maps if kind == "cls" else scores
        for head, side in zip(heads, ("orig", "flip"), strict=True):
            expected = arrays[f"head_s{index}_{side}"]
            assert head.shape == expected.shape
            assert np.abs(head.numpy() - expected).max() <= 3e-4, (index, side)
        planes.extend(maps[:, torch.from_numpy(present)])
    raw, fused = fuse(config.fusion(), planes, arrays["image"].shape[:2])
    assert np.abs(raw.numpy() - arrays["mean_maps_before_clamp" if kind == "l2g" else "sum_maps"]).max() <= 1e-4
    assert np.abs(fused.numpy() - arrays["fused"]).max() <= 5e-5
    labels = label_map(fused, present, config.background())
    assert (labels == arrays["pred"])[~arrays["margin_small_1e-4"]].all()


def test_released_fusion_of_given_scores(golden: Golden) -> None:
    arrays = golden("05a_smaf_fusion.npz")
    present, size = arrays["present"], tuple(arrays["image_hw"].tolist())
    planes = []
    for index in range(len(arrays["scales"])):
        for side in ("orig", "flip"):
            scores = torch.from_numpy(arrays[f"logits_s{index}_{side}"])[None]
            maps = make_student_maps(scores, len(arrays["label"]), "softmax")[0]
            planes.append(maps[torch.from_numpy(present)])
    raw, fused = fuse(SMAFConfig().fusion(), planes, size)
    assert np.abs(raw.numpy() - arrays["sum_maps"]).max() <= 1e-5
    assert np.abs(fused.numpy() - arrays["fused"]).max() <= 1e-5
    assert (label_map(fused, present, SMAFConfig().background()) == arrays["pred_png"]).all()


def test_one_scale_without_flip_is_the_normalised_softmax_map() -> None:
    torch.manual_seed(0)
    scores = 3 * torch.randn(1, 4, 6, 9)
    maps = make_student_maps(scores, 3, "softmax")[0, :3]
    _, fused = fuse(SMAFConfig().fusion(), [maps], (6, 9))
    assert torch.allclose(fused.float(), maps / maps.amax(dim=(1, 2), keepdim=True), atol=1e-4)
