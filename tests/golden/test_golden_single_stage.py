# SPDX-License-Identifier: Apache-2.0
"""SSSS and WS-FCN against released numbers: PAMR on all planes, statistics, inputs of inference and of the flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden_rules import set_b_input
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.geometry import resize, scale_by
from wsss_ray.methods import METHODS
from wsss_ray.nets.backbone import Backbone
from wsss_ray.refine.pamr import refine_with_pamr


class Taps(Backbone):
    """A backbone that is only its channel counts: decoders are fed with given taps."""

    def __init__(self, low: int, out: int) -> None:
        super().__init__()
        self.channels, self.strides = {"low": low, "out": out}, {"low": 4, "out": 8}


def close(actual: Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


def pooled(arrays: Any) -> Tensor:
    """(B, 1 + C, h, w) masks that SSSS makes of the file's logits."""
    logits = torch.from_numpy(arrays["z"])
    model: Any = METHODS["ssss"]().build(Taps(8, 8), logits.shape[1])
    masks: Tensor = model.pool(logits)[1]
    return masks


def test_pamr_on_every_plane(golden):
    arrays = golden("b11_ssss_scores_losses.npz")
    masks, present = pooled(arrays), np.flatnonzero(arrays["label"].any(axis=0))
    close(masks[:, [0, *(present + 1)]], arrays["pamr_in"], 5e-6)
    refined = refine_with_pamr(torch.from_numpy(arrays["pamr_image"]), masks)
    close(refined[0], arrays["pamr_out_all21_img0"], 5e-6)


def test_logged_share_of_the_foreground(golden):
    """Mean over an image's classes of the area its mask takes."""
    arrays = golden("b11_ssss_scores_losses.npz")
    labels = torch.from_numpy(arrays["label"]).float()
    areas = pooled(arrays)[:, 1:].mean(dim=(2, 3))
    close((areas * labels).sum(dim=1) / labels.sum(dim=1), arrays["fg_stat_per_image"], 5e-6)


def test_training_leaves_the_statistics_of_the_context_alone(golden):
    arrays = golden("b12_ssss_decoder_rule.npz")
    prefix = str(arrays["rule_prefix"])
    low = torch.from_numpy(set_b_input("low", arrays["low_shape"].tolist(), prefix))
    high = torch.from_numpy(set_b_input("high", arrays["high_shape"].tolist(), prefix)).abs()
    model: Any = METHODS["ssss"]().build(Taps(low.shape[1], high.shape[1]), arrays["train_logits"].shape[1])
    model.train().decode(low, high)
    norms = [layer for layer in model.context.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean.abs().max() == float(arrays["aspp_bn_running_mean_absmax_after"])
        assert (norm.running_var - 1).abs().max() == float(arrays["aspp_bn_running_var_minus1_absmax_after"])


def test_images_of_inference(golden):
    """Each scale and its mirror image, in the middle of a canvas of the mean colour."""
    arrays = golden("b14_ssss_infer_merge.npz")
    image, canvas = arrays["img"], arrays["pad"].tolist()
    for view, expected in enumerate(arrays["loader_inputs"]):
        size = scale_by(*image.shape[:2], (1, 0.5, 1.5, 2)[view // 2])
        part = NormalizeConfig().apply(resize(image, size, "bicubic")).numpy()
        top, left = ((whole - length) // 2 for whole, length in zip(canvas, size, strict=True))
        placed = np.zeros((len(part), *canvas), np.float32)
        placed[:, top : top + size[0], left : left + size[1]] = part[:, :, ::-1] if view % 2 else part
        np.testing.assert_allclose(placed, expected, rtol=0, atol=1e-6)


def test_both_methods_are_given_the_same_images(golden):
    name, _, listed = str(golden("b14_wsfcn_infer_merge.npz")["same_inputs_as"]).partition(" ")
    given = golden(name)
    assert {part.strip() for part in listed.strip("()").split(",")} <= set(given)


def test_input_of_the_flow(golden):
    """The projected context, enlarged without aligning corners, before the projected low features."""
    arrays = golden("b13_wsfcn_align.npz")
    low, high = (torch.from_numpy(arrays[key]) for key in ("low", "high"))
    config = METHODS["wsfcn"].model_validate({"name": "wsfcn", "profile": "released", "width": high.shape[1]})
    model: Any = config.build(Taps(low.shape[1], high.shape[1]), 3)
    align = model.coupling.align
    names = {"low.weight": "w_down_l", "high.weight": "w_down_h", "offset.weight": "w_flow_make"}
    align.load_state_dict({own: torch.from_numpy(arrays[key]) for own, key in names.items()})
    seen: list[Tensor] = []
    align.offset.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        align(low, high)
    close(seen[0], arrays["concat_in"], 1e-5)
