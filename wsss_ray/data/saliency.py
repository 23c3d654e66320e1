"""Classical saliency of images that come without any, by OpenCV: nothing is trained, and no class is known.

``border_cut``, the default: what differs in colour from the image's border (Zhang et al. 2015, MB+'s backgroundness:
Lab distance to each border strip under that strip's covariance), times a centre prior, starts GrabCut (as in
SaliencyCut, Cheng et al. 2015). ``fine_grained`` (Montabone and Soto 2010) and ``spectral_residual`` (Hou and Zhang
2007) are OpenCV's own static detectors, min-max normalised. EPS took PFAN and L2G PoolNet, both trained on masks of
salient objects: numbers made with these maps are not comparable with theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.registry import OWN, Registry

Detector = Callable[[ModuleType, np.ndarray], np.ndarray]
"""(OpenCV, (H, W, 3) uint8 RGB of at least 8 x 8) -> (H, W) float32, soft saliency in [0, 1]."""
VERSION = 1
"""Raised when a change here changes maps."""
NOTE = "saliency.json"
"""Lies beside the maps and says what made them."""

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


def describe_detector(detector: str) -> dict[str, Any]:
    """What ``saliency.json`` says: detector, library and both versions."""
    DETECTORS[detector]
    origin = DETECTORS.origin(detector)
    library = f"opencv {load_opencv().__version__}" if origin == OWN else origin
    return {"detector": detector, "detector_version": VERSION, "library": library}


def detect_saliency(image: np.ndarray, detector: str = "border_cut") -> np.ndarray:
    """Soft saliency of an image: (H, W, 3) uint8 RGB -> (H, W) uint8; an image of one colour has none."""
    detect_in = DETECTORS[detector]
    height, width = image.shape[:2]
    if min(height, width) < 8 or int(np.ptp(image)) == 0:
        return np.zeros((height, width), np.uint8)
    found: np.ndarray = np.rint(np.clip(detect_in(load_opencv(), image), 0, 1) * 255).astype(np.uint8)
    return found


def detect_fine_grained(cv2: ModuleType, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: Montabone and Soto 2010, by OpenCV."""
    return _run_static(cv2.saliency.StaticSaliencyFineGrained_create(), image)


def detect_spectral_residual(cv2: ModuleType, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: Hou and Zhang 2007, by OpenCV."""
    return _run_static(cv2.saliency.StaticSaliencySpectralResidual_create(), image)


def _run_static(made: Any, image: np.ndarray) -> np.ndarray:
    found, values = made.computeSaliency(np.ascontiguousarray(image[..., ::-1]))
    return stretch(np.asarray(values, np.float32)) if found else np.zeros(image.shape[:2], np.float32)


def cut_from_border(cv2: ModuleType, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]: the object GrabCut finds, soft at its edge."""
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


def stretch(values: np.ndarray) -> np.ndarray:
    """Shifted and scaled to [0, 1]; a constant becomes 0."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return scaled


def read_origin(folder: str | Path | None) -> dict[str, Any] | None:
    """What made the maps in a folder, for a manifest; None where there are none, "given" where nobody says."""
    if folder is None:
        return None
    note = Path(folder) / NOTE
    if not note.is_file():
        return {"detector": "given"}
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{note}: not JSON ({error}); make the maps again or delete the note") from error
    return dict(found) if isinstance(found, dict) else {"detector": "given"}


def name_origin(made: dict[str, Any] | None) -> str:
    """How a score names the maps its method was given."""
    name = str((made or {}).get("detector"))
    if name in DETECTORS:
        kind = "classical " if DETECTORS.origin(name) == OWN else ""
        return f"saliency by {kind}{name} ({(made or {}).get('library', 'opencv')})"
    return "saliency as given with the data"


DETECTORS: Registry[Detector] = Registry(
    "wsss_ray.detectors",
    "saliency detector",
    {
        "border_cut": cut_from_border,
        "fine_grained": detect_fine_grained,
        "spectral_residual": detect_spectral_residual,
    },
)
