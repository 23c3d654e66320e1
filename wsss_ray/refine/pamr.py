# SPDX-License-Identifier: Apache-2.0
"""Pixel-adaptive refinement: PAMR (Araslanov and Roth 2020) and PAR (Ru et al. 2022), and their refiners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.planes import add_constant_background, add_power_background, make_mask, pick_winners

DILATIONS = (1, 2, 4, 8, 12, 24)
RING = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
EPSILON = 1e-8
PAMR_WIDTH = 0.1
PAR_WIDTH = 0.3
PAR_POSITION_WEIGHT = 0.01
WEIGHTS_LIMIT = 2**29
"""Bytes of neighbour weights held at once; larger batches go through in parts, with the same result."""


def list_neighbours(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) of the eight neighbours at every dilation, dilation-major, each ring row by row."""
    return [(dy * dilation, dx * dilation) for dilation in dilations for dy, dx in RING]


def _iterate_shifts(values: Tensor, offsets: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """(B, n, H, W) -> for each offset the (B, n, H, W) view of what lies there, border values repeated outside."""
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    height, width = values.shape[2:]
    padded = F.pad(values, (reach,) * 4, mode="replicate")
    for dy, dx in offsets:
        yield padded[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width]


def _compute_deviation(image: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """(B, 3, H, W) -> same shape: sample standard deviation (n - 1) over the values at ``offsets``."""
    mean = torch.zeros_like(image)
    for value in _iterate_shifts(image, offsets):
        mean += value
    mean /= len(offsets)
    squares = torch.zeros_like(image)
    for value in _iterate_shifts(image, offsets):
        squares += (value - mean).square()
    return (squares / (len(offsets) - 1)).sqrt()


def _compute_similarity(image: Tensor, around: Sequence[tuple[int, int]], width: Tensor, power: int) -> Tensor:
    """(B, 3, H, W) -> (B, neighbours, H, W): softmax of minus the channel mean of (|difference| / width)^power."""
    logits = [-((value - image).abs() / width).pow(power).mean(dim=1) for value in _iterate_shifts(image, around)]
    return torch.stack(logits, dim=1).softmax(dim=1)


def compute_pamr_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """(B, 3, H, W) -> (B, 8 len(dilations), H, W) summing to 1 over neighbours; the pixel itself is none of them.

    SSSS (Araslanov and Roth 2020), Sec. 3.3.
    The width is 0.1 standard deviations over the neighbours and, once per dilation, the pixel itself, not its square as
    the paper writes (released 1-stage-wseg, pamr.py). Unchanged by a channel's brightness and contrast.
    """
    around = list_neighbours(dilations)
    width = EPSILON + PAMR_WIDTH * _compute_deviation(image, around + [(0, 0)] * len(dilations))
    return _compute_similarity(image, around, width, power=1)


def compute_position_weights(dilations: Sequence[int] = DILATIONS) -> Tensor:
    """(8 len(dilations),) float64 summing to 1: the share of near neighbours, whatever the image (AFA, ``PAR.py``)."""
    distance = torch.tensor([math.hypot(dy, dx) for dy, dx in list_neighbours(dilations)], dtype=torch.float64)
    return (-(distance / (PAR_WIDTH * (distance.std() + EPSILON))).square()).softmax(dim=0)


def compute_par_weights(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """(B, 3, H, W) -> (B, 8 len(dilations), H, W) summing to 1.01 over neighbours.

    AFA (Ru et al. 2022), Sec. 3.4, as released in ``wetr/PAR.py``.
    A softmax of the squared colour distance in units of 0.3 standard deviations over the neighbours, plus 0.01 times a
    share by position.
    """
    around = list_neighbours(dilations)
    colour = _compute_similarity(image, around, PAR_WIDTH * (_compute_deviation(image, around) + EPSILON), power=2)
    position = PAR_POSITION_WEIGHT * compute_position_weights(dilations)
    return colour + position.to(image)[:, None, None]


def diffuse_masks(masks: Tensor, weights: Tensor, num_iterations: int, dilations: Sequence[int]) -> Tensor:
    """Replace (B, K, H, W) masks by the weighted sum of their neighbours, ``num_iterations`` times.

    SSSS Sec. 3.3 and AFA Sec. 3.4.
    No neighbour stack is made: beside the weights it takes three times the memory of the masks.
    """
    around = list_neighbours(dilations)
    for _ in range(num_iterations):
        total = torch.zeros_like(masks)
        for k, value in enumerate(_iterate_shifts(masks, around)):
            total.addcmul_(weights[:, k : k + 1], value)
        masks = total
    return masks


def _refine_masks(
    make_weights: Callable[[Tensor, Sequence[int]], Tensor],
    image: Tensor,
    masks: Tensor,
    num_iterations: int,
    dilations: Sequence[int],
) -> Tensor:
    if image.shape[0] != masks.shape[0]:
        raise UserError(f"{image.shape[0]} images but masks of {masks.shape[0]}: give one image per mask stack")
    size = image.shape[-2:]
    # Ten rounds of half precision would not keep a sum; planes that lie pixel by pixel take much longer.
    image, masks = image.contiguous(), masks.to(torch.promote_types(masks.dtype, torch.float32)).contiguous()
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=True)
    bytes_each = 8 * len(dilations) * size[0] * size[1] * image.element_size()
    step = max(WEIGHTS_LIMIT // bytes_each, 1)
    parts = [
        diffuse_masks(mask, make_weights(guide, dilations).to(mask.dtype), num_iterations, dilations)
        for guide, mask in zip(torch.split(image, step), torch.split(masks, step), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def refine_with_pamr(
    image: Tensor, masks: Tensor, num_iterations: int = 10, dilations: Sequence[int] = DILATIONS
) -> Tensor:
    """PAMR: (B, 3, H, W) guide, (B, K, h, w) masks -> (B, K, H, W), on any device, without gradient.

    Masks are resized to the guide (bilinear, align_corners True). The sum over masks is kept. SSSS guides with the RGB
    image resized to 81 x 81; WS-FCN on COCO takes 5 iterations.
    """
    return _refine_masks(compute_pamr_weights, image, masks, num_iterations, dilations)


@torch.no_grad()
def refine_with_par(
    image: Tensor, masks: Tensor, num_iterations: int = 10, dilations: Sequence[int] = DILATIONS
) -> Tensor:
    """PAR: (B, 3, H, W) guide, (B, K, h, w) masks -> (B, K, H, W), on any device, without gradient.

    Masks are resized to the guide (bilinear, align_corners True). Weights sum to 1.01 and nothing is renormalised: a
    constant grows by 1.01 to the power ``num_iterations``, which moves no arg-max.
    """
    return _refine_masks(compute_par_weights, image, masks, num_iterations, dilations)


class _PixelAdaptiveConfig(RefinerConfig):
    """Maps and a background score, diffused along colours of the image; the largest wins."""

    run: ClassVar[Callable[..., Tensor]]
    num_iterations: Annotated[PositiveInt, Changes("masks")] = 10
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Changes("masks")] = DILATIONS
    background: Annotated[Literal["constant", "power"], Changes("masks")] = "constant"
    """Background score: ``threshold`` everywhere, or (1 - max)^alpha."""
    threshold: Annotated[float, Field(ge=0, le=1), Changes("masks")] = 0.2
    alpha: Annotated[PositiveFloat, Changes("masks")] = 4.0
    softmax: Annotated[bool, Changes("masks")] = False
    """Turn the scores into probabilities over background and present classes first (KTSE)."""
    grid: Annotated[Literal["image", "maps"], Changes("masks")] = "image"
    """Run at the image's size, or on the stored grid with the image shrunk to it (SSSS: stride 4)."""

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The mask, computed on the CPU; all background for an image without labels."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        values = maps.full() if self.grid == "image" else maps.maps
        power = self.background == "power"
        stack = add_power_background(values, self.alpha) if power else add_constant_background(values, self.threshold)
        planes = torch.from_numpy(stack)[None]
        guide = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        if guide.shape[-2:] != planes.shape[-2:]:
            guide = F.interpolate(guide, size=planes.shape[-2:], mode="bilinear", align_corners=True)
        if self.softmax:
            planes = planes.softmax(dim=1)
        refined = type(self).run(guide, planes, self.num_iterations, self.dilations)
        if refined.shape[-2:] != maps.size:
            refined = F.interpolate(refined, size=maps.size, mode="bilinear", align_corners=False)
        return make_mask(pick_winners(refined[0].numpy()), maps.classes)


class PAMRConfig(_PixelAdaptiveConfig):
    """PAMR on class maps (Araslanov and Roth 2020, Sec. 3.3)."""

    run: ClassVar[Callable[..., Tensor]] = staticmethod(refine_with_pamr)
    name: Annotated[Literal["pamr"], Changes("masks")] = "pamr"


class PARConfig(_PixelAdaptiveConfig):
    """PAR on class maps (AFA, Ru et al. 2022).

    With ``softmax`` and a threshold of 0.3 or 0.15, KTSE's two label maps.
    """

    run: ClassVar[Callable[..., Tensor]] = staticmethod(refine_with_par)
    name: Annotated[Literal["par"], Changes("masks")] = "par"
