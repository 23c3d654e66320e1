# SPDX-License-Identifier: Apache-2.0
"""Class maps of ResNet-50 at IRN's protocol: the engine against a plain PyTorch loop, both in one process, in turns.

The loop (``baselines/irn_maps.py``) runs the network as it was built, in fp32. One thread; weights are random. Labels
are the largest of the maps of three classes and a background constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.irn_maps import make_maps
from benchmarks.claim import CPU, Claim, Given, Goal, Pair, timed
from benchmarks.images import list_images
from wsss_ray.artifacts.network import build_localizer
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.passes import Device
from wsss_ray.engine.precision import use_bf16
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import Localization, NetConfig

NUM_CLASSES = 20
CLASSES = (1, 7, 14)
BACKGROUND = 0.15
"""IRN's constant."""


def randomize_norms(network: torch.nn.Module) -> None:
    """Give BatchNorm statistics like a trained network's, so that folding it has something to do."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.8, 1.25)  # type: ignore[union-attr]


def read_labels(maps: Tensor) -> Tensor:
    """(P, h, w) in [0, 1] -> (h, w): 0 where the background constant is largest, else 1 + the place of the map."""
    return torch.cat([torch.full_like(maps[:1], BACKGROUND), maps]).argmax(dim=0)


def measure(given: Given) -> Iterator[Pair]:
    """fp32, and bf16 where this CPU computes in it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    images = list_images(given.data, 2 if given.quick else 10)
    cpu = torch.device("cpu")
    precisions = [one for one in ("fp32", "bf16") if one == "fp32" or use_bf16("bf16", cpu)]
    for precision in precisions:
        part = Localization(
            method=CAMConfig(style="irn"),
            net=NetConfig(backbone="resnet50", output_stride=16),
            localize=LocalizeConfig.model_validate({"precision": precision}),
        )
        network: Any = build_localizer(part, NUM_CLASSES).eval()
        randomize_norms(network)
        fused = fuse_network(network, precision == "bf16")
        on = Device(part.net.normalize, cpu)
        labelled = [LabelledImage(str(place), image, CLASSES) for place, image in enumerate(images)]
        found: dict[str, list[Tensor]] = {}

        def run_engine(
            fused: Any = fused, part: Localization = part, labelled: Any = labelled, on: Device = on, found: Any = found
        ) -> None:
            maps = read_class_maps(fused, labelled, part.localize, part.fusion, on)
            found["engine"] = [torch.from_numpy(one.maps) for one in maps]

        def run_loop(network: Any = network, found: Any = found) -> None:
            found["loop"] = [make_maps(network.backbone, network.head, image, CLASSES, True)[0] for image in images]

        def describe(found: dict[str, list[Tensor]] = found) -> str:
            pairs = [(read_labels(ours), read_labels(loops)) for ours, loops in zip(*found.values(), strict=True)]
            equal = sum(int((ours == loops).sum()) for ours, loops in pairs)
            return f"equal labels {equal / sum(ours.numel() for ours, _ in pairs):.3%}"

        yield Pair(
            f"{len(images)} images, {precision}",
            top=timed(run_loop),
            bottom=timed(run_engine),
            goals={CPU: Goal(at_least=1.1 if precision == "fp32" else 2.6)},
            rounds=2,
            warm=not given.quick,
            describe=describe,
        )


CLAIM = Claim(
    says="class maps of ResNet-50 at IRN's protocol cost less than a plain PyTorch loop that makes them image by image",
    ratio="plain loop in fp32 / engine",
    measure=measure,
    seconds=60,
)
