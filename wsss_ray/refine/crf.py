# SPDX-License-Identifier: Apache-2.0
"""The dense CRF (Kraehenbuehl and Koltun 2011) with the settings of the field's papers, and its refiner."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import nn

from wsss_ray.config import Changes, Config, UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine.base import RefinerConfig, Threshold
from wsss_ray.refine.dense_crf import UnfitError
from wsss_ray.refine.histogram import find_otsu_threshold, take_number
from wsss_ray.refine.planes import add_constant_background, add_power_background, make_mask, pick_winners

CAFFE_MEAN = (104.008, 116.669, 122.675)
"""Mean of the channels B, G, R that deeplab-pytorch subtracts."""


Engine = Literal["fast", "pydensecrf"]
"""``fast`` is compiled here by numba, several times as fast; labels are equal, up to the rounding of ties."""


@lru_cache
def has_fast() -> bool:
    """Whether numba is installed (the extra ``fast``), without importing it."""
    return find_spec("numba") is not None


class CRFConfig(Config):
    """Potts CRF with a spatial and a colour kernel; a name of ``PRESETS`` may stand for all of it.

    Kraehenbuehl and Koltun 2011, Eq. 3.
    """

    gaussian_xy: Annotated[PositiveFloat, Changes("masks")] = 3.0
    gaussian_weight: Annotated[NonNegativeFloat, Changes("masks")] = 3.0
    bilateral_xy: Annotated[PositiveFloat, Changes("masks")] = 80.0
    bilateral_rgb: Annotated[PositiveFloat, Changes("masks")] = 13.0
    bilateral_weight: Annotated[NonNegativeFloat, Changes("masks")] = 10.0
    iterations: Annotated[PositiveInt, Changes("masks")] = 10
    scale: Annotated[PositiveFloat, Changes("masks")] = 1.0
    """Both spatial widths are divided by this (PSA's scale_factor, for maps below image size)."""
    channels: Annotated[Literal["rgb", "bgr"], Changes("masks")] = "rgb"
    """The filter's lattice is not symmetric in the channels: their order changes marginals."""
    wrapped: Annotated[bool, Changes("masks")] = False
    """Feed BGR less its mean cast to uint8, values modulo 256, as released deeplab-pytorch, L2G and BECO do."""
    gt_prob: Annotated[float, Field(gt=0, lt=1), Changes("masks")] = 0.7
    """Trust in a label, where the unary is made of labels."""
    clip: Annotated[float, Field(gt=0, lt=1), Changes("masks")] = 1e-5
    """Scores are clipped to [clip, 1] before the logarithm."""
    prune: Annotated[float, Field(ge=0, lt=1), Changes("masks")] = 0.0
    """Leave out labels whose largest score is below this; 0 keeps all. Cheaper where a network scores every class."""

    drop: Annotated[float, Field(ge=0, lt=1), Changes("masks")] = 0.0
    """Leave a label out for good once its marginal is below this at every pixel, background aside; 0 keeps all. Only
    the fast engine reads it. An approximation, for networks that score every class: 3e-5 is a careful value, and 1e-3
    changed one label in 6,000 at most on maps of trained networks."""
    engine: Annotated[Engine, Changes("masks")] = "fast"
    """Without numba this becomes ``pydensecrf`` when the settings are made, so that records say what answered."""

    @field_validator("engine")
    @classmethod
    def _available(cls, engine: Engine) -> Engine:
        return engine if has_fast() else "pydensecrf"

    @model_validator(mode="after")
    def _drops(self) -> CRFConfig:
        if self.drop > 0 and self.engine != "fast":
            raise ValueError("drop needs the fast engine: pip install 'wsss-ray[fast]', or leave drop at 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        if data not in PRESETS:
            raise ValueError(f"no CRF preset {data!r}; known: {', '.join(sorted(PRESETS))}")
        return PRESETS[data].model_dump()


def _make_preset(gaussian: tuple[float, float], bilateral: tuple[float, float, float], **more: Any) -> CRFConfig:
    """Settings from (sxy, weight) and (sxy, srgb, weight)."""
    keys = ("gaussian_xy", "gaussian_weight", "bilateral_xy", "bilateral_rgb", "bilateral_weight")
    return CRFConfig.model_validate(dict(zip(keys, (*gaussian, *bilateral), strict=True)) | more)


PRESETS: dict[str, CRFConfig] = {
    "psa": _make_preset((3, 3), (80, 13, 10)),
    "seam": _make_preset((3, 3), (80, 13, 10)),
    "seam_walk": _make_preset((3, 3), (80, 13, 10), iterations=1),
    "seam_segment": _make_preset((3, 3), (32, 13, 10), iterations=1),
    "eps": _make_preset((3, 3), (80, 13, 10)),
    "eps_paper": _make_preset((1, 3), (67, 3, 4)),
    "l2g": _make_preset((3, 3), (80, 13, 10)),
    "ktse": _make_preset((3, 3), (80, 13, 10)),
    "irn": _make_preset((3, 3), (50, 5, 10)),
    "smaf": _make_preset((3, 3), (50, 5, 10)),
    "ssss": _make_preset((3, 3), (80, 13, 10)),
    "wsfcn": _make_preset((3, 3), (30, 13, 10)),
    "deeplab_v2": _make_preset((1, 3), (67, 3, 4), channels="bgr"),
    "deeplab_v2_wrapped": _make_preset((1, 3), (67, 3, 4), channels="bgr", wrapped=True),
    "deeplab_v2_vgg": _make_preset((2, 2), (65, 3, 4), channels="bgr"),
    "deeplab_v2_vgg_wrapped": _make_preset((2, 2), (65, 3, 4), channels="bgr", wrapped=True),
    "largefov": _make_preset((3, 3), (121, 5, 4), channels="bgr"),
    "largefov_wrapped": _make_preset((3, 3), (121, 5, 4), channels="bgr", wrapped=True),
    "largefov_wlh": _make_preset((3, 3), (140, 5, 5), channels="bgr"),
    "beco": _make_preset((1, 3), (67, 3, 4), channels="bgr"),
    "beco_wrapped": _make_preset((1, 3), (67, 3, 4), channels="bgr", wrapped=True),
}
"""Gaussian (sxy, weight), bilateral (sxy, srgb, weight) of the released code of each; ten iterations unless said.

``irn`` and ``smaf`` take label unaries, SMAF over every class of the data set
(``CRFRefinerConfig.num_labels``). ``eps`` is what its code carries, ``eps_paper`` what its README says of the CRF row
in the paper. ``*_wrapped`` is what the released scripts feed, the plain ones what they meant to. ``largefov_wlh`` is
DeepLab-V1-PyTorch's.
"""


def _load_library() -> ModuleType:
    """Import pydensecrf's two-dimensional CRF; UserError where it is not installed."""
    try:
        import pydensecrf.densecrf as densecrf
    except ImportError as error:
        raise UserError(
            "the dense CRF needs pydensecrf: pip install pydensecrf2 (or choose another refiner)"
        ) from error
    library: ModuleType = densecrf
    return library


def wrap_image(image: np.ndarray, mean: tuple[float, float, float] = CAFFE_MEAN) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W, 3) uint8: BGR less ``mean``, truncated, modulo 256 (released deeplab-pytorch)."""
    centred = image[:, :, ::-1].astype(np.float32) - np.asarray(mean, np.float32)
    return (np.trunc(centred).astype(np.int32) & 255).astype(np.uint8)


def make_guide(image: np.ndarray, config: CRFConfig) -> np.ndarray:
    """The (H, W, 3) uint8 image as the colour kernel sees it."""
    if config.wrapped:
        seen = wrap_image(image)
        return np.ascontiguousarray(seen if config.channels == "bgr" else seen[:, :, ::-1])
    return np.ascontiguousarray(image[:, :, ::-1] if config.channels == "bgr" else image)


def compute_score_energy(scores: np.ndarray, clip: float = 1e-5) -> np.ndarray:
    """(n, H, W) scores -> float32 energies -ln of the scores clipped to [clip, 1]."""
    energy: np.ndarray = np.clip(scores, clip, 1.0)
    np.negative(np.log(energy, out=energy), out=energy)
    return energy.astype(np.float32, copy=False)


def compute_label_energy(labels: np.ndarray, num_labels: int, gt_prob: float = 0.7) -> np.ndarray:
    """(H, W) labels in [0, num_labels) -> (num_labels, H, W) float32: -ln gt_prob, elsewhere -ln of an equal share."""
    if num_labels < 2:
        return np.zeros((1, *labels.shape), np.float32)
    energy = np.full((num_labels, labels.size), -np.log((1 - gt_prob) / (num_labels - 1)), np.float32)
    energy[labels.reshape(-1), np.arange(labels.size)] = -np.log(gt_prob)
    return energy.reshape(num_labels, *labels.shape)


def infer_marginals(image: np.ndarray, unaries: np.ndarray, config: CRFConfig, scores: bool = False) -> np.ndarray:
    """Mean-field marginals: (H, W, 3) uint8 RGB and (n, H, W) float32 energies -> (n, H, W) float32 summing to 1.

    With ``scores`` the unaries are scores in [0, 1], whose energies are those of ``compute_score_energy``. Algorithm 1
    of Kraehenbuehl and Koltun. Raises UserError where the sizes differ. A single label needs no inference. The fast
    engine leaves Python's lock to other threads; pydensecrf holds it: use processes.
    """
    num_labels, height, width = unaries.shape
    if image.shape[:2] != (height, width):
        raise UserError(f"CRF: scores are {height}x{width}, the image {image.shape[0]}x{image.shape[1]}: resize first")
    if num_labels == 1:
        return np.ones_like(unaries, dtype=np.float32)
    if config.engine == "fast":
        with suppress(UnfitError):
            return _infer_fast(image, unaries, config, scores)
    elif not has_fast():
        _say_slow()
    return _infer_reference(image, compute_score_energy(unaries, config.clip) if scores else unaries, config)


@lru_cache
def _say_slow() -> None:
    warnings.warn("CRF by pydensecrf, several times slower: pip install 'wsss-ray[fast]'", stacklevel=3)


def _infer_fast(image: np.ndarray, unaries: np.ndarray, config: CRFConfig, scores: bool) -> np.ndarray:
    """``infer_marginals`` by compiled code; images of one size share a lattice, label sets of one image both."""
    if not has_fast():
        raise UserError("the fast CRF needs numba: pip install 'wsss-ray[fast]' here, or set engine=pydensecrf")
    from wsss_ray.refine.dense_crf.lattice import find_bilateral_lattice, find_spatial_lattice
    from wsss_ray.refine.dense_crf.mean_field import LEAST, infer_field

    num_labels, height, width = unaries.shape
    spatial = find_spatial_lattice(height, width, config.gaussian_xy / config.scale, config.gaussian_weight)
    bilateral = find_bilateral_lattice(
        make_guide(image, config), config.bilateral_xy / config.scale, config.bilateral_rgb, config.bilateral_weight
    )
    # A score is its energy's factor already: neither logarithms nor their exponentials.
    factors, least = (unaries, config.clip) if scores else (np.exp(unaries.min(axis=0) - unaries), LEAST)
    planes = np.ascontiguousarray(factors, dtype=np.float32).reshape(num_labels, -1)
    return infer_field(bilateral, spatial, planes, config.iterations, config.drop, least).reshape(unaries.shape)


def _infer_reference(image: np.ndarray, energy: np.ndarray, config: CRFConfig) -> np.ndarray:
    """``infer_marginals`` by pydensecrf."""
    num_labels, height, width = energy.shape
    library = _load_library()
    field = library.DenseCRF2D(width, height, num_labels)
    field.setUnaryEnergy(np.ascontiguousarray(energy, dtype=np.float32).reshape(num_labels, -1))
    if config.gaussian_weight > 0:
        field.addPairwiseGaussian(sxy=config.gaussian_xy / config.scale, compat=config.gaussian_weight)
    if config.bilateral_weight > 0:
        field.addPairwiseBilateral(
            sxy=config.bilateral_xy / config.scale,
            srgb=config.bilateral_rgb,
            rgbim=np.require(make_guide(image, config), requirements=["C", "W"]),
            compat=config.bilateral_weight,
        )
    marginals = np.array(field.inference(config.iterations), dtype=np.float32)
    return marginals.reshape(num_labels, height, width)


def smooth_scores(image: np.ndarray, scores: np.ndarray, config: CRFConfig) -> np.ndarray:
    """Marginals of a CRF on scores: (H, W, 3) uint8 RGB, (n, H, W) in [0, 1], background first -> (n, H, W) float32.

    Labels below ``config.prune``, background aside, come out 0, and the others with not quite the same marginals.
    """
    kept = _find_competing(scores, config)
    if kept.all():
        return infer_marginals(image, scores, config, scores=True)
    marginals = np.zeros(scores.shape, np.float32)
    marginals[kept] = infer_marginals(image, scores[kept], config, scores=True)
    return marginals


def _find_competing(scores: np.ndarray, config: CRFConfig) -> np.ndarray:
    """(n,) bool: the background, and labels that neither ``prune`` nor, before the first step, ``drop`` leaves out."""
    kept = np.ones(len(scores), bool)
    if config.prune > 0 or config.drop > 0:
        largest = scores.reshape(len(scores), -1).max(axis=1)
        # No first marginal is above the label's largest score over the least sum of all.
        least = config.drop * scores.sum(axis=0).min()
        kept = (largest >= config.prune) & (np.maximum(largest, config.clip) >= least)
        kept[0] = True
    return kept


def smooth_labels(image: np.ndarray, labels: np.ndarray, num_labels: int, config: CRFConfig) -> np.ndarray:
    """Marginals of a CRF on labels: (H, W, 3) uint8 RGB, (H, W) in [0, num_labels) -> (num_labels, H, W) float32.

    IRN counts the background and the present classes (compact labels), SMAF every class of the data set.
    """
    return infer_marginals(image, compute_label_energy(labels, num_labels, config.gt_prob), config)


class CRFRefinerConfig(RefinerConfig):
    """Maps smoothed by the dense CRF (Kraehenbuehl and Koltun 2011).

    Its unaries are scores with a background rule (PSA, SEAM), or the seed's labels (SMAF).
    """

    name: Annotated[Literal["crf"], Changes("masks")] = "crf"
    unary: Annotated[Literal["scores", "labels"], Changes("masks")] = "scores"
    background: Annotated[Literal["power", "constant"], Changes("masks")] = "power"
    """Background score: (1 - max)^alpha, or ``threshold`` everywhere; labels come from the same scores."""
    alpha: Annotated[PositiveFloat, Changes("masks")] = 4.0
    threshold: Annotated[Threshold, Changes("masks")] = 0.2
    crf: Annotated[CRFConfig, Changes("masks")] = PRESETS["psa"]
    num_labels: Annotated[PositiveInt | None, Changes("masks")] = None
    """Labels a label unary counts, background included (SMAF: all of the data set's); None counts those present."""

    @property
    def follows_maps(self) -> bool:
        """True where the background constant is Otsu's threshold."""
        return self.background == "constant" and self.threshold == "otsu"

    def settle(self, counts: np.ndarray) -> CRFRefinerConfig:
        """Otsu's threshold of these counts where it is asked for."""
        return self.model_copy(update={"threshold": find_otsu_threshold(counts)}) if self.follows_maps else self

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """The likeliest label per pixel; all background for an image without labels."""
        if not len(maps.classes):
            return np.zeros(maps.size, np.uint8)
        full = maps.full()
        planes = (
            add_power_background(full, self.alpha)
            if self.background == "power"
            else add_constant_background(full, take_number(self.threshold))
        )
        if self.unary == "scores":
            return make_mask(pick_winners(smooth_scores(image, planes, self.crf)), maps.classes)
        num_labels = max(self.num_labels or 0, len(planes))
        marginals = smooth_labels(image, pick_winners(planes), num_labels, self.crf)
        return make_mask(pick_winners(marginals[: len(planes)]), maps.classes)
