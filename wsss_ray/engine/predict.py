# SPDX-License-Identifier: Apache-2.0
"""The test-time protocol, once: scales, flips, class gate and CRF of a network that predicts masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, Config
from wsss_ray.contracts import GatedSegments, Segments
from wsss_ray.engine.fusion import compute_unit_scale
from wsss_ray.engine.gate import GateConfig, gate_classes, read_scores
from wsss_ray.engine.localize import Scales
from wsss_ray.engine.passes import Device, forward_scale, group_by_size
from wsss_ray.engine.precision import Precision, use_bf16
from wsss_ray.refine.crf import CRFConfig, smooth_scores

MAX_SCORES = 60_000_000
"""Numbers (images x K x pixels) of full-size probabilities held at a time."""


class PredictConfig(Config):
    """Masks of the validation split, at a single scale, at all scales, and with the CRF: three separate scores."""

    scales: Annotated[Scales, Changes("masks")] = (0.5, 0.75, 1.0, 1.25, 1.5)
    long_side: Annotated[PositiveInt | None, Changes("masks")] = None
    """As for ``LocalizeConfig``."""
    flip: Annotated[bool, Changes("masks")] = True
    crf: Annotated[CRFConfig | None, Changes("masks")] = None
    """None predicts without a CRF."""
    gate: Annotated[GateConfig, Changes("masks")] = GateConfig()
    """Which classes may be predicted, and how background competes (single-stage methods)."""
    precision: Annotated[Precision, Changes("masks")] = "fp32"


@dataclass(frozen=True)
class ImageScores:
    """What a network says of one image."""

    single: np.ndarray
    """(K, H, W) probabilities at the scale nearest to 1, without flip."""
    multi: np.ndarray
    """(K, H, W) probabilities averaged over all views."""
    logits: np.ndarray | None
    """(N, C) image logits of the N views, the single-scale one first, where the class gate reads them."""


@dataclass(frozen=True)
class PredictedMasks:
    """The masks of one image, (H, W) int64 each."""

    single_scale: np.ndarray
    multi_scale: np.ndarray
    crf: np.ndarray | None
    """None where the protocol has no CRF."""


@dataclass(frozen=True)
class MaskPredictor:
    """A network that predicts masks, and the protocol by which it does."""

    network: Segments
    num_labels: int
    """K, background included."""
    config: PredictConfig
    on: Device
    max_scores: int = MAX_SCORES
    """Numbers of full-size probabilities held at a time; never less than one image's."""

    def score_images(self, images: Sequence[np.ndarray]) -> Iterator[tuple[int, ImageScores]]:
        """(index, scores) of (H, W, 3) uint8 images of any sizes, a few of one size at a time."""
        for indices in group_by_size([image.shape[:2] for image in images], self.on.batch_size):
            height, width = images[indices[0]].shape[:2]
            share = max(1, self.max_scores // (self.num_labels * height * width))
            for start in range(0, len(indices), share):
                chosen = indices[start : start + share]
                yield from zip(chosen, self._score_same_size([images[index] for index in chosen]), strict=True)

    @torch.inference_mode()
    def _score_same_size(self, images: Sequence[np.ndarray]) -> list[ImageScores]:
        config = self.config
        height, width = images[0].shape[:2]
        forward = _Forward(self.network, gated=config.gate.classes == "scores")
        unit = compute_unit_scale((height, width), config.long_side)
        nearest = min(config.scales, key=lambda scale: abs(scale - 1))
        total = single = torch.zeros(())
        count = own = 0
        bf16 = use_bf16(config.precision, self.on.device)
        for scale in config.scales:
            found = forward_scale(forward, images, unit * scale, config.flip, self.on, bf16)
            if scale == nearest and not own:
                single, own = _enlarge(found.plain, (height, width)), count + 1
            # Up-sampling is linear: adding first halves its cost.
            pair = found.plain if found.flipped is None else found.plain + found.flipped.flip(3)
            full = _enlarge(pair, (height, width))
            total = full if not count else total.add_(full)
            count += 1 if found.flipped is None else 2
        logits = forward.split_logits(len(images), own - 1)
        mean, alone = (total / count).cpu().numpy(), single.cpu().numpy()
        return [ImageScores(alone[place], mean[place], logits[place]) for place in range(len(images))]


def _enlarge(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W) in memory of its own."""
    return nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)


class _Forward:
    """One forward pass that keeps the image logits beside the scores it returns, where the gate reads them."""

    def __init__(self, network: Segments, gated: bool) -> None:
        self.network = network
        self.gated = gated and hasattr(network, "logits")
        self.logits: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        if not self.gated:
            return self.network.scores(inputs)
        if isinstance(self.network, GatedSegments):
            scores, logits = self.network.predict_scores(inputs)
        else:
            scores, logits = self.network.scores(inputs), self.network.logits(inputs)  # type: ignore[attr-defined]
        self.logits.append(logits.float().cpu())
        return scores

    def split_logits(self, num_images: int, own: int) -> list[np.ndarray | None]:
        """For each image (N, C) logits of its views, view ``own`` first; None where nothing reads them."""
        if not self.logits:
            return [None] * num_images
        joined = torch.cat(self.logits).numpy()
        views = np.split(joined, len(joined) // num_images)
        stacked = np.stack([views.pop(own), *views], axis=1)
        return list(stacked)


def read_masks(
    config: PredictConfig, image: np.ndarray, scores: ImageScores, labels: np.ndarray | None
) -> PredictedMasks:
    """The masks of one (H, W, 3) uint8 image; ``labels`` (C,) bool where the gate reads image labels, else None.

    The class gate of the single-scale mask reads that view alone, as if there were no others.
    """
    gate = config.gate
    allowed = gate_classes(gate, scores.logits, labels)
    alone = gate_classes(gate, None if scores.logits is None else scores.logits[:1], labels)
    crf = None
    if config.crf is not None:
        crf = smooth_scores(image, read_scores(scores.multi, gate, allowed, for_crf=True), config.crf).argmax(axis=0)
    return PredictedMasks(
        single_scale=read_scores(scores.single, gate, alone).argmax(axis=0),
        multi_scale=read_scores(scores.multi, gate, allowed).argmax(axis=0),
        crf=crf,
    )
