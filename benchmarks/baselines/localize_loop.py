# SPDX-License-Identifier: Apache-2.0
"""Class maps by hand: a loop over images in plain PyTorch, in as many processes as asked, kept between calls."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CPU = torch.device("cpu")
Maps = Callable[[Tensor], Tensor]
"""(B, 3, H, W) normalised -> (B, C, h, w)."""


class Protocol(NamedTuple):
    """How maps are read: scales with a flip, ReLU, summed on a grid, divided by their maximum."""

    scales: tuple[float, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int = 4
    epsilon: float = 1e-5


@torch.inference_mode()
def read_maps(
    maps: Maps, image: np.ndarray, classes: Sequence[int], protocol: Protocol, device: torch.device = CPU
) -> Tensor:
    """(H, W, 3) uint8 -> (P, h, w) maps of its classes in [0, 1]."""
    height, width = image.shape[:2]
    grid = (-(-height // protocol.stride), -(-width // protocol.stride))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (protocol.mean, protocol.std))
    total = torch.zeros(len(classes), *grid, device=device)
    for scale in protocol.scales:
        size = (round(width * scale), round(height * scale))
        pixels = image if scale == 1 else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        plain = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - mean) / std
        inputs = torch.stack([plain, plain.flip(2)]).to(device).contiguous(memory_format=torch.channels_last)
        found = maps(inputs)[:, list(classes)].float().relu()
        both = (found[0] + found[1].flip(2))[None]
        total += F.interpolate(both, grid, mode="bilinear", align_corners=False)[0]
    return (total / (total.amax(dim=(1, 2), keepdim=True) + protocol.epsilon)).cpu()


def localize_shards(maps: Maps, shards: Sequence[Path], protocol: Protocol, out: Path) -> None:
    """The maps of all images of Parquet shards, as float16, one file a shard."""
    for shard in shards:
        found: dict[str, np.ndarray] = {}
        for row in pq.read_table(shard, columns=["image_id", "image", "labels"]).to_pylist():
            image = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
            found[row["image_id"]] = read_maps(maps, image, row["labels"], protocol).half().numpy()
        np.savez_compressed(out / f"{shard.stem}.npz", **found)  # type: ignore[arg-type]


class Processes:
    """Processes that hold nothing between calls but what they have imported."""

    def __init__(self, number: int, begin: Callable[[], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.asked, self.answers = context.Queue(), context.Queue()
        self.number = number
        self.members = [
            context.Process(target=_serve, args=(self.asked, self.answers, begin), daemon=True) for _ in range(number)
        ]
        for member in self.members:
            member.start()

    @property
    def ids(self) -> list[int]:
        """This process and its workers."""
        return [os.getpid(), *(member.pid for member in self.members if member.pid is not None)]

    def run(self, load: Callable[[], Maps], shards: Sequence[Path], protocol: Protocol, out: Path) -> None:
        """All shards; each process loads the network once and has an equal share of them."""
        for place in range(self.number):
            self.asked.put((load, shards[place :: self.number], protocol, out))
        for _ in range(self.number):
            error = self.answers.get()
            if error:
                raise RuntimeError(error)

    def close(self) -> None:
        """End them."""
        for _ in self.members:
            self.asked.put(None)
        for member in self.members:
            member.join(10)


def _serve(asked: Any, answers: Any, begin: Callable[[], None]) -> None:
    begin()
    while (job := asked.get()) is not None:
        load, shards, protocol, out = job
        try:
            localize_shards(load(), shards, protocol, out)
        except Exception as problem:
            answers.put(repr(problem))
        else:
            answers.put("")
