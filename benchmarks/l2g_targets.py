# SPDX-License-Identifier: Apache-2.0
"""What the targets of a trained L2G are worth: read as masks, beside its teacher's attention and its student's answer.

    python -m benchmarks.l2g_targets RUN [RUN ...]

Random crops and views of the training images as in training, without augmentation; one scale, labels of the image
given, each at its best threshold of nine. A student cannot learn from its teacher what no target holds. Of runs of
other methods the answers in the same views are read, to compare with. Also counted: views in which an object of a label
is not to be seen, or without its head (generated images).
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wsss_ray.artifacts.network import TrainedNetwork, open_localizer
from wsss_ray.artifacts.record import RunFolder, open_run
from wsss_ray.data.image import decode_image, decode_mask, decode_saliency
from wsss_ray.data.manifest import open_data
from wsss_ray.data.shards import read_shard
from wsss_ray.data.source import Row
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.passes import Device
from wsss_ray.methods.l2g.losses import compute_attention
from wsss_ray.methods.l2g.network import L2G
from wsss_ray.methods.views import crop_views, sample_boxes
from wsss_ray.score.confusion import Counts, compute_mean_iou, count_confusion

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))
PATCH, NUM_VIEWS = 80, 4
"""The views of runs of other methods: those of L2G on the toy."""
HEAD = 1
"""Of the parts of generated images."""


@dataclass
class Crop:
    """A training image as L2G sees it."""

    pixels: np.ndarray
    mask: np.ndarray
    parts: np.ndarray | None
    saliency: Tensor | None
    """(1, 1, S, S) in [0, 1]."""
    classes: tuple[int, ...]


@dataclass
class Masks:
    """One way of reading masks, counted at every threshold."""

    num_labels: int
    counts: dict[float, np.ndarray] = field(default_factory=dict)
    """Threshold -> confusion matrix."""

    def add(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """(C, H, W) scores in [0, 1] against (H, W) labels."""
        for threshold in THRESHOLDS:
            winner = np.where(scores.max(axis=0) > threshold, scores.argmax(axis=0) + 1, 0)
            found = count_confusion(truth, winner, self.num_labels)
            self.counts[threshold] = self.counts.get(threshold, 0) + found

    def describe(self) -> str:
        """mIoU at the best threshold, and what became of the objects' pixels there."""
        scores = {threshold: float(compute_mean_iou(Counts.of(matrix))) for threshold, matrix in self.counts.items()}
        best = max(scores, key=lambda threshold: scores[threshold])
        matrix = self.counts[best]
        objects, right, missed = matrix[1:].sum(), np.diag(matrix)[1:].sum(), matrix[1:, 0].sum()
        return (
            f"{100 * scores[best]:.1f} at {best:g}; of the objects {100 * right / objects:.0f} % right, "
            f"{100 * missed / objects:.0f} % missed, {100 * (objects - right - missed) / objects:.0f} % another class"
        )


def draw_crops(run: RunFolder, num_images: int) -> Iterator[Crop]:
    """Random crops of the first training images, of the run's size."""
    data, side = open_data(run.record["data"]), run.recipe["train"]["augment"]["crop"]
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for name, _ in data.shards(run.recipe["data"]["train_split"]):
        rows += read_shard(data.uri, name)
        if len(rows) >= num_images:
            break
    for row in rows[:num_images]:
        pixels = decode_image(row["image"])
        top, left = (int(rng.integers(0, max(1, length - side + 1))) for length in pixels.shape[:2])
        part = np.s_[top : top + side, left : left + side]
        saliency = None if row["saliency"] is None else decode_saliency(row["saliency"])[part]
        yield Crop(
            pixels[part],
            decode_mask(row["mask"])[part],
            None if row["parts"] is None else decode_mask(row["parts"])[part],
            None if saliency is None else torch.from_numpy(saliency / np.float32(255))[None, None],
            tuple(row["labels"]),
        )


class Reader:
    """One run's network over crops."""

    def __init__(self, run: RunFolder, trained: TrainedNetwork) -> None:  # type: ignore[type-arg]
        self.method, self.net = trained.spec.localization.method, trained.spec.localization.net
        self.network = trained.network.eval()
        self.localizer = trained.localizer
        self.on = Device(self.net.normalize, torch.device("cpu"))
        self.num_classes = trained.spec.num_classes
        self.masks: dict[str, Masks] = defaultdict(lambda: Masks(self.num_classes + 1))
        self.views: Counter[str] = Counter()

    def read(self, crop: Crop) -> None:
        """Count one crop's views."""
        size = (crop.pixels.shape[0], crop.pixels.shape[1])
        side = min(getattr(self.method, "patch_size", PATCH), *size)
        boxes = sample_boxes("random", 1, getattr(self.method, "num_views", NUM_VIEWS), side, size)
        answer = self._answer([crop.pixels], crop.classes)[0]
        patches = [crop.pixels[top:bottom, left:right] for left, top, right, bottom in boxes[0].tolist()]
        readings = {"answer": crop_all(answer, boxes), "answer to a view alone": self._answer(patches, crop.classes)}
        if isinstance(self.network, L2G):
            readings |= self._read_targets(self.network, crop, boxes)
        for place, (left, top, right, bottom) in enumerate(boxes[0].tolist()):
            truth = crop.mask[top:bottom, left:right]
            for name, found in readings.items():
                self.masks[name].add(found[place], truth)
            parts = None if crop.parts is None else crop.parts[top:bottom, left:right]
            for label in crop.classes:
                self.views["all"] += 1
                seen = truth == label + 1
                self.views["no object"] += not seen.any()
                if parts is not None:
                    self.views["no head"] += bool(seen.any()) and not (seen & (parts == HEAD)).any()

    def _answer(self, images: list[np.ndarray], classes: tuple[int, ...]) -> np.ndarray:
        """(N, C, H, W) maps of images of one size, on their pixels."""
        config = LocalizeConfig(scales=(1.0,), flip=False, stride=1)
        asked = [LabelledImage("", image, classes) for image in images]
        found = np.zeros((len(images), self.num_classes, *images[0].shape[:2]), np.float32)
        for place, maps in enumerate(read_class_maps(self.localizer, asked, config, self.method.fusion(), self.on)):
            found[place, maps.classes] = maps.maps
        return found

    def _read_targets(self, network: L2G, crop: Crop, boxes: Tensor) -> dict[str, np.ndarray]:
        labels = torch.zeros(1, self.num_classes)
        labels[0, list(crop.classes)] = 1
        labels = labels.repeat_interleave(boxes.shape[1], dim=0)
        views = crop_views(self.net.normalize.apply(crop.pixels)[None], boxes)
        with torch.inference_mode():
            scores = network.local_scores(views)
            attention = compute_attention(scores, labels)[:, : self.num_classes]
            target = network.make_target(scores, labels, crop.saliency, boxes)[:, : self.num_classes]
        return {"teacher's attention": enlarge(attention, views), "target": enlarge(target, views)}


def crop_all(planes: np.ndarray, boxes: Tensor) -> np.ndarray:
    """(K, H, W) -> (N, K, p, p) under each view."""
    return np.stack([planes[:, top:bottom, left:right] for left, top, right, bottom in boxes[0].tolist()])


def enlarge(planes: Tensor, views: Tensor) -> np.ndarray:
    """(N, K, h, w) on the views' pixels, bilinear."""
    size = (views.shape[2], views.shape[3])
    found: np.ndarray = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False).numpy()
    return found


def main() -> None:
    """A few lines per run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.l2g_targets", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    for name in given.runs:
        run = open_run(name)
        folder = run.artifact("network")
        assert folder is not None
        torch.manual_seed(0)
        reader = Reader(run, open_localizer(folder))
        for crop in draw_crops(run, given.images):
            reader.read(crop)
        print(f"{name.rstrip('/').rpartition('/')[2]} (seed {run.recipe['seed']})")
        for what, masks in reader.masks.items():
            print(f"  {what}: mIoU {masks.describe()}")
        views = reader.views
        print(
            f"  labels of views: {views['no object'] / views['all']:.1%} without their object, "
            f"{views['no head'] / views['all']:.1%} with it and without its head"
        )


if __name__ == "__main__":
    main()
