"""The test-time protocol: scales, flips, class gate and CRF of a network that predicts masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Config
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import unit_scale
from wsss_ray.engine.gate import GateConfig, gate_classes, read_scores
from wsss_ray.engine.localize import Scales
from wsss_ray.engine.passes import passes
from wsss_ray.refine.crf import CRFConfig, crf_scores


class PredictConfig(Config):
    """Masks of the validation split, at a single scale, at all scales, and with the CRF: three separate scores."""

    scales: Scales = (0.5, 0.75, 1.0, 1.25, 1.5)
    long_side: PositiveInt | None = None
    """As for ``LocalizeConfig``."""
    flip: bool = True
    crf: CRFConfig | None = None
    """None predicts without a CRF."""
    gate: GateConfig = GateConfig()
    """Which classes may answer, and how background competes (single-stage methods)."""
    precision: Literal["fp32", "bf16"] = "fp32"


def forward_share(num_classes: int, size: tuple[int, int], batch_size: int, limit: int = 60_000_000) -> int:
    """Images at a time so that full-size probabilities stay below ``limit`` numbers."""
    return max(1, min(batch_size, limit // (num_classes * size[0] * size[1])))


@torch.inference_mode()
def class_scores(
    network: nn.Module,
    images: Sequence[np.ndarray],
    config: PredictConfig,
    normalize: NormalizeConfig,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities of same-sized images from a network with ``scores`` (``predict_scores`` spares it a second pass).

    Returns single-scale (first of ``config.scales`` closest to 1, no flip) and averaged over all views, both
    (B, K, H, W) float32, and (B, N, C) image logits of the N views, the single-scale one first, where the class gate
    reads scores, else None.
    """
    height, width = images[0].shape[:2]
    gated = config.gate.classes == "scores" and hasattr(network, "logits")
    nearest = min(config.scales, key=lambda scale: abs(scale - 1))
    unit = unit_scale((height, width), config.long_side)
    total = single = None
    views: list[np.ndarray] = []
    own = count = 0
    for scale in config.scales:
        logits: list[Tensor] = []

        def forward(inputs: Tensor, logits: list[Tensor] = logits) -> Tensor:
            if gated and hasattr(network, "predict_scores"):
                scores, pooled = network.predict_scores(inputs)  # type: ignore[operator]
            else:
                scores = network.scores(inputs)  # type: ignore[operator]
                pooled = network.logits(inputs) if gated else None  # type: ignore[operator]
            if pooled is not None:
                logits.append(pooled.float().cpu())
            return scores  # type: ignore[no-any-return]

        flip = config.flip
        for plain, mirrored in passes(forward, images, [unit * scale], flip, normalize, device, config.precision):
            for output in (plain, None if mirrored is None else mirrored.flip(3)):
                if output is None:
                    continue
                full = nn.functional.interpolate(output, (height, width), mode="bilinear", align_corners=False)
                if scale == nearest and single is None:
                    single, own = full, len(views)
                total = full if total is None else total + full
                count += 1
        if gated:
            joined = torch.cat(logits).numpy()
            views += np.split(joined, len(joined) // len(images))
    assert total is not None and single is not None
    stacked = np.stack([views.pop(own), *views], axis=1) if views else None
    return single.numpy(), (total / count).numpy(), stacked


def predicted_masks(
    config: PredictConfig,
    image: np.ndarray,
    labels: np.ndarray,
    single: np.ndarray,
    multi: np.ndarray,
    views: np.ndarray | None,
) -> dict[str, np.ndarray | None]:
    """What ``class_scores`` found in one image -> (H, W) masks ``single_scale``, ``multi_scale`` and ``crf``.

    The class gate of the single-scale mask reads that view alone, as if there were no others.
    """
    gate = config.gate
    allowed = gate_classes(gate, views, labels)
    alone = gate_classes(gate, None if views is None else views[:1], labels)
    crf = None
    if config.crf is not None:
        crf = crf_scores(image, read_scores(multi, gate, allowed, for_crf=True), config.crf).argmax(axis=0)
    return {
        "single_scale": read_scores(single, gate, alone).argmax(axis=0),
        "multi_scale": read_scores(multi, gate, allowed).argmax(axis=0),
        "crf": crf,
    }
