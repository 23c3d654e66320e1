# SPDX-License-Identifier: Apache-2.0
"""Which classes may answer and how background competes when masks are read (SSSS, WS-FCN utils/inference_tools)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from wsss_ray.config import Config, UserError


class BackgroundRule(Config):
    """How the background plane is made from the averaged probabilities p (background first)."""

    kind: Literal["own", "power", "constant", "rest"] = "own"
    """own: p_0. power: p_0 ^ value. constant: value. rest: (1 - max over foreground) ^ value."""
    value: Annotated[float, Field(ge=0)] = 1.0


class GateConfig(Config):
    """How averaged probabilities become scores; ``SSSS_GATE`` and ``WSFCN_GATE`` are the released rules."""

    classes: Literal["all", "scores", "labels"] = "all"
    """all: no gate. scores: classes whose image score passes. labels: the image's labels, used at test time."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A class may answer where the highest sigmoid of its score over all views is above this."""
    background: BackgroundRule = BackgroundRule()
    crf_background: BackgroundRule | None = None
    """The rule for what the CRF is given; None takes ``background``."""


SSSS_GATE = GateConfig(classes="scores", background=BackgroundRule(kind="power", value=3))
"""SSSS utils/inference_tools."""
WSFCN_GATE = GateConfig(
    classes="scores",
    background=BackgroundRule(kind="constant", value=0.25),
    crf_background=BackgroundRule(kind="rest", value=5),
)
"""WS-FCN utils/inference_tools and utils/dcrf; constants chosen on the validation set."""


def gate_classes(
    config: GateConfig, scores: np.ndarray | None = None, labels: np.ndarray | None = None
) -> np.ndarray | None:
    """(N, C) image scores of an image's N views, or its (C,) labels -> (C,) bool: may answer; None where all may.

    Raises UserError where the rule needs what is not given.
    """
    if config.classes == "all":
        return None
    if config.classes == "labels":
        if labels is None:
            raise UserError("predict.gate.classes=labels: these images have no labels; set it to scores or all")
        return np.asarray(labels) > 0
    if scores is None:
        raise UserError("predict.gate.classes=scores: this network has no image scores; set it to all or labels")
    best = np.max(np.asarray(scores, dtype=np.float64), axis=0)
    allowed: np.ndarray = 0.5 * (1 + np.tanh(best / 2)) > config.threshold
    return allowed


def close_gate(probabilities: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """(K, H, W) averaged probabilities, background first -> the same with classes that may not answer set to 0."""
    if allowed is None:
        return probabilities
    kept = probabilities.copy()
    kept[1:][~np.asarray(allowed, dtype=bool)] = 0
    return kept


def weigh_background(probabilities: np.ndarray, rule: BackgroundRule) -> np.ndarray:
    """(K, H, W) gated probabilities -> (K, H, W) with the background plane of ``rule``; the sum is not 1 any more."""
    if rule.kind == "own":
        return probabilities
    weighed = probabilities.copy()
    if rule.kind == "power":
        weighed[0] = probabilities[0] ** rule.value
    elif rule.kind == "constant":
        weighed[0] = rule.value
    else:
        weighed[0] = (1 - probabilities[1:].max(axis=0)) ** rule.value
    return weighed


def read_scores(
    probabilities: np.ndarray, config: GateConfig, allowed: np.ndarray | None, for_crf: bool = False
) -> np.ndarray:
    """(K, H, W) averaged probabilities -> (K, H, W) scores to take the argmax of, or to give to the CRF."""
    rule = config.background
    if for_crf and config.crf_background is not None:
        rule = config.crf_background
    return weigh_background(close_gate(probabilities, allowed), rule)
