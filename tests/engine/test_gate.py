# SPDX-License-Identifier: Apache-2.0
"""Reading single-stage masks: the released inference of SSSS and WS-FCN, and rules by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsss_ray.config import UserError
from wsss_ray.engine.gate import (
    SSSS_GATE,
    WSFCN_GATE,
    BackgroundRule,
    GateConfig,
    close_gate,
    gate_classes,
    read_scores,
    weigh_background,
)
from wsss_ray.refine.crf import PRESETS, smooth_scores

Golden = Callable[[str], dict[str, np.ndarray]]
SCALES = (1, 0.5, 1.5, 2)


def average(file: dict[str, np.ndarray]) -> np.ndarray:
    """(K, H, W) mean of the file's 8 views: canvas cut off, brought to image size, flips undone."""
    height, width = int(file["H"]), int(file["W"])
    canvas = file["pad"].tolist()
    total = np.zeros((file["masks_u8"].shape[1], height, width), np.float64)
    for view, mask in enumerate(torch.from_numpy(file["masks_u8"]).float() / 255):
        scale = SCALES[view // 2]
        size = [round(length * scale) for length in (height, width)]
        top, left = ((whole - part) // 2 for whole, part in zip(canvas, size, strict=True))
        part = mask[None, :, top : top + size[0], left : left + size[1]]
        part = torch.nn.functional.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        total += (part.flip(3) if view % 2 else part)[0].numpy()
    return (total / len(file["masks_u8"])).astype(np.float32)


def labels_of(file: dict[str, np.ndarray]) -> np.ndarray:
    present = np.zeros(file["cls_raw"].shape[1])
    present[[value - 1 for value in np.unique(file["gt"]) if 0 < value < 255]] = 1
    return present


@pytest.mark.parametrize(("name", "gate"), [("ssss", SSSS_GATE), ("wsfcn", WSFCN_GATE)])
@pytest.mark.parametrize("mode", ["gate", "gtlabels"])
def test_golden_merge(golden: Golden, name: str, gate: GateConfig, mode: str) -> None:
    given, expected = golden("b14_ssss_infer_merge.npz"), golden(f"b14_{name}_infer_merge.npz")
    merged = average(given)
    config = gate if mode == "gate" else gate.model_copy(update={"classes": "labels"})
    allowed = gate_classes(config, scores=given["cls_raw"], labels=labels_of(given))
    assert allowed is not None
    assert [0, *(np.flatnonzero(allowed) + 1)] == expected[f"{mode}_active"].tolist()
    active = expected[f"{mode}_active"]
    plain, for_crf = (read_scores(merged, config, allowed, for_crf=flag) for flag in (False, True))
    assert np.array_equal(plain.argmax(axis=0), expected[f"{mode}_pred"])
    silent = np.setdiff1d(np.arange(len(merged)), active)
    assert not plain[silent].any()
    assert not for_crf[silent].any()
    np.testing.assert_allclose(plain[active], expected[f"{mode}_merged_active"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(for_crf[active], expected[f"{mode}_crf_in_active"], rtol=0, atol=1e-6)
    smooth = smooth_scores(given["img"], for_crf, PRESETS[name])
    assert np.array_equal(smooth.argmax(axis=0), expected[f"{mode}_pred_crf"])


@pytest.mark.parametrize(("share", "ssss", "wsfcn"), [((0.6, 0.4), 1, 1), ((0.8, 0.2), 0, 0), ((0.7, 0.3), 0, 1)])
def test_background_rules_by_hand(share: tuple[float, float], ssss: int, wsfcn: int) -> None:
    pixel = np.array(share).reshape(2, 1, 1)
    assert read_scores(pixel, SSSS_GATE, None).argmax() == ssss
    assert read_scores(pixel, WSFCN_GATE, None).argmax() == wsfcn
    assert read_scores(pixel, GateConfig(), None) is pixel
    assert read_scores(pixel, WSFCN_GATE, None, for_crf=True)[0].item() == pytest.approx((1 - share[1]) ** 5)
    assert read_scores(pixel, SSSS_GATE, None, for_crf=True)[0].item() == pytest.approx(share[0] ** 3)


def test_the_best_view_decides() -> None:
    scores = np.array([[-3.0, -2.2, -2.197, -900.0], [-2.0, -2.3, -9.0, -1000.0]])
    by_scores = gate_classes(SSSS_GATE, scores=scores)
    assert by_scores is not None
    assert by_scores.tolist() == [True, False, True, False]
    assert gate_classes(GateConfig(classes="labels"), labels=np.array([0, 1, 1, 0])).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert gate_classes(GateConfig(), scores=scores) is None


def test_closing_leaves_the_input_and_background_alone() -> None:
    given = np.random.default_rng(0).random((3, 2, 2))
    before = given.copy()
    closed = close_gate(given, np.array([False, True]))
    assert not closed[1].any()
    assert np.array_equal(closed[[0, 2]], before[[0, 2]])
    weigh_background(given, BackgroundRule(kind="constant", value=0.5))
    assert np.array_equal(given, before)


def test_rest_counts_gated_classes_only() -> None:
    given = np.array([0.1, 0.6, 0.3]).reshape(3, 1, 1)
    scores = read_scores(given, WSFCN_GATE, np.array([False, True]), for_crf=True)
    assert scores.ravel().tolist() == pytest.approx([0.7**5, 0.0, 0.3])


def test_missing_inputs_are_named() -> None:
    with pytest.raises(UserError, match="no image scores"):
        gate_classes(SSSS_GATE)
    with pytest.raises(UserError, match="no labels"):
        gate_classes(GateConfig(classes="labels"))
