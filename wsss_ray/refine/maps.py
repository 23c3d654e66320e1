"""One picture's class maps as they travel between stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class ClassMaps:
    """Fused, normalised maps of the classes present in one picture."""

    image_id: str
    classes: np.ndarray
    """(P,) int32, 0-based foreground classes present, ascending."""
    maps: np.ndarray
    """(P, h, w) float32 in [0, 1] on the stored grid (picture size divided by the localize stage's stride)."""
    size: tuple[int, int]
    """(H, W) of the picture."""

    def full(self) -> np.ndarray:
        """(P, H, W) float32: the maps at picture size (bilinear, align_corners False)."""
        if self.maps.shape[0] == 0 or self.maps.shape[1:] == self.size:
            return (
                self.maps.reshape(len(self.classes), *self.maps.shape[1:])
                if len(self.classes)
                else np.zeros((0, *self.size), np.float32)
            )
        grid = torch.from_numpy(np.ascontiguousarray(self.maps))[None]
        return F.interpolate(grid, size=self.size, mode="bilinear", align_corners=False)[0].numpy()
