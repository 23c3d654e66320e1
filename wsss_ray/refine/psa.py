# SPDX-License-Identifier: Apache-2.0
"""AffinityNet: features whose distance says whether two cells share a class, and a random walk over them (PSA)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import Batch, ClassMaps, Need, ParamGroup, Progress
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters
from wsss_ray.refine.grid import (
    Normalizer,
    compute_grid,
    describe_taps,
    make_network_input,
    normalize_for_imagenet,
    resize_to_grid,
    vote_mask,
)
from wsss_ray.refine.labels import LabelRefiner
from wsss_ray.refine.pairs import (
    compute_affinity_losses,
    compute_source_grid,
    label_pairs,
    list_search_offsets,
    view_windows,
)
from wsss_ray.refine.planes import add_power_background
from wsss_ray.refine.random_walk import scale_exp_times, spread_scores
from wsss_ray.refine.seeds import ConfidentPowerSeedsConfig
from wsss_ray.refine.trained import TrainedRefinerConfig

STRIDE = 8
"""Features, labels and scores live on the image's grid divided by this."""
WIDTHS = (64, 128, 256)
LABELS_NOTE = "labels of AffinityNet are voted by each cell's pixels, where released PSA averages their scores first"
"""What labels of ours differ in; a study's row says it."""


class AffinityNet(nn.Module):
    """Three taps of a backbone, 1x1 to 64, 128 and 256 channels with ELU, mixed by one more 1x1.

    PSA Sec. 3.2, as released in ``network/resnet38_aff.py``.

    ``taps`` from shallow to deep; on ResNet-38 the default ones are released PSA's. The backbone learns too, as far as
    it is not frozen. ``padding``: released PSA pads training crops before normalising, so that the canvas is
    ``black``; ``mean`` leaves it the mean colour. ``normalize`` says what black is and how ``refine`` makes its input;
    set it where training did not use ImageNet's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"mask"})

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        radius: int = 5,
        padding: Literal["black", "mean"] = "black",
        taps: Sequence[str] = ("conv4", "conv5", "out"),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes, self.radius, self.padding, self.taps = num_classes, radius, padding, list(taps)
        channels, self.strides = describe_taps(backbone, self.taps)
        convs = [nn.Conv2d(num, width, 1, bias=False) for num, width in zip(channels, WIDTHS, strict=True)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
        self.reduce = nn.ModuleList(convs)
        self.mix = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)
        self.normalize: Normalizer = normalize_for_imagenet

    def head(self, taps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Taps (B, c, ., .) -> (B, 448, h, w)."""
        parts = [
            F.elu(reduce(resize_to_grid(tap, stride / STRIDE, grid)))
            for tap, stride, reduce in zip(taps, self.strides, self.reduce, strict=True)
        ]
        return F.elu(self.mix(torch.cat(parts, dim=1)))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 448, ceil(H / 8), ceil(W / 8))."""
        taps = self.backbone(images)
        return self.head([taps[name] for name in self.taps], compute_grid(images.shape[2:], STRIDE))

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Background / 4 + foreground / 4 + different / 2 over pairs within the radius (PSA Sec. 3.2.2)."""
        if batch.mask is None:
            raise UserError("AffinityNet trains on pseudo masks: give its batches a mask")
        images = batch.image
        if self.padding == "black":
            black = self.normalize(np.zeros((1, 1, 3), np.uint8)).to(images)
            images = torch.where(batch.inside > 0, images, black)
        labels = vote_mask(batch.mask, batch.inside, STRIDE)
        found = compute_affinities(self.features(images).float(), self.radius)
        return compute_affinity_losses(found, label_pairs(labels, self.radius, list_search_offsets(self.radius)))

    def param_groups(self) -> list[ParamGroup]:
        """Rates 1, 2, 10, 20 for weights, biases, new weights, new biases; biases are not decayed.

        Released PSA, ``train_aff.py``.
        """
        return group_parameters(self)


def compute_affinities(features: Tensor, radius: int) -> Tensor:
    """(B, c, h, w) -> (B, pairs, h', w') in (0, 1]: exp(-mean |f_i - f_j|) of every pair (PSA Sec. 3.2, Eq. 3).

    Pairs in ``list_search_offsets`` order. The released network takes the mean over channels, not the sum.
    """
    rows, columns = view_windows(features, radius).shape[-2:]
    left = radius - 1
    source = features[:, :, :rows, left : left + columns]
    # Plain slices: the backward pass of indexing the windows would fill all of them for every pair.
    distances = [
        (source - features[:, :, dy : dy + rows, left + dx : left + dx + columns]).abs().mean(dim=1)
        for dy, dx in list_search_offsets(radius)
    ]
    return torch.stack(distances, dim=1).neg().exp()


def link_cells(features: Tensor, radius: int) -> Tensor:
    """(c, h, w) -> (pairs, h, w): affinities of every source, 0 elsewhere.

    Only rows 0..h-radius and columns radius-1..w-radius are sources, as in training, so that cells near the border have
    fewer links (released PSA); a grid too small for any gives no links.
    """
    grid = (features.shape[1], features.shape[2])
    rows, columns = compute_source_grid(grid, radius)
    links = features.new_zeros(len(list_search_offsets(radius)), *grid)
    if rows * columns:
        links[:, :rows, radius - 1 : radius - 1 + columns] = compute_affinities(features[None], radius)[0]
    return links


class PSAConfig(TrainedRefinerConfig):
    """PSA: a random walk over AffinityNet's affinities spreads maps and background (Ahn and Kwak 2018).

    Sec. 3.3, with the background (1 - max)^alpha of Eq. 2, as released in ``infer_aff.py``.
    """

    name: Annotated[Literal["psa"], Changes("weights")] = "psa"
    network_class: ClassVar[type[nn.Module]] = AffinityNet
    labels: Annotated[LabelRefiner, Changes("nothing")] = Field(default_factory=ConfidentPowerSeedsConfig)
    padding: Annotated[Literal["black", "mean"], Changes("weights")] = "black"
    radius: Annotated[PositiveInt, Changes("weights")] = 5
    """Pairs of stride-8 cells closer than this, in training and in the random walk."""
    alpha: Annotated[PositiveFloat, Changes("masks")] = 16.0
    beta: Annotated[PositiveFloat, Changes("masks")] = 8.0
    exp_times: Annotated[NonNegativeInt, Changes("masks")] = 8
    """The random walk takes 2^exp_times steps."""
    walk_side: Annotated[PositiveInt | None, Changes("masks")] = None
    """Side, in cells, of the square grid that ``exp_times`` is for (63 for images of 500 pixels): on another the walk
    takes the power of two of steps that carries it as far in the image. None: 2^exp_times on every grid."""

    def build(self, backbone: Backbone, num_classes: int) -> AffinityNet:
        """The network to train."""
        return AffinityNet(backbone, num_classes, self.radius, self.padding)

    def score_images(
        self, images: Sequence[np.ndarray], maps: Sequence[ClassMaps], network: AffinityNet, bf16: bool
    ) -> Iterator[Tensor]:
        """(P + 1, H, W) scores of each image: its maps and background, spread by the affinities of one pass."""
        height, width = images[0].shape[:2]
        rows, columns = compute_grid((height, width), STRIDE)
        pad = (0, columns * STRIDE - width, 0, rows * STRIDE - height)
        inputs = F.pad(make_network_input(images, network, network.normalize), pad)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            all_features = network.features(inputs)
        for one, features in zip(maps, all_features.float(), strict=True):
            planes = torch.from_numpy(add_power_background(one.full(), self.alpha))
            spread = self.spread_planes(planes.to(features.device), features)
            large = F.interpolate(spread[None], scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
            yield large[0, :, :height, :width]

    def spread_planes(self, planes: Tensor, features: Tensor) -> Tensor:
        """(K', H, W) scores and (c, h, w) features of the image padded to whole cells -> (K', h, w) spread scores.

        Cells average their pixels; those beyond the image count as 0 in every plane (released ``infer_aff``).
        """
        _, height, width = planes.shape
        rows, columns = features.shape[1:]
        pad = (0, columns * STRIDE - width, 0, rows * STRIDE - height)
        cells = F.avg_pool2d(F.pad(planes, pad)[None], STRIDE, STRIDE)[0]
        links = link_cells(features, self.radius)
        times = scale_exp_times(self.exp_times, (rows, columns), self.walk_side)
        return spread_scores(cells, links, list_search_offsets(self.radius), self.beta, times)
