# SPDX-License-Identifier: Apache-2.0
"""Refiners without a network: seeds against a background score, and confident seeds that leave the rest unknown."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat, model_validator
from torch import nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import IGNORE, ClassMaps
from wsss_ray.refine.base import RefinerConfig, Threshold
from wsss_ray.refine.crf import PRESETS, CRFConfig, smooth_labels, smooth_scores
from wsss_ray.refine.histogram import find_otsu_threshold, split_by_otsu, take_number
from wsss_ray.refine.planes import add_constant_background, add_power_background, make_mask, pick_winners


class ThresholdSeedsConfig(RefinerConfig):
    """The strongest class map where it beats a background constant: the seed of nearly every paper since CAM (2016)."""

    name: Annotated[Literal["seeds"], Changes("masks")] = "seeds"
    threshold: Annotated[Threshold, Changes("masks")] = 0.2
    """PSA, EPS and SMAF 0.20; L2G 0.25; SEAM 0.26; IRN 0.15. A tie is background."""

    @property
    def follows_maps(self) -> bool:
        """True where the threshold is Otsu's."""
        return self.threshold == "otsu"

    def settle(self, counts: np.ndarray) -> ThresholdSeedsConfig:
        """Otsu's threshold of these counts where it is asked for."""
        return self.model_copy(update={"threshold": find_otsu_threshold(counts)}) if self.follows_maps else self

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The mask; the image is not looked at."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        return make_mask(pick_winners(add_constant_background(maps.full(), take_number(self.threshold))), maps.classes)


class PowerSeedsConfig(RefinerConfig):
    """The strongest class map where it beats (1 - max)^alpha (PSA, Ahn and Kwak 2018, Sec. 3.1, Eq. 2)."""

    name: Annotated[Literal["power"], Changes("masks")] = "power"
    alpha: Annotated[PositiveFloat, Changes("masks")] = 4.0

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The mask; the image is not looked at."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        return make_mask(pick_winners(add_power_background(maps.full(), self.alpha)), maps.classes)


class ConfidentSeedsConfig(RefinerConfig):
    """Classes above a high background constant, background below a low one, each after a CRF; else 255.

    IRN (Ahn, Cho and Kwak 2019), Sec. 4.1, as released in ``step/cam_to_ir_label.py``.
    """

    name: Annotated[Literal["confident"], Changes("masks")] = "confident"
    foreground: Annotated[float, Field(ge=0, le=1), Changes("masks")] = 0.30
    background: Annotated[float, Field(ge=0, le=1), Changes("masks")] = 0.05
    """IRN 0.05; KTSE's IRN 0.10."""
    crf: Annotated[CRFConfig | None, Changes("masks")] = PRESETS["irn"]
    """On the labels of each of the two seeds; None leaves them as they are."""

    @model_validator(mode="after")
    def _ordered(self) -> ConfidentSeedsConfig:
        if self.background > self.foreground:
            raise ValueError(f"background {self.background} lies above foreground {self.foreground}: swap them")
        return self

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The mask: class + 1, 0 or 255; all background for an image without labels."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        full = maps.full()
        sure, likely = (self._threshold(image, full, level) for level in (self.foreground, self.background))
        return make_confident_mask(sure, likely, maps.classes)

    def _threshold(self, image: np.ndarray, full: np.ndarray, threshold: float) -> np.ndarray:
        labels = pick_winners(add_constant_background(full, threshold))
        return labels if self.crf is None else pick_winners(smooth_labels(image, labels, len(full) + 1, self.crf))


class QuantileSeedsConfig(RefinerConfig):
    """Confident seeds whose thresholds follow the maps and read no ground truth; the rule is of this project, no paper.

    Otsu's threshold parts the values of all maps of the data set. Classes stand above the upper ``foreground`` share of
    those over it, background below the lower ``background`` share of those under it, each after a CRF; else 255. IRN's
    constants .30 and .05 suit maps whose best threshold is near .15.
    """

    name: Annotated[Literal["quantile"], Changes("masks")] = "quantile"
    foreground: Annotated[float, Field(gt=0, le=1), Changes("masks")] = 0.5
    background: Annotated[float, Field(gt=0, le=1), Changes("masks")] = 0.5
    crf: Annotated[CRFConfig | None, Changes("masks")] = PRESETS["irn"]
    """On the labels of each of the two seeds; None leaves them as they are."""

    @property
    def follows_maps(self) -> bool:
        """Always."""
        return True

    def settle(self, counts: np.ndarray) -> ConfidentSeedsConfig:
        """The two thresholds for these counts of the values of all maps."""
        high, low = split_by_otsu(counts, self.foreground, self.background)
        return ConfidentSeedsConfig(foreground=high, background=low, crf=self.crf)

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """Raises UserError: only what ``settle`` gives can refine."""
        raise UserError("refiner 'quantile' takes thresholds from all maps: run what its settle(counts) gives")


def make_confident_mask(sure: np.ndarray, likely: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Two (H, W) maps of plane numbers -> mask: what ``sure`` calls a class, 0 where both say 0, else 255.

    Released IRN, ``step/cam_to_ir_label.py``.
    """
    mask = make_mask(sure, classes)
    mask[(sure == 0) & (likely != 0)] = IGNORE
    return mask


class ConfidentPowerSeedsConfig(RefinerConfig):
    """Confident seeds from two background powers, each after a CRF on scores: the labels of AffinityNet.

    PSA (Ahn and Kwak 2018), Sec. 3.2.1.
    """

    name: Annotated[Literal["confident_power"], Changes("masks")] = "confident_power"
    alpha_low: Annotated[PositiveFloat, Changes("masks")] = 4.0
    """A class that beats this larger background is foreground. AEFT 2."""
    alpha_high: Annotated[PositiveFloat, Changes("masks")] = 32.0
    """Where this smaller background wins it is background. PSA's README also has 24; AEFT 21."""
    crf: Annotated[CRFConfig | None, Changes("masks")] = PRESETS["psa"]
    pool: Annotated[int, Field(ge=1), Changes("masks")] = 1
    """Scores are averaged over blocks of so many pixels first (released PSA: 8, on the training crop's grid)."""

    @model_validator(mode="after")
    def _ordered(self) -> ConfidentPowerSeedsConfig:
        if self.alpha_low > self.alpha_high:
            raise ValueError(f"alpha_low {self.alpha_low} is larger than alpha_high {self.alpha_high}: swap them")
        return self

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The mask: class + 1, 0 or 255; all background for an image without labels."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        full = maps.full()
        low, high = (self._compute_scores(image, full, alpha) for alpha in (self.alpha_low, self.alpha_high))
        index = pick_confident(low, high)
        known = make_mask(np.where(index == IGNORE, 0, index), maps.classes)
        return np.where(index == IGNORE, np.uint8(IGNORE), known)

    def _compute_scores(self, image: np.ndarray, full: np.ndarray, alpha: float) -> np.ndarray:
        scores = add_power_background(full, alpha)
        if self.crf is not None:
            scores = smooth_scores(image, scores, self.crf)
        return scores if self.pool == 1 else average_blocks(scores, self.pool)


def pick_confident(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n, h, w) scores at the low and at the high power -> (h, w) plane numbers; 255 where they disagree or are all 0.

    Where the background wins at the high power the label is background whatever the low power says (released PSA,
    ``voc12/data.py``).
    """
    sure, likely = pick_winners(low), pick_winners(high)
    index = np.where(sure != 0, sure, IGNORE)
    index[likely == 0] = 0
    index[~(low.any(axis=0) | high.any(axis=0))] = IGNORE
    return index


def average_blocks(scores: np.ndarray, side: int) -> np.ndarray:
    """(n, H, W) -> same shape: the mean of each pixel's ``side`` x ``side`` block; the last ones may be smaller."""
    _, height, width = scores.shape
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(scores.astype(np.float64), rows, axis=1), columns, axis=2)
    sizes = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    means = (sums / sizes).astype(scores.dtype)
    spread: np.ndarray = means.repeat(side, axis=1)[:, :height].repeat(side, axis=2)[:, :, :width]
    return spread
