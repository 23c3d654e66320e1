# SPDX-License-Identifier: Apache-2.0
"""Classical saliency of images that come without any, by OpenCV: nothing is trained, and no class is known.

``border_cut``, the default: what differs in colour from the image's border (Zhang et al. 2015, MB+'s backgroundness:
Lab distance to each border strip under that strip's covariance), times a centre prior, starts GrabCut (as in
SaliencyCut, Cheng et al. 2015). ``fine_grained`` (Montabone and Soto 2010) and ``spectral_residual`` (Hou and Zhang
2007) are OpenCV's own static detectors, min-max normalised. EPS took PFAN and L2G PoolNet, both trained on masks of
salient objects: numbers made with these maps are not comparable with theirs.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data.detector import Detector, Find, stretch

CUT_SIDE = 240
"""Long side GrabCut works at."""
CUT_ROUNDS = 3
STRIP = 0.06
"""Width of a border strip, of the shorter side."""
LEVELS = (0.35, 0.6, 0.93)
"""Quantiles of the start: below is surely background, above perhaps and above surely object."""


def load_opencv() -> ModuleType:
    """OpenCV with its saliency module, on one thread; UserError says how to install it."""
    try:
        import cv2

        cv2.saliency.StaticSaliency  # noqa: B018  the attribute is what is looked for
    except (ImportError, AttributeError) as error:
        raise UserError(
            "saliency detection needs OpenCV with its contrib modules: pip install 'wsss-ray[saliency]'"
        ) from error
    cv2.setNumThreads(1)
    module: ModuleType = cv2
    return module


def open_border_cut() -> Detector:
    """The object GrabCut finds, started by what differs from the border."""
    return _by_opencv(cut_from_border)


def open_fine_grained() -> Detector:
    """Montabone and Soto 2010."""
    return _by_opencv(detect_fine_grained)


def open_spectral_residual() -> Detector:
    """Hou and Zhang 2007."""
    return _by_opencv(detect_spectral_residual)


def _by_opencv(find: Find) -> Detector:
    return Detector(find, {"library": f"opencv {load_opencv().__version__}"})


def detect_fine_grained(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: Montabone and Soto 2010, by OpenCV."""
    return _run_static(load_opencv().saliency.StaticSaliencyFineGrained_create(), image)


def detect_spectral_residual(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: Hou and Zhang 2007, by OpenCV."""
    return _run_static(load_opencv().saliency.StaticSaliencySpectralResidual_create(), image)


def _run_static(made: Any, image: np.ndarray) -> np.ndarray:
    found, values = made.computeSaliency(np.ascontiguousarray(image[..., ::-1]))
    return stretch(np.asarray(values, np.float32)) if found else np.zeros(image.shape[:2], np.float32)


def cut_from_border(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: the object GrabCut finds, soft at its edge."""
    cv2 = load_opencv()
    height, width = image.shape[:2]
    shrink = min(1.0, CUT_SIDE / max(height, width))
    size = (max(8, round(width * shrink)), max(8, round(height * shrink)))
    small = cv2.resize(np.ascontiguousarray(image[..., ::-1]), size, interpolation=cv2.INTER_AREA)
    start = measure_border_distance(cv2, small) * make_centre_prior(*small.shape[:2])
    start = stretch(cv2.GaussianBlur(start, (0, 0), 0.02 * max(size)))
    low, middle, high = np.quantile(start, LEVELS)
    marks = np.full(start.shape, cv2.GC_PR_BGD, np.uint8)
    marks[start > middle] = cv2.GC_PR_FGD
    marks[start >= high] = cv2.GC_FGD
    marks[start < low] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # GrabCut's clusters start at random.
    try:
        cv2.grabCut(small, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), CUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
        inside = ((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)).astype(np.float32)
    except cv2.error:
        inside = start
    soft = cv2.GaussianBlur(inside, (0, 0), 1.0)
    full: np.ndarray = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    return full


def measure_border_distance(cv2: ModuleType, bgr: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: Mahalanobis distance in Lab to the four border strips, summed without the largest.

    The largest is left out because an object may touch one side (Zhang et al. 2015).
    """
    smooth = cv2.GaussianBlur(bgr, (5, 5), 0).astype(np.float32) / 255
    lab = cv2.cvtColor(smooth, cv2.COLOR_BGR2LAB).astype(np.float64)
    band = max(2, int(STRIP * min(lab.shape[:2])))
    distances = []
    for strip in (lab[:band], lab[-band:], lab[:, :band], lab[:, -band:]):
        colours = strip.reshape(-1, 3)
        inverse = np.linalg.inv(np.cov(colours.T) + 5 * np.eye(3))
        off = lab - colours.mean(axis=0)
        distances.append(np.sqrt(np.einsum("hwi,ij,hwj->hw", off, inverse, off)))
    return stretch((np.sum(distances, axis=0) - np.max(distances, axis=0)).astype(np.float32))


def make_centre_prior(height: int, width: int) -> np.ndarray:
    """(H, W) in (0, 1]: a Gaussian a third of each side wide."""
    y, x = np.mgrid[:height, :width]
    off = ((y - (height - 1) / 2) / (height / 3)) ** 2 + ((x - (width - 1) / 2) / (width / 3)) ** 2
    prior: np.ndarray = np.exp(-off / 2).astype(np.float32)
    return prior
