"""The names of steps and variants."""

from __future__ import annotations

STEPS = {"seeds": ("best", "fixed"), "masks": ("mask",), "segmentation": ("crf", "multi_scale", "single_scale")}
"""What is scored -> its variants, the one a paper usually prints first."""
