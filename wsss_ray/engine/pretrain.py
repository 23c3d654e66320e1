# SPDX-License-Identifier: Apache-2.0
"""Makes the weights ``toy_pretrained``: the toy backbone as a classifier of the texture world.

    python -m wsss_ray.engine.pretrain --out toy_pretrained.safetensors

The same seed gives the same file on one machine, bit for bit: it runs on one thread.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsss_ray.data.colour import NormalizeConfig
from wsss_ray.data.texture_world import NUM_CLASSES, SHAPES, TEXTURES, draw_object
from wsss_ray.nets.toy import Toy
from wsss_ray.nets.weight_names import is_counter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """What the file depends on; the defaults made the one that ships."""

    seed: int = 0
    width: int = 32
    num_images: int = 16_000
    num_checked: int = 500
    """Images the classifier never sees, for its accuracy alone."""
    size: int = 80
    crop: int = 64
    epochs: int = 12
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.02


def draw_images(config: PretrainConfig, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Images ``start`` and after: (count, 3, size, size) uint8 and their classes (count,)."""
    images = torch.empty(count, 3, config.size, config.size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.long)
    for k in range(count):
        rgb, label, _ = draw_object(config.seed, start + k, config.size)
        images[k], labels[k] = torch.from_numpy(rgb).permute(2, 0, 1), label
    return images, labels


def pretrain_toy(config: PretrainConfig) -> Toy:
    """The trained backbone; logs the loss of each epoch and, at the end, the accuracy on images not trained on."""
    began = time.perf_counter()
    images, labels = draw_images(config, 0, config.num_images)
    log.info(f"{config.num_images} images drawn in {time.perf_counter() - began:.0f} s")
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, 5])
    backbone = Toy(16, config.width, "train")
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = nn.Linear(backbone.channels["out"], NUM_CLASSES + len(SHAPES) + len(TEXTURES))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    num_batches = config.num_images // config.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * num_batches)
    for epoch in range(config.epochs):
        order, total = torch.from_numpy(rng.permutation(config.num_images)), 0.0
        for step in range(num_batches):
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            scores = head(backbone(_crop(images[chosen], config.crop, rng))["out"].mean((2, 3)))
            loss = compute_loss(scores, labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        log.info(f"epoch {epoch + 1}: loss {total / num_batches:.3f}, {time.perf_counter() - began:.0f} s")
    backbone.eval()
    images, labels = draw_images(config, config.num_images, config.num_checked)
    with torch.no_grad():
        guesses = torch.cat(
            [
                head(backbone(_normalise(part))["out"].mean((2, 3)))[:, :NUM_CLASSES].argmax(1)
                for part in images.split(50)
            ]
        )
    log.info(f"right on {100 * float((guesses == labels).float().mean()):.1f} % of {len(labels)} others")
    return backbone


def compute_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies of (B, classes + shapes + textures) scores, averaged: parts of a name are learnt sooner."""
    parts = scores.split([NUM_CLASSES, len(SHAPES), len(TEXTURES)], dim=1)
    targets = (labels, labels % len(SHAPES), labels // len(SHAPES))
    losses = [nn.functional.cross_entropy(part, target) for part, target in zip(parts, targets, strict=True)]
    return torch.stack(losses).mean()


def _crop(images: Tensor, crop: int, rng: np.random.Generator) -> Tensor:
    """(B, 3, crop, crop) normalised windows, half of them mirrored; one place for a whole batch."""
    top, left = rng.integers(0, images.shape[2] - crop + 1, 2)
    window = images[:, :, top : top + crop, left : left + crop].clone()
    mirrored = torch.from_numpy(rng.random(len(window)) < 0.5)
    window[mirrored] = window[mirrored].flip(3)
    return _normalise(window).contiguous(memory_format=torch.channels_last)


def _normalise(images: Tensor) -> Tensor:
    ends = NormalizeConfig().apply(np.repeat(np.array([[[0], [255]]], np.uint8), 3, axis=2))
    low, high = ends[:, :, :1], ends[:, :, 1:]
    return low + images.float() * ((high - low) / 255)


def save_toy(backbone: Toy, path: Path) -> None:
    """Write the weights as safetensors: convolutions as float16, BatchNorm as float32."""
    tensors = {
        name: value.half().contiguous(memory_format=torch.contiguous_format) if value.ndim == 4 else value.contiguous()
        for name, value in backbone.state_dict().items()
        if not is_counter(name)
    }
    save_file(tensors, path)


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .safetensors")
    parser.add_argument("--seed", type=int, default=PretrainConfig.seed)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    save_toy(pretrain_toy(PretrainConfig(seed=given.seed)), given.out)
    log.info(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
