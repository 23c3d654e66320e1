# SPDX-License-Identifier: Apache-2.0
"""Saliency of images that come without any: the detectors by name, and the note that says what made a map.

The classical ones are in ``saliency_opencv.py``; ``onnx`` runs a trained network (``saliency_onnx.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data.detector import Detector
from wsss_ray.data.options import convert_options
from wsss_ray.registry import OWN, Lazy, Registry

VERSION = 1
"""Raised when a change here changes maps."""
NOTE = "saliency.json"
"""Lies beside the maps and says what made them."""
DETECTORS: Registry[Callable[..., Detector]] = Registry(
    "wsss_ray.detectors",
    "saliency detector",
    {
        "border_cut": Lazy("wsss_ray.data.saliency_opencv:open_border_cut"),
        "fine_grained": Lazy("wsss_ray.data.saliency_opencv:open_fine_grained"),
        "spectral_residual": Lazy("wsss_ray.data.saliency_opencv:open_spectral_residual"),
        "onnx": Lazy("wsss_ray.data.saliency_onnx:open_onnx"),
    },
)
"""Each takes keyword-only options and returns a detector that is ready; UserError where something is missing."""


def open_detector(name: str, options: Mapping[str, Any] | None = None) -> Detector:
    """The detector of this name; ``made`` is then all that its note says. UserError lists the known names and options.

    Options are those of ``--set detector.KEY=VALUE``, as typed or converted.
    """
    opener = DETECTORS[name]
    opened = opener(**convert_options(name, opener, options or {}, "saliency detector"))
    made = {"library": DETECTORS.origin(name), **opened.made, "detector": name, "detector_version": VERSION}
    return Detector(opened.find, made)


def detect_saliency(image: np.ndarray, detector: Detector) -> np.ndarray:
    """Soft saliency of an image: (H, W, 3) uint8 RGB -> (H, W) uint8; an image of one colour has none."""
    height, width = image.shape[:2]
    if min(height, width) < 8 or int(np.ptp(image)) == 0:
        return np.zeros((height, width), np.uint8)
    found: np.ndarray = np.rint(np.clip(detector.find(image), 0, 1) * 255).astype(np.uint8)
    return found


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
    known = made or {}
    name = str(known.get("detector"))
    if name not in DETECTORS:
        return "saliency as given with the data"
    network = known.get("network")
    kind = "classical " if DETECTORS.origin(name) == OWN and not network else ""
    return f"saliency by {kind}{name}{f' {network}' if network else ''} ({known.get('library', 'opencv')})"
