# SPDX-License-Identifier: Apache-2.0
"""Class maps of ResNet-50 at IRN's protocol: the engine against a plain PyTorch loop, both in one process, in turns.

    python -m benchmarks.maps --images FOLDER [--num 6] [--precision bf16]

The loop (``baselines/irn_maps.py``) runs the network as it was built, in fp32. CPU seconds of this process, one thread;
weights are random, images are real. Labels are the largest of the maps of three classes and a background constant.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines.irn_maps import make_maps
from wsss_ray.artifacts.network import build_localizer
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_image
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.passes import Device
from wsss_ray.engine.precision import use_bf16
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import Localization, NetConfig

NUM_CLASSES = 20
BACKGROUND = 0.15
"""IRN's constant."""


def load_images(folder: Path, num: int) -> list[np.ndarray]:
    """The first images of a folder, (H, W, 3) uint8 RGB each."""
    found = sorted(folder.glob("*.jpg"))[:num]
    if not found:
        raise UserError(f"{folder}: holds no .jpg; give --images a folder of photographs")
    return [decode_image(path.read_bytes(), path.name) for path in found]


def randomize_norms(network: torch.nn.Module) -> None:
    """Give BatchNorm statistics like a trained network's, so that folding it has something to do."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.8, 1.25)  # type: ignore[union-attr]


def read_labels(maps: Tensor) -> Tensor:
    """(P, h, w) in [0, 1] -> (h, w): 0 where the background constant is largest, else 1 + the place of the map."""
    return torch.cat([torch.full_like(maps[:1], BACKGROUND), maps]).argmax(dim=0)


def compare(images: list[np.ndarray], precision: str, rounds: int, high_res: bool) -> dict[str, Any]:
    """CPU seconds an image of both sides, the ratio of every round, and the share of equal labels."""
    part = Localization(
        method=CAMConfig(style="irn"),
        net=NetConfig(backbone="resnet50", output_stride=16),
        localize=LocalizeConfig.model_validate({"precision": precision}),
    )
    network: Any = build_localizer(part, NUM_CLASSES).eval()
    randomize_norms(network)
    bf16 = use_bf16(part.localize.precision, torch.device("cpu"))
    start = time.process_time()
    fused = fuse_network(network, bf16)
    prepared = time.process_time() - start
    on = Device(part.net.normalize, torch.device("cpu"))
    classes = (1, 7, 14)
    labelled = [LabelledImage(str(k), image, classes) for k, image in enumerate(images)]

    def run_engine() -> list[Tensor]:
        return [torch.from_numpy(one.maps) for one in read_class_maps(fused, labelled, part.localize, part.fusion, on)]

    def run_loop() -> list[Tensor]:
        return [make_maps(network.backbone, network.head, image, classes, high_res)[0] for image in images]

    make_maps(network.backbone, network.head, images[0], classes, high_res)
    read_class_maps(fused, labelled[:1], part.localize, part.fusion, on)
    seconds: dict[str, list[float]] = {"engine": [], "loop": []}
    results: dict[str, list[Tensor]] = {}
    for turn in range(rounds):
        sides = [("engine", run_engine), ("loop", run_loop)]
        for name, run in sides if turn % 2 == 0 else reversed(sides):
            start = time.process_time()
            results[name] = run()
            seconds[name].append((time.process_time() - start) / len(images))
    pairs = [(read_labels(ours), read_labels(theirs)) for ours, theirs in zip(*results.values(), strict=True)]
    equal = sum(int((ours == theirs).sum()) for ours, theirs in pairs) / sum(ours.numel() for ours, _ in pairs)
    shares = torch.cat([theirs.flatten() for _, theirs in pairs]).bincount(minlength=4).float()
    return {
        "precision": "bf16" if bf16 else "fp32",
        "images": len(images),
        "engine_seconds": seconds["engine"],
        "loop_seconds": seconds["loop"],
        "ratios": [slow / fast for fast, slow in zip(seconds["engine"], seconds["loop"], strict=True)],
        "prepare_seconds": prepared,
        "equal_labels": equal,
        "label_shares": (shares / shares.sum()).tolist(),
    }


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of .jpg files")
    parser.add_argument("--num", type=int, default=6, help="images")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both sides")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of the engine")
    parser.add_argument("--strided-only", action="store_true", help="the loop makes no maps of full size either")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    found = compare(load_images(given.images, given.num), given.precision, given.rounds, not given.strided_only)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {found['images']} images")
    if found["precision"] != given.precision:
        print(f"this CPU does not compute in {given.precision}: the engine ran in {found['precision']}")
    for side in ("engine", "loop"):
        print(f"{side:<7}{statistics.median(found[f'{side}_seconds']):8.2f} CPU s an image")
    ratios = found["ratios"]
    print(f"ratio  {statistics.median(ratios):8.2f}   ({min(ratios):.2f} to {max(ratios):.2f}, {found['precision']})")
    print(
        f"equal labels {found['equal_labels']:.4%}; making the network ready took {found['prepare_seconds']:.2f} CPU s"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
