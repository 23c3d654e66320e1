# SPDX-License-Identifier: Apache-2.0
"""What every refiner promises: class maps and the image in, a mask out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from wsss_ray.config import Changes, Config, Precision
from wsss_ray.contracts import ClassMaps, Need
from wsss_ray.nets.backbone import Backbone

Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["otsu"]
"""A background constant, or ``otsu``: the threshold that parts the values of all training images' maps best (Otsu
1979), which reads no ground truth."""


class RefinerConfig(Config):
    """Settings of one refiner; ``name`` picks it.

    Each field says what it changes: ``Changes("weights")`` what trains the refiner's network, ``Changes("masks")`` what
    only ``refine`` reads, so that masks made with another value need no other network.
    """

    name: Annotated[str, Changes("masks")]
    trainable: ClassVar[bool] = False
    """True where a network is trained first (PSA, IRN) on masks that ``labels`` makes from the same maps."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What the batches of that network must carry."""

    @property
    def network_precision(self) -> Precision:
        """What that network computes in where masks are made."""
        return "fp32"

    @property
    def follows_maps(self) -> bool:
        """True where settings are taken from the values of all maps, by ``settle``, before anything is refined."""
        return False

    def settle(self, counts: np.ndarray) -> RefinerConfig:
        """The refiner to run over maps whose values were counted so (``refine.histogram.count_values``, all images
        together): itself, unless it ``follows_maps``.
        """
        return self

    def training_labels(self) -> RefinerConfig:
        """The refiner that makes that network's training masks."""
        raise TypeError(f"refiner {self.name!r} trains no network")

    def build(self, backbone: Backbone, num_classes: int) -> nn.Module:
        """The network to train (``contracts.Trainable``), where there is one; the caller sets its ``normalize``."""
        raise TypeError(f"refiner {self.name!r} trains no network")

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB and the maps of its present classes -> (H, W) uint8 mask: 0, class + 1, or 255."""
        raise TypeError(f"refiner {self.name!r} has no refine()")

    def refine_many(
        self,
        images: Sequence[np.ndarray],
        maps: Sequence[ClassMaps],
        network: nn.Module | None = None,
        bf16: bool = False,
    ) -> list[np.ndarray]:
        """``refine`` of images of one size; with a network they may pass it together, in bfloat16 where asked."""
        return [self.refine(image, one, network) for image, one in zip(images, maps, strict=True)]
