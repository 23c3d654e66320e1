# SPDX-License-Identifier: Apache-2.0
"""What refiners with a network of their own share: how it gets its labels, and masks of many images in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from wsss_ray.config import Changes, Precision, UserError
from wsss_ray.contracts import ClassMaps, Need
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.labels import LabelRefiner
from wsss_ray.refine.planes import make_mask


class TrainedRefinerConfig(RefinerConfig):
    """A refiner whose network is trained first: it says how it is built, and what scores come of it."""

    trainable: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"mask"})
    network_class: ClassVar[type[nn.Module]]
    """What ``build`` returns."""
    # Nothing by itself: the masks it makes are an input of the training, by their digest.
    labels: Annotated[LabelRefiner, Changes("nothing")]
    """Refiner that makes the network's training masks from the same maps; its 255 pixels teach nothing."""
    precision: Annotated[Precision, Changes("masks")] = "fp32"
    """What the trained network computes in; the random walk is always fp32."""

    @property
    def network_precision(self) -> Precision:
        """``precision``."""
        return self.precision

    def training_labels(self) -> RefinerConfig:
        """``labels``."""
        return self.labels

    def score_images(
        self, images: Sequence[np.ndarray], maps: Sequence[ClassMaps], network: Any, bf16: bool
    ) -> Iterable[Tensor]:
        """(P + 1, H, W) scores of each of some images of one size: background, then the P classes of its maps."""
        raise NotImplementedError

    def read_mask(self, scores: Tensor, maps: ClassMaps) -> np.ndarray:
        """(P + 1, H, W) scores -> the (H, W) uint8 mask of the largest."""
        # max is many times as fast as argmax over the first axis on a CPU.
        return make_mask(scores.max(dim=0).indices.cpu().numpy(), maps.classes)

    def refine(self, image: np.ndarray, maps: ClassMaps, network: nn.Module | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB and its class maps -> (H, W) uint8 mask, computed where the trained network is."""
        return self.refine_many([image], [maps], network)[0]

    @torch.inference_mode()
    def refine_many(
        self,
        images: Sequence[np.ndarray],
        maps: Sequence[ClassMaps],
        network: nn.Module | None = None,
        bf16: bool = False,
    ) -> list[np.ndarray]:
        """The masks of images of one size, all in one pass of the network; those without maps are background.

        UserError without its network.
        """
        if not isinstance(network, self.network_class):
            name = self.network_class.__name__
            raise UserError(f"refiner {self.name!r} needs its trained {name}: run the step that trains it first")
        network.eval()
        masks = [np.zeros(image.shape[:2], np.uint8) for image in images]
        places = [place for place, one in enumerate(maps) if len(one.classes)]
        if places:
            chosen = [images[place] for place in places], [maps[place] for place in places]
            for place, scores in zip(places, self.score_images(*chosen, network, bf16), strict=True):
                masks[place] = self.read_mask(scores, maps[place])
        return masks
