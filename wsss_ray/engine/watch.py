# SPDX-License-Identifier: Apache-2.0
"""Seeds of a few validation images while a localizer trains: for early stopping, and to see one that drifts off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wsss_ray.config import UserError
from wsss_ray.contracts import FusionRule
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.shards import Rows
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.passes import Device
from wsss_ray.engine.validate import choose_evenly
from wsss_ray.score.confusion import compute_scores
from wsss_ray.score.curve import ThresholdCurve

NUM_THRESHOLDS = 50


@dataclass(frozen=True)
class SeedReading:
    """How the seeds of a localizer are read: at a single scale, whatever its scales later."""

    num_classes: int
    localize: LocalizeConfig
    fusion: FusionRule
    normalize: NormalizeConfig
    background: float
    """The method's own threshold."""


def take_single_scale(config: LocalizeConfig) -> LocalizeConfig:
    """How maps are read while a localizer trains: at scale 1 without flips, the rest as given."""
    return config.model_copy(update={"scales": (1.0,), "flip": False})


class SeedWatch:
    """Up to ``limit`` evenly spaced images of a split with their masks, held decoded.

    The only thing in training that reads ground truth, and only where ``train.validate_seeds`` asks for it.
    Raises UserError where the images have no masks.
    """

    def __init__(self, rows: Rows, reading: SeedReading, limit: int) -> None:
        chosen = (rows[index] for index in choose_evenly(len(rows), limit))
        found = [row for row in chosen if row["mask"] is not None]
        if not found:
            raise UserError(
                "train.validate_seeds: the validation split has no masks to score seeds against; "
                "set it to 0, sweep without --asha, or prepare the data with masks"
            )
        self.images = [
            LabelledImage(row["image_id"], decode_image(row["image"], row["image_id"]), tuple(row["labels"]))
            for row in found
        ]
        self.truths = [decode_mask(row["mask"], row["image_id"]) for row in found]
        self.reading = reading
        self.config = take_single_scale(reading.localize)

    def score_seeds(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Of single-scale seeds, in [0, 1]: ``seed_miou`` at their best threshold; ``seed_recall`` and
        ``seed_precision`` at the method's own, means over the foreground classes there are.

        NaN where no class of theirs is in the truth (recall) or predicted; the network is left in the mode it was in.
        """
        reading = self.reading
        training = network.training
        network.eval()
        on = Device(reading.normalize, device)
        maps = read_class_maps(network, self.images, self.config, reading.fusion, on)  # type: ignore[arg-type]
        network.train(training)
        num_labels = reading.num_classes + 1
        curve = ThresholdCurve([step / NUM_THRESHOLDS for step in range(NUM_THRESHOLDS)], num_labels)
        # A curve of its own: the method's threshold must not become a candidate for the best one.
        fixed = ThresholdCurve([reading.background], num_labels)
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
