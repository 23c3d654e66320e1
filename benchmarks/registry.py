# SPDX-License-Identifier: Apache-2.0
"""Every module of this folder, once: claims that ``python -m benchmarks`` runs, commands of their own, and the rest."""

from __future__ import annotations

import importlib

from benchmarks.claim import Claim

CLAIMS = (
    "crf",
    "maps",
    "walk",
    "thresholds",
    "overhead",
    "memory",
    "coco_memory",
    "methods",
    "start",
    "verify",
    "sweep",
    "perfect_masks",
)
"""In the order in which they run; each declares ``CLAIM``. ``verify`` reads the run that ``start`` leaves."""
COMMANDS = ("gpu", "simulate", "grid_offset", "l2g_targets", "crf_drop")
"""``python -m benchmarks.NAME``; these have no second side, or run where the others cannot."""
PARTS = ("claim", "registry", "runner", "report", "machine", "images", "gpu_methods", "gpu_report", "schedule")
"""What the others are made of."""


def load_claim(name: str) -> Claim:
    """The claim of a module; KeyError for a name that is none."""
    if name not in CLAIMS:
        raise KeyError(name)
    claim: Claim = importlib.import_module(f"benchmarks.{name}").CLAIM
    return claim
