# SPDX-License-Identifier: Apache-2.0
"""What perfect masks give each head on the toy's trunk: the segmenters of the scale ``toy`` against a linear head.

Every head trains on the ground truth of the toy's training images, with the recipe of ``deeplab_v1`` at ``toy``, and is
scored on its validation images at one scale, without CRF. The linear head is deeplab-pytorch's 1x1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.claim import Claim, Given, Pair, Reading
from wsss_ray.artifacts.network import SegmenterSpec
from wsss_ray.data.samples import Lookups, Sampling, TrainSamples
from wsss_ray.data.shards import Rows, write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig, draw_image
from wsss_ray.engine.train import Training, train_network
from wsss_ray.engine.validate import World
from wsss_ray.nets.deeplab import DeepLab
from wsss_ray.recipe import SegmentConfig
from wsss_ray.score.confusion import compute_scores, count_confusion, make_matrix
from wsss_ray.studies import cam
from wsss_ray.studies._scales import TOY


def choose_segmenter(head: str) -> SegmentConfig:
    """The segment step of ``toy`` with this head."""
    if head != "linear":
        chosen: SegmentConfig = TOY[head]["segment"]
        return chosen
    base: SegmentConfig = TOY["deeplab_v1"]["segment"]
    return base.model_copy(update={"network": base.network.model_copy(update={"kind": "linear"})})


@cache
def read_truth(toy: ToyConfig, image_id: str) -> np.ndarray:
    """The mask of an image by its id."""
    split, index = image_id.split("_")
    return draw_image(toy, split, int(index))[1]


def measure_head(head: str, folder: Path, toy: ToyConfig, seed: int) -> float:
    """mIoU in percent on the validation images."""
    segment = choose_segmenter(head)
    rows = Rows(str(folder / "data"), "train", cache=folder / "cache")
    lookups = Lookups(mask=lambda image_id: read_truth(toy, image_id))
    sampling = Sampling(segment.train.augment, segment.net.normalize, seed, {"mask"})
    samples = TrainSamples(rows, toy.num_classes, sampling, lookups)
    torch.manual_seed(seed)
    network = SegmenterSpec(num_classes=toy.num_classes, segment=segment).build(pretrained=True)
    assert isinstance(network, DeepLab)
    config = segment.train.model_copy(update={"validate_images": 0})
    train_network(network, Training(samples, config, seed, World(0, 1, torch.device("cpu")), threads=1))
    network.eval()
    matrix = make_matrix(toy.num_classes + 1)
    for index in range(toy.num_val):
        rgb, mask, _, _ = draw_image(toy, "val", index)
        with torch.inference_mode():
            guess = network.scores(segment.net.normalize.apply(rgb)[None])[0].argmax(0)
        matrix += count_confusion(mask, guess.numpy().astype(np.uint8), toy.num_classes + 1)
    return 100 * compute_scores(matrix).miou


def measure(given: Given) -> Iterator[Pair]:
    """Both heads against the linear one; a round is a seed."""
    toy = cam.recipe("toy").data.toy
    folder = given.scratch / "perfect_masks"
    write_dataset(open_source("toy", config=toy), str(folder / "data"))

    def read(head: str, seeds: Iterator[int]) -> Reading:
        return {"mIoU %": measure_head(head, folder, toy, next(seeds))}

    for head in ("deeplab_v1", "deeplab_v2"):
        yield Pair(
            head, top=partial(read, head, count()), bottom=partial(read, "linear", count()), rounds=3, warm=False
        )


CLAIM = Claim(
    says="on the toy's trunk the heads of DeepLab learn perfect masks as well as a linear one",
    ratio="head / linear head",
    measure=measure,
    seconds=600,
    quick=False,
)
