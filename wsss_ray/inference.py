"""Networks over whole pictures: scales and flips of same-sized pictures share one forward pass. Plain torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wsss_ray.contracts import FusionRule
from wsss_ray.data.augment import Normalize
from wsss_ray.recipe import LocalizeConfig, PredictConfig
from wsss_ray.refine.fusion import Pass, fuse_present, scaled_inputs, strided_size, unit_scale, whole_cells
from wsss_ray.refine.maps import ClassMaps

MAX_PIXELS = 12_000_000
"""Input pixels of one forward pass at most, so that large pictures at scale 2 fit in memory."""


def same_size(pictures: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Indices of pictures of one size, at most ``batch_size`` at a time, in a fixed order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(picture.shape[:2], []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


@torch.inference_mode()
def passes(
    forward: Callable[[Tensor], Tensor],
    pictures: Sequence[np.ndarray],
    scales: Sequence[float],
    flip: bool,
    normalize: Normalize,
    device: torch.device,
    precision: str,
) -> Iterator[Pass]:
    """For every scale the output of same-sized (H, W, 3) uint8 pictures and, with ``flip``, of their mirror images
    (still mirrored).

    Each ``Pass`` holds (B, K, h, w) float32.
    """
    for scale in scales:
        images = torch.cat([scaled_inputs(picture, scale, normalize.apply, flip=False) for picture in pictures])
        inputs = torch.cat([images, images.flip(3)]) if flip else images
        share = max(1, MAX_PIXELS // (inputs.shape[2] * inputs.shape[3]))
        outputs = []
        for start in range(0, len(inputs), share):
            chunk = inputs[start : start + share].to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs.append(forward(chunk).float().cpu())
        output = torch.cat(outputs)
        yield Pass(output[: len(images)], output[len(images) :] if flip else None)


def class_maps(
    network: nn.Module,
    ids: Sequence[str],
    pictures: Sequence[np.ndarray],
    present: Sequence[Sequence[int]],
    config: LocalizeConfig,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
) -> list[ClassMaps]:
    """Fused, normalised maps of the classes present in each picture, on its grid of ``config.stride``."""
    results: dict[int, ClassMaps] = {}
    rule = config.fusion
    assert isinstance(rule, FusionRule)
    for indices in same_size(pictures, batch_size):
        chosen = [pictures[index] for index in indices]
        height, width = chosen[0].shape[:2]
        unit = unit_scale((height, width), config.long_side)
        scales = [unit * scale for scale in config.scales]
        outputs = list(passes(network.maps, chosen, scales, config.flip, normalize, device, config.precision))  # type: ignore[arg-type]
        labels = torch.zeros(len(indices), outputs[0].plain.shape[1])
        for place, index in enumerate(indices):
            labels[place, list(present[index])] = 1
        grid = strided_size((height, width), config.stride)
        canvas = whole_cells(grid, rule.multiple) if config.stride == 1 else grid
        fused = fuse_present(outputs, rule, canvas, labels, crop=grid).numpy()
        start = 0
        for index in indices:
            classes = np.asarray(sorted(present[index]), dtype=np.int32)
            results[index] = ClassMaps(ids[index], classes, fused[start : start + len(classes)], (height, width))
            start += len(classes)
    return [results[index] for index in range(len(pictures))]


@torch.inference_mode()
def class_scores(
    network: nn.Module,
    pictures: Sequence[np.ndarray],
    config: PredictConfig,
    normalize: Normalize,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities of same-sized pictures from a network with ``scores`` (and ``answer``, which spares a second pass).

    Returns single-scale (first of ``config.scales`` closest to 1, no flip) and averaged over all views, both
    (B, K, H, W) float32, and (B, N, C) image logits of the N views, the single-scale one first, where the class gate
    reads scores, else None.
    """
    height, width = pictures[0].shape[:2]
    gated = config.gate.classes == "scores" and hasattr(network, "logits")
    nearest = min(config.scales, key=lambda scale: abs(scale - 1))
    unit = unit_scale((height, width), config.long_side)
    total = single = None
    views: list[np.ndarray] = []
    own = count = 0
    for scale in config.scales:
        logits: list[Tensor] = []

        def forward(images: Tensor, logits: list[Tensor] = logits) -> Tensor:
            if gated and hasattr(network, "answer"):
                scores, pooled = network.answer(images)  # type: ignore[operator]
            else:
                scores = network.scores(images)  # type: ignore[operator]
                pooled = network.logits(images) if gated else None  # type: ignore[operator]
            if pooled is not None:
                logits.append(pooled.float().cpu())
            return scores  # type: ignore[no-any-return]

        flip = config.flip
        for plain, mirrored in passes(forward, pictures, [unit * scale], flip, normalize, device, config.precision):
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
            views += np.split(joined, len(joined) // len(pictures))
    assert total is not None and single is not None
    stacked = np.stack([views.pop(own), *views], axis=1) if views else None
    return single.numpy(), (total / count).numpy(), stacked


def forward_share(num_classes: int, size: tuple[int, int], batch_size: int, limit: int = 60_000_000) -> int:
    """Pictures at a time so that full-size probabilities stay below ``limit`` numbers."""
    return max(1, min(batch_size, limit // (num_classes * size[0] * size[1])))
