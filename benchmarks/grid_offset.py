# SPDX-License-Identifier: Apache-2.0
"""Whether a backbone's cells lie where the image says: how far a centred object's features are from its centre.

    python -m benchmarks.grid_offset --sides 224 225 320 321

Coloured squares in the middle of a grey image. Features are the squared change that a square makes in the last map,
summed over channels, and lie where maps are placed everywhere here: up-sampled with ``align_corners=False``. A positive
offset is down or right. Filters that are not symmetric move the centroid too; what changes from 16 m to 16 m + 1 is
the grid.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.weights import load_weights

SHARES = (0.08, 0.125, 0.2, 0.3)
"""Sides of the squares, as shares of the image's."""
NUM_COLOURS = 6


@dataclass(frozen=True)
class Case:
    """A backbone, its output stride, its weights where there are some, and the largest value of its inputs."""

    name: str
    output_stride: int
    weights: str | None
    reach: float


CASES = (
    Case("efficientnet_lite0", 16, "efficientnet_lite0_imagenet", 1.0),
    Case("efficientnet_lite0", 32, "efficientnet_lite0_imagenet", 1.0),
    Case("squeezenet", 16, "squeezenet_deep_compression", 2.2),
    Case("toy", 16, None, 2.2),
    Case("toy", 8, None, 2.2),
)


def build_network(case: Case) -> tuple[Backbone, str]:
    """The network and "ImageNet", or "random" where its weights are not here."""
    torch.manual_seed(0)
    net = build_backbone(case.name, case.output_stride).eval()
    if case.weights is None:
        return net, "random"
    try:
        load_weights(net, case.weights)
    except UserError as error:
        print(error)
        return net, "random"
    return net, "ImageNet"


def draw_square(side: int, share: float, colour: Tensor) -> Tensor:
    """(1, 3, side, side): 0 but for a square whose centre is the image's."""
    image = torch.zeros(1, 3, side, side)
    margin = round(side * (1 - share) / 2)
    image[:, :, margin : side - margin, margin : side - margin] = colour[:, None, None]
    return image


@torch.inference_mode()
def measure_offsets(net: Backbone, side: int, reach: float) -> Tensor:
    """(squares, 2): offsets down and right, in pixels."""
    random = torch.Generator().manual_seed(0)
    plain = net(torch.zeros(1, 3, side, side))["out"]
    num_cells = plain.shape[2]
    places = (torch.arange(num_cells) + 0.5) * side / num_cells - 0.5
    centroids = []
    for share in SHARES * NUM_COLOURS:
        colour = reach * (2 * torch.rand(3, generator=random) - 1)
        change = (net(draw_square(side, share, colour))["out"] - plain).square().sum((0, 1))
        change = change / change.sum()
        centroids.append(torch.stack([(change.sum(1) * places).sum(), (change.sum(0) * places).sum()]))
    return torch.stack(centroids) - (side - 1) / 2


def main() -> None:
    """Print the table: mean offsets and the larger of their two standard errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 225, 320, 321])
    sides = parser.parse_args().sides
    print("| backbone | stride | weights | side | down, px | right, px | error, px | down, cells | right, cells |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        net, weights = build_network(case)
        for side in sides:
            offsets = measure_offsets(net, side, case.reach)
            (down, right), error = offsets.mean(0).tolist(), offsets.std(0).max().item() / math.sqrt(len(offsets))
            cell = side / math.ceil(side / case.output_stride)
            print(
                f"| {case.name} | {case.output_stride} | {weights} | {side} | {down:+.1f} | {right:+.1f} | {error:.1f} "
                f"| {down / cell:+.2f} | {right / cell:+.2f} |"
            )


if __name__ == "__main__":
    main()
