"""Seeds of a few validation images while a localizer trains: for early stopping, and to see one that drifts off."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from wsss_ray.config import UserError
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.shards import Rows
from wsss_ray.engine.localize import class_maps
from wsss_ray.recipe import Localization
from wsss_ray.score.confusion import compute_scores
from wsss_ray.score.curve import ThresholdCurve

THRESHOLDS = 50
BATCH = 8


class SeedWatch:
    """Up to ``limit`` evenly spaced images of a split with their masks, held decoded.

    The only thing in training that reads ground truth, and only where ``train.validate_seeds`` asks for it.
    Raises UserError where the images have no masks.
    """

    def __init__(self, rows: Rows, num_classes: int, localization: Localization, limit: int) -> None:
        count = min(limit, len(rows))
        chosen = sorted({round(float(place)) for place in np.linspace(0, len(rows) - 1, count)}) if count else []
        found = [row for row in (rows[index] for index in chosen) if row["mask"] is not None]
        if not found:
            raise UserError(
                "train.validate_seeds: the validation split has no masks to score seeds against; "
                "set it to 0, sweep without --asha, or prepare the data with masks"
            )
        self.ids = [row["image_id"] for row in found]
        self.present = [list(row["labels"]) for row in found]
        self.images = [decode_image(row["image"], row["image_id"]) for row in found]
        self.truths = [decode_mask(row["mask"], row["image_id"]) for row in found]
        self.num_classes, self.normalize = num_classes, localization.net.normalize
        self.config = localization.localize.model_copy(update={"scales": (1.0,), "flip": False})
        self.background = localization.method.background()

    def score(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Of single-scale seeds, in [0, 1]: ``seed_miou`` at their best threshold; ``seed_recall`` and
        ``seed_precision`` at the method's own, means over the foreground classes there are.

        NaN where no class of theirs is in the truth (recall) or predicted; the network is left in the mode it was in.
        """
        training = network.training
        network.eval()
        maps = class_maps(
            network, self.ids, self.images, self.present, self.config, self.normalize, device, batch_size=BATCH
        )
        network.train(training)
        curve = ThresholdCurve([step / THRESHOLDS for step in range(THRESHOLDS)], self.num_classes + 1)
        # A curve of its own: the method's threshold must not become a candidate for the best one.
        fixed = ThresholdCurve([self.background], self.num_classes + 1)
        for found, truth in zip(maps, self.truths, strict=True):
            full = found.full()
            curve.add(truth, found.classes, full, found.image_id)
            fixed.add(truth, found.classes, full, found.image_id)
        own = compute_scores(fixed.matrices()[0])
        return {
            "seed_miou": curve.best()[1],
            "seed_recall": own.recall_foreground,
            "seed_precision": own.precision_foreground,
        }
