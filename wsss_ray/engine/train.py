"""One training loop for localizers, affinity networks and segmenters; plain torch, resumable to the bit on one CPU
worker."""

from __future__ import annotations

import contextlib
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Config, UserError
from wsss_ray.contracts import Batch, Progress
from wsss_ray.data.augment import AugmentConfig, NormalizeConfig
from wsss_ray.data.image import decode_image
from wsss_ray.data.samples import Prefetcher, TrainSamples
from wsss_ray.data.shards import Rows
from wsss_ray.engine.fusion import scaled_inputs, unit_scale
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig, build_optimizer, lr_at, set_lr
from wsss_ray.score.precision import compute_mean_average_precision


class TrainConfig(Config):
    """One training run; batch size is global, whatever the number of workers."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 16
    batch_milestones: dict[NonNegativeInt, PositiveInt] = {}
    """Global batch size from this epoch on (KTSE: 8 while warming up, 16 afterwards)."""
    accumulate: PositiveInt = 1
    """Forward and backward passes per optimiser step."""
    drop_last: bool = True
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    clip_gradient: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    """Stops early after so many optimiser steps; the schedule still sees the whole length."""
    validate_images: NonNegativeInt = 256
    """Images of the validation split used for the image-level average precision after each epoch; 0 turns it off."""
    validate_every: PositiveInt = 1
    """Epochs between two such validations; the last epoch always has one."""
    validate_long_side: PositiveInt | None = None
    """Longer side these images are brought to; None: their own."""
    validate_seeds: NonNegativeInt = 0
    """Images of the validation split whose single-scale seeds are scored against their masks after each epoch of a
    localizer: mIoU, recall and precision. 0, unless a sweep stops trials early or you watch ESOL's expansion: otherwise
    training reads no masks. Weights do not depend on it."""

    def batch_size_at(self, epoch: int) -> int:
        """The global batch size of an epoch."""
        reached = [start for start in self.batch_milestones if start <= epoch]
        return self.batch_milestones[max(reached)] if reached else self.batch_size


@dataclass
class EpochReport:
    """What one epoch did."""

    epoch: int
    step: int
    losses: dict[str, float]
    """Mean of every loss part over the epoch, ``total`` and the monitors."""
    mean_ap: float | None
    """Image-level mean average precision on validation images, in [0, 1]."""
    images_per_second: float
    peak_memory_mb: float
    learning_rate: float


@dataclass
class World:
    """This worker's place among those that share the global batch."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Hooks:
    """What the surroundings want to hear: every epoch (with a function that gives the whole state), and every few
    steps."""

    on_epoch: Callable[[EpochReport, Callable[[], dict[str, Any]]], None] = lambda report, state: None
    on_step: Callable[[int, int, float], None] = lambda step, num_steps, loss: None


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel hooks into."""

    def __init__(self, trainable: nn.Module) -> None:
        super().__init__()
        self.trainable = trainable

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return self.trainable.loss(batch, progress)  # type: ignore[operator, no-any-return]


def fit(
    trainable: nn.Module,
    samples: TrainSamples,
    config: TrainConfig,
    seed: int,
    world: World,
    validation: list[dict[str, Any]] | None = None,
    state: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
    threads: int = 2,
) -> None:
    """Train ``trainable`` in place.

    ``state`` continues a run from what ``on_epoch``'s function gave; random numbers are re-seeded from (seed, step,
    rank) before
    every step, so that a resumed run equals an unbroken one. Raises UserError on an empty epoch or a loss that is not
    finite.
    """
    hooks = hooks or Hooks()
    device = world.device
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    trainable.to(device=device, memory_format=form)  # type: ignore[call-overload]
    steps_per_epoch = [_num_steps(len(samples), config, epoch) for epoch in range(config.epochs)]
    num_steps = sum(steps_per_epoch)
    if not num_steps:
        raise UserError(
            f"train.batch_size: {config.batch_size} is more than the {len(samples)} training images; lower it"
        )
    groups = trainable.param_groups()  # type: ignore[operator]
    optimizer = build_optimizer(groups, config.optimizer)
    first = 0
    if state is not None:
        trainable.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
    model: nn.Module = _Loss(trainable)
    if world.size > 1:
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)
    for epoch in range(first, config.epochs):
        step = sum(steps_per_epoch[:epoch])
        if config.max_steps is not None and step >= config.max_steps:
            break
        trainable.train()
        sums: dict[str, Tensor] = {}
        seen, start = 0, time.monotonic()
        for batch in _batches(samples, config, epoch, world, threads):
            progress = Progress(epoch, step, config.epochs, num_steps)
            set_lr(optimizer, lr_at(config.schedule, step, num_steps, steps_per_epoch[epoch]))
            torch.manual_seed(zlib.crc32(f"{seed}/{step}/{world.rank}".encode()))
            parts = _step(model, optimizer, batch.to(device, form), progress, config, world)
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
            if not torch.isfinite(parts["total"]):
                bad = ", ".join(name for name, value in parts.items() if not torch.isfinite(value))
                raise UserError(f"train: the loss is not finite at step {step} ({bad}); lower train.optimizer.lr")
            seen += batch.image.shape[0] * world.size
            step += 1
            hooks.on_step(step, num_steps, float(parts["total"]))
            if config.max_steps is not None and step >= config.max_steps:
                break
        seconds = time.monotonic() - start
        mean_ap = None
        last = epoch == config.epochs - 1 or (config.max_steps is not None and step >= config.max_steps)
        if validation and (last or (epoch + 1) % config.validate_every == 0):
            trainable.eval()
            mean_ap = validate(trainable, validation, world, config)
        done = max(1, step - sum(steps_per_epoch[:epoch]))
        report = EpochReport(
            epoch,
            step,
            _mean_over_workers({name: float(value) / done for name, value in sums.items()}, world),
            mean_ap,
            seen / max(seconds, 1e-9),
            peak_memory_mb(device),
            optimizer.param_groups[0]["lr"],
        )

        def snapshot(epoch: int = epoch) -> dict[str, Any]:
            return {"model": trainable.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}

        hooks.on_epoch(report, snapshot)


def _num_steps(num_images: int, config: TrainConfig, epoch: int) -> int:
    size = config.batch_size_at(epoch)
    return num_images // size if config.drop_last else -(-num_images // size)


def _batches(samples: TrainSamples, config: TrainConfig, epoch: int, world: World, threads: int) -> Iterator[Batch]:
    """This worker's share of every global batch of an epoch, built ahead."""
    order = samples.epoch_order(epoch)
    size = config.batch_size_at(epoch)
    shares = []
    for step in range(_num_steps(len(samples), config, epoch)):
        share = order[step * size : (step + 1) * size][world.rank :: world.size]
        if len(share):
            shares.append([int(index) for index in share])
    return iter(Prefetcher(samples, epoch, shares, num_threads=threads))


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    progress: Progress,
    config: TrainConfig,
    world: World,
) -> dict[str, Tensor]:
    """Forward, backward and update over one batch, in ``accumulate`` pieces whose gradients add up to the whole."""
    optimizer.zero_grad(set_to_none=True)
    pieces = list(_pieces(batch, config.accumulate))
    total: dict[str, Tensor] = {}
    size = batch.image.shape[0]
    for index, piece in enumerate(pieces):
        share = piece.image.shape[0] / size
        last = index == len(pieces) - 1
        wait = model.no_sync() if world.size > 1 and not last else contextlib.nullcontext()  # type: ignore[operator]
        autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        with wait:
            with autocast:
                parts = model(piece, progress)
            loss = torch.stack([v.float() for k, v in parts.items() if not k.startswith("monitor/")]).sum()
            if loss.requires_grad:
                (loss * share).backward()
        for name, value in {**parts, "total": loss}.items():
            total[name] = total.get(name, torch.zeros((), device=world.device)) + value.detach().float() * share
    if config.clip_gradient is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_gradient)
    optimizer.step()
    return total


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    if count == 1:
        yield batch
        return
    size = batch.image.shape[0]
    for rows in np.array_split(np.arange(size), min(count, size)):
        yield slice_batch(batch, int(rows[0]), int(rows[-1]) + 1)


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """Images ``start`` to ``stop`` of a batch."""
    cut: dict[str, Any] = {}
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            cut[name] = value[start:stop]
        elif isinstance(value, Batch):
            cut[name] = slice_batch(value, start, stop)
    return replace(batch, **cut)


def validation_images(
    rows: Rows, num_classes: int, normalize: NormalizeConfig, limit: int, long_side: int | None = None
) -> list[dict[str, Any]]:
    """Up to ``limit`` evenly spaced labelled images for ``validate``: decoded, normalised, at their own size or
    brought to ``long_side``."""
    count = min(limit, len(rows))
    chosen = sorted({round(float(place)) for place in np.linspace(0, len(rows) - 1, count)}) if count else []
    images = []
    for index in chosen:
        row = rows[index]
        labels = np.zeros(num_classes, dtype=np.float32)
        labels[list(row["labels"])] = 1
        pixels = decode_image(row["image"], row["image_id"])
        unit = unit_scale((pixels.shape[0], pixels.shape[1]), long_side)
        images.append({"image": scaled_inputs(pixels, unit, normalize.apply, flip=False)[0], "labels": labels})
    return images


@torch.no_grad()
def validate(trainable: nn.Module, images: list[dict[str, Any]], world: World, config: TrainConfig) -> float | None:
    """Image-level mean average precision over prepared images ({"image" (3, H, W), "labels" (C,)}), shared among
    workers.

    None for a trainable without image-level ``logits``.
    """
    if not hasattr(trainable, "logits"):
        return None
    form = torch.channels_last if config.channels_last else torch.contiguous_format
    mine = images[world.rank :: world.size]
    by_size: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for image in mine:
        by_size.setdefault(tuple(image["image"].shape), []).append(image)
    scores, truths = [], []
    for group in by_size.values():
        for start in range(0, len(group), 16):
            chunk = group[start : start + 16]
            inputs = torch.stack([image["image"] for image in chunk]).to(world.device, memory_format=form)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits: Tensor = trainable.logits(inputs)  # type: ignore[operator]
            scores.append(logits.float().cpu().numpy())
            truths.append(np.stack([np.asarray(image["labels"]) for image in chunk]))
    everything: list[Any] = [(scores, truths)]
    if world.size > 1:
        everything = [None] * world.size
        dist.all_gather_object(everything, (scores, truths))
    all_scores = [part for piece in everything for part in piece[0]]
    all_truths = [part for piece in everything for part in piece[1]]
    return compute_mean_average_precision(np.concatenate(all_scores), np.concatenate(all_truths))


def _mean_over_workers(values: dict[str, float], world: World) -> dict[str, float]:
    if world.size == 1:
        return values
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, values)
    return {name: float(np.mean([worker[name] for worker in gathered if name in worker])) for name in values}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
