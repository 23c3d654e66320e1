# SPDX-License-Identifier: Apache-2.0
"""IRNet learns class boundaries from pairs of confident pixels; they stop a random walk (IRN, Ahn et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import IGNORE, Batch, ClassMaps, Need, ParamGroup, Progress
from wsss_ray.nets.backbone import Backbone
from wsss_ray.refine.grid import (
    Normalizer,
    compute_grid,
    describe_taps,
    make_network_input,
    normalize_for_imagenet,
    resize_to_grid,
    sample_mask,
)
from wsss_ray.refine.labels import LabelRefiner
from wsss_ray.refine.pairs import (
    EPSILON,
    PairLabels,
    compute_affinity_losses,
    find_path_maximum,
    label_pairs,
    list_path_offsets,
    take_pairs,
)
from wsss_ray.refine.random_walk import scale_exp_times, spread_within_edges
from wsss_ray.refine.seeds import ConfidentSeedsConfig
from wsss_ray.refine.trained import TrainedRefinerConfig

STRIDE = 4
"""Boundaries, labels and scores live on the image's grid divided by this."""

GRID_NOTE = "seeds and labels of IRNet are of the maps' stride 4 grid, where released IRN fuses them at full size again"
"""What a run with one set of maps differs in: the random walk needs them on that grid, which such a run stores."""


class EdgeBranch(nn.Module):
    """Every tap to 32 channels on the stride-4 grid, then one 1x1 convolution (released ``net/resnet50_irn.py``)."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = list(strides)
        self.reduce = nn.ModuleList(_make_reduction(num, 32, 4) for num in channels)
        self.fuse = nn.Conv2d(32 * len(self.strides), 1, 1)

    def forward(self, taps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Taps (B, c, ., .) -> (B, 1, h, w) boundary logits."""
        parts = [
            resize_to_grid(reduce(tap), stride / STRIDE, grid).relu()
            for tap, stride, reduce in zip(taps, self.strides, self.reduce, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


class DisplacementBranch(nn.Module):
    """The vector from each cell to the centroid of its instance (IRN Sec. 4.2, released ``net/resnet50_irn.py``).

    Taps coarser than stride 4 meet at stride 8 with 256 channels each; the finer ones keep 64 (the first) or 128.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = list(strides)
        widths = [256 if stride > STRIDE else 128 if k else 64 for k, stride in enumerate(strides)]
        self.reduce = nn.ModuleList(
            _make_reduction(num, width, 8 if width == 64 else 16) for num, width in zip(channels, widths, strict=True)
        )
        num_coarse = widths.count(256)
        self.coarse = _make_reduction(256 * num_coarse, 256, 16) if num_coarse else None
        num_fused = sum(width for width in widths if width != 256) + (256 if num_coarse else 0)
        self.fuse = nn.Sequential(*_make_reduction(num_fused, 256, 16), nn.ReLU(), nn.Conv2d(256, 2, 1, bias=False))

    def forward(self, taps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Taps -> (B, 2, h, w) displacement (y, x) in cells."""
        half = (-(-grid[0] // 2), -(-grid[1] // 2))
        fine, coarse = [], []
        for tap, stride, reduce in zip(taps, self.strides, self.reduce, strict=True):
            if stride > STRIDE:
                coarse.append(resize_to_grid(reduce(tap), stride / (2 * STRIDE), half).relu())
            else:
                fine.append(resize_to_grid(reduce(tap), stride / STRIDE, grid).relu())
        if self.coarse is not None:
            fine.append(resize_to_grid(self.coarse(torch.cat(coarse, dim=1)), 2, grid).relu())
        fused: Tensor = self.fuse(torch.cat(fine, dim=1))
        return fused


def _make_reduction(num_in: int, num_out: int, num_groups: int) -> nn.Sequential:
    """1x1 convolution without bias and GroupNorm; resizing and ReLU come after."""
    return nn.Sequential(nn.Conv2d(num_in, num_out, 1, bias=False), nn.GroupNorm(num_groups, num_out))


class IRNet(nn.Module):
    """Boundary branch, and on request a displacement branch, on the detached taps of a frozen backbone in eval mode.

    The displacement branch is trained and stored for instance segmentation, which this project does not do.

    All of the backbone's taps, in its order. ``canvas`` pads test images with the mean colour, right and below, to at
    least that many pixels a side: released IRN pads to 512 and cuts what is larger; None pads nothing.
    ``normalize`` is how ``refine`` makes its input; set it where training did not use ImageNet's.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"mask"})

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        radius: int = 10,
        displacement: bool = False,
        canvas: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.num_classes, self.radius, self.canvas = num_classes, radius, canvas
        self.taps = list(backbone.channels)
        channels, strides = describe_taps(backbone, self.taps)
        # The boundary branch first: the same seed then gives it the same weights with and without displacement.
        self.edge = EdgeBranch(channels, strides)
        self.displacement = DisplacementBranch(channels, strides) if displacement else None
        self.normalize: Normalizer = normalize_for_imagenet
        self.train()

    def train(self, mode: bool = True) -> IRNet:
        """Train mode for the branches only: the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """(B, 3, H, W) -> the detached taps, and the stride-4 grid (rounded up)."""
        with torch.no_grad():
            taps = self.backbone(images)
        return [taps[name].detach() for name in self.taps], compute_grid(images.shape[2:], STRIDE)

    def edge_logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) boundary logits."""
        logits: Tensor = self.edge(*self.features(images))
        return logits[:, 0]

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """(L_pos + L_neg) / 2 in three parts, and the displacement branch's in two more (IRN Sec. 4.4)."""
        if batch.mask is None:
            raise UserError("IRNet trains on pseudo masks: give its batches a mask")
        taps, grid = self.features(batch.image)
        labels = label_pairs(sample_mask(batch.mask, STRIDE), self.radius, list_path_offsets(self.radius))
        edge = self.edge(taps, grid)[:, 0].float().sigmoid()
        parts = compute_affinity_losses(1 - find_path_maximum(edge, self.radius), labels)
        if self.displacement is not None:
            parts |= compute_displacement_losses(self.displacement(taps, grid).float(), labels, self.radius)
        return parts

    def param_groups(self) -> list[ParamGroup]:
        """Boundary branch at the recipe's rate, displacement branch at ten times that (released ``train_irn``)."""
        groups = [ParamGroup("edge", list(self.edge.parameters()))]
        if self.displacement is not None:
            groups.append(ParamGroup("displacement", list(self.displacement.parameters()), lr_multiplier=10.0))
        return groups

    @torch.no_grad()
    def edges(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) boundary probability: the mean logit of image and flip, then the sigmoid.

        Released IRN, ``EdgeDisplacement``.
        """
        height, width = images.shape[2:]
        rows, columns = compute_grid((height, width), STRIDE)
        side = self.canvas or 0
        both = torch.cat([images, images.flip(3)])
        padded = F.pad(both, (0, max(side - width, 0), 0, max(side - height, 0)))
        straight, flipped = self.edge_logits(padded)[:, :rows, :columns].float().chunk(2)
        return ((straight + flipped.flip(2)) / 2).sigmoid()


def compute_displacement_losses(displacement: Tensor, labels: PairLabels, radius: int) -> dict[str, Tensor]:
    """(B, 2, h, w) -> half of L_dfg, pairs should differ by their offset, and of L_dbg, by nothing (IRN Sec. 4.2)."""
    offsets = list_path_offsets(radius)
    source, target = take_pairs(displacement, radius, offsets)
    difference = source - target
    wanted = torch.tensor(offsets, device=displacement.device).T[None, :, :, None, None]

    def mean(error: Tensor, where: Tensor) -> Tensor:
        return (error.abs() * where[:, None]).sum() / (2 * where.sum() + EPSILON) / 2

    return {
        "displacement_foreground": mean(difference - wanted, labels.foreground),
        "displacement_background": mean(difference, labels.background),
    }


class IRNConfig(TrainedRefinerConfig):
    """IRN: a random walk spreads the maps, IRNet's boundaries stop it (Ahn, Cho and Kwak 2019).

    Sec. 5.2, as released in ``step/make_sem_seg_labels.py``.
    """

    name: Annotated[Literal["irn"], Changes("weights")] = "irn"
    network_class: ClassVar[type[nn.Module]] = IRNet
    labels: Annotated[LabelRefiner, Changes("nothing")] = Field(default_factory=ConfidentSeedsConfig)
    train_radius: Annotated[PositiveInt, Changes("weights")] = 10
    """Pairs of stride-4 cells closer than this teach; crops need more than eight times as many pixels a side."""
    displacement: Annotated[bool, Changes("weights")] = False
    """Train the displacement branch too; it changes no semantic mask (the branches share only the frozen backbone)."""
    # The trained network keeps it, which pads its own input.
    canvas: Annotated[PositiveInt | None, Changes("weights")] = None
    """Pad test images to at least this side: 512 is released IRN on VOC; None takes the image as it is."""
    radius: Annotated[PositiveInt, Changes("masks")] = 5
    beta: Annotated[PositiveFloat, Changes("masks")] = 10.0
    exp_times: Annotated[NonNegativeInt, Changes("masks")] = 8
    """The random walk takes 2^exp_times steps."""
    walk_side: Annotated[PositiveInt | None, Changes("masks")] = None
    """Side, in cells, of the square grid that ``exp_times`` is for (125 for images of 500 pixels): on another the walk
    takes the power of two of steps that carries it as far in the image. None: 2^exp_times on every grid."""
    background: Annotated[PositiveFloat, Changes("masks")] = 0.25
    """Background score, beside the spread maps divided by their largest value of all classes."""
    keep: Annotated[float, Field(gt=0, le=1), Changes("masks")] = 1.0
    """Share of each predicted class's pixels that stay, widest lead first; the others become 255 (KTSE: 0.5)."""

    def build(self, backbone: Backbone, num_classes: int) -> IRNet:
        """The network to train."""
        return IRNet(backbone, num_classes, self.train_radius, self.displacement, self.canvas)

    def score_images(
        self, images: Sequence[np.ndarray], maps: Sequence[ClassMaps], network: IRNet, bf16: bool
    ) -> Iterator[Tensor]:
        """(P + 1, H, W) scores of each image: its maps, spread within the boundaries that one pass finds."""
        inputs = make_network_input(images, network, network.normalize)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            edges = network.edges(inputs)
        for one, edge in zip(maps, edges, strict=True):
            yield self.spread_maps(one, edge)

    def read_mask(self, scores: Tensor, maps: ClassMaps) -> np.ndarray:
        """The mask of the largest score; where ``keep`` is below 1, of the surest pixels alone."""
        mask = super().read_mask(scores, maps)
        if self.keep < 1:
            mask[~select_confident(scores, self.keep).cpu().numpy()] = IGNORE
        return mask

    @torch.inference_mode()
    def compute_scores(self, image: np.ndarray, maps: ClassMaps, network: IRNet) -> Tensor:
        """(P + 1, H, W): the background constant, then the spread maps of the present classes in [0, 1]."""
        return self.spread_maps(maps, network.edges(make_network_input([image], network, network.normalize))[0])

    def spread_maps(self, maps: ClassMaps, edge: Tensor) -> Tensor:
        """Maps of an image and its (h, w) boundary probability -> (P + 1, H, W) scores as of ``compute_scores``."""
        height, width = maps.size
        evidence = torch.from_numpy(np.ascontiguousarray(maps.maps, dtype=np.float32)).to(edge.device)
        if evidence.shape[1:] != edge.shape:
            evidence = F.interpolate(evidence[None], size=edge.shape, mode="bilinear", align_corners=False)[0]
        times = scale_exp_times(self.exp_times, (edge.shape[0], edge.shape[1]), self.walk_side)
        spread = spread_within_edges(evidence, edge, self.radius, self.beta, times)
        large = F.interpolate(spread[None], scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
        large = large[0, :, :height, :width]
        return F.pad(large / large.max().clamp(min=1e-30), (0, 0, 0, 0, 1, 0), value=self.background)


def select_confident(planes: Tensor, share: float) -> Tensor:
    """(K', H, W) scores -> (H, W) bool: of each predicted plane's n pixels the floor(share n) with the widest lead.

    KTSE's confidence mask for BECO (released KTSE, ``gen_mask``): its loss weights; equal leads go by position.
    """
    best, names = planes.topk(2, dim=0)
    lead, winner = (best[0] - best[1]).flatten(), names[0].flatten()
    keep = torch.zeros_like(winner, dtype=torch.bool)
    for plane in range(len(planes)):
        where = (winner == plane).nonzero()[:, 0]
        order = lead[where].sort(descending=True, stable=True).indices
        keep[where[order[: int(share * len(where))]]] = True
    return keep.view(planes.shape[1:])
