# SPDX-License-Identifier: Apache-2.0
"""One training loop for localizers, affinity networks and segmenters; plain torch, resumable to the bit on one CPU
worker.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from wsss_ray.config import Changes, Config, UserError
from wsss_ray.contracts import Batch, Progress, Trainable
from wsss_ray.data.augment import AugmentConfig
from wsss_ray.data.samples import Prefetcher, TrainSamples
from wsss_ray.engine.precision import Precision, use_bf16
from wsss_ray.engine.validate import ValidationImage, World, measure_precision
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig, build_optimizer, compute_lr_multiplier, set_lr


class TrainConfig(Config):
    """One training run; batch size is global, whatever the number of workers."""

    epochs: Annotated[PositiveInt, Changes("weights")] = 10
    batch_size: Annotated[PositiveInt, Changes("weights")] = 16
    batch_milestones: Annotated[dict[NonNegativeInt, PositiveInt], Changes("weights")] = {}
    """Global batch size from this epoch on (KTSE: 8 while warming up, 16 afterwards)."""
    accumulate: Annotated[PositiveInt, Changes("weights")] = 1
    """Forward and backward passes per optimiser step."""
    drop_last: Annotated[bool, Changes("weights")] = True
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    precision: Annotated[Precision, Changes("weights")] = "fp32"
    channels_last: Annotated[bool, Changes("weights")] = True
    clip_gradient: Annotated[PositiveFloat | None, Changes("weights")] = None
    max_steps: Annotated[PositiveInt | None, Changes("weights")] = None
    """Stops early after so many optimiser steps; the schedule still sees the whole length."""
    validate_images: Annotated[NonNegativeInt, Changes("weights")] = 256
    """Images of the validation split used for the image-level average precision after each epoch; 0 turns it off. Like
    all ``validate`` settings it changes the history beside the weights, not the weights."""
    validate_every: Annotated[PositiveInt, Changes("weights")] = 1
    """Epochs between two such validations; the last epoch always has one."""
    validate_long_side: Annotated[PositiveInt | None, Changes("weights")] = None
    """Longer side these images are brought to; None: their own."""
    validate_seeds: Annotated[NonNegativeInt, Changes("weights")] = 0
    """Images of the validation split whose single-scale seeds are scored against their masks after each epoch of a
    localizer: mIoU, recall and precision. 0, unless a sweep stops trials early or you watch ESOL's expansion: otherwise
    training reads no masks."""

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
class Hooks:
    """What the surroundings want to hear: every epoch (with a function that gives the whole state), and every few
    steps.
    """

    on_epoch: Callable[[EpochReport, Callable[[], dict[str, Any]]], None] = lambda report, state: None
    on_step: Callable[[int, int, float], None] = lambda step, num_steps, loss: None


@dataclass(frozen=True)
class Training:
    """What a network is trained on, and how."""

    samples: TrainSamples
    config: TrainConfig
    seed: int
    world: World
    validation: Sequence[ValidationImage] = ()
    threads: int = 2
    """That build batches ahead."""

    @property
    def steps_per_epoch(self) -> list[int]:
        """Optimiser steps of every epoch."""
        return [_count_steps(len(self.samples), self.config, epoch) for epoch in range(self.config.epochs)]

    @property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory."""
        return torch.channels_last if self.config.channels_last else torch.contiguous_format


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel hooks into."""

    def __init__(self, trainable: nn.Module) -> None:
        super().__init__()
        self.trainable = trainable

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = cast(Trainable, self.trainable).loss(batch, progress)
        return parts


def train_network(
    trainable: nn.Module, training: Training, state: dict[str, Any] | None = None, hooks: Hooks | None = None
) -> None:
    """Train ``trainable`` in place.

    ``state`` continues a run from what ``on_epoch``'s function gave; random numbers are re-seeded from (seed, step,
    rank) before every step, so that a resumed run equals an unbroken one. Raises UserError on an empty epoch or a loss
    that is not finite.
    """
    hooks = hooks or Hooks()
    config, world = training.config, training.world
    _to_device(trainable, training)
    steps_per_epoch = training.steps_per_epoch
    num_steps = sum(steps_per_epoch)
    if not num_steps:
        raise UserError(
            f"train.batch_size: {config.batch_size} is more than the {len(training.samples)} training images; lower it"
        )
    optimizer = build_optimizer(cast(Trainable, trainable).param_groups(), config.optimizer)
    first = 0
    if state is not None:
        trainable.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1
    model: nn.Module = _Loss(trainable)
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)
    for epoch in range(first, config.epochs):
        step = sum(steps_per_epoch[:epoch])
        if config.max_steps is not None and step >= config.max_steps:
            break
        trainable.train()
        start = time.monotonic()
        done = _train_epoch(model, optimizer, training, Progress(epoch, step, config.epochs, num_steps), hooks)
        seconds = time.monotonic() - start
        mean_ap = None
        last = epoch == config.epochs - 1 or (config.max_steps is not None and done.step >= config.max_steps)
        if training.validation and (last or (epoch + 1) % config.validate_every == 0):
            trainable.eval()
            bf16 = use_bf16(config.precision, world.device)
            mean_ap = measure_precision(trainable, training.validation, world, training.memory_format, bf16)
        taken = max(1, done.step - step)
        losses = {name: float(value) / taken for name, value in done.sums.items()}
        report = EpochReport(
            epoch,
            done.step,
            _mean_over_workers(losses, world),
            mean_ap,
            done.num_images / max(seconds, 1e-9),
            measure_peak_memory(world.device),
            optimizer.param_groups[0]["lr"],
        )

        def snapshot(epoch: int = epoch) -> dict[str, Any]:
            return {"model": trainable.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}

        hooks.on_epoch(report, snapshot)


def _to_device(trainable: nn.Module, training: Training) -> None:
    trainable.to(device=training.world.device)
    trainable.to(memory_format=training.memory_format)  # type: ignore[call-overload]


LOOK_SECONDS = 0.5
"""On a GPU, between two looks at the losses: each waits for all steps before it."""


@dataclass
class _Epoch:
    """What the steps of an epoch came to."""

    step: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum of every loss part over the steps, float64, on the device."""
    num_images: int = 0
    unseen: list[dict[str, Tensor]] = field(default_factory=list)
    """Loss parts of the last steps, not looked at yet."""
    last_look: float = 0.0

    def add(self, parts: dict[str, Tensor], num_images: int) -> None:
        """Count one step, without waiting for it."""
        for name, value in parts.items():
            value = value.double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.unseen.append(parts)
        self.num_images += num_images
        self.step += 1

    def is_due(self, device: torch.device) -> bool:
        """Whether to look at the losses now."""
        return device.type == "cpu" or time.monotonic() - self.last_look > LOOK_SECONDS

    def look(self) -> float:
        """The total loss of the last step; UserError, naming the first of the unseen steps whose loss is not finite."""
        totals = torch.stack([parts["total"] for parts in self.unseen]).tolist()
        for place, total in enumerate(totals):
            if not math.isfinite(total):
                bad = ", ".join(name for name, value in self.unseen[place].items() if not torch.isfinite(value))
                step = self.step - len(totals) + place
                raise UserError(f"train: the loss is not finite at step {step} ({bad}); lower train.optimizer.lr")
        self.unseen.clear()
        self.last_look = time.monotonic()
        return float(totals[-1])


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Training, start: Progress, hooks: Hooks
) -> _Epoch:
    config, world = training.config, training.world
    steps_per_epoch = training.steps_per_epoch[start.epoch]
    done = _Epoch(start.step)
    for batch in _build_batches(training, start.epoch):
        progress = replace(start, step=done.step)
        set_lr(optimizer, compute_lr_multiplier(config.schedule, done.step, start.num_steps, steps_per_epoch))
        torch.manual_seed(zlib.crc32(f"{training.seed}/{done.step}/{world.rank}".encode()))
        parts = _take_step(model, optimizer, batch.to(world.device, training.memory_format), progress, training)
        done.add(parts, batch.image.shape[0] * world.size)
        if done.is_due(world.device):
            hooks.on_step(done.step, start.num_steps, done.look())
        if config.max_steps is not None and done.step >= config.max_steps:
            break
    if done.unseen:
        hooks.on_step(done.step, start.num_steps, done.look())
    return done


def _count_steps(num_images: int, config: TrainConfig, epoch: int) -> int:
    size = config.batch_size_at(epoch)
    return num_images // size if config.drop_last else -(-num_images // size)


def _build_batches(training: Training, epoch: int) -> Iterator[Batch]:
    """The worker's share of every global batch of an epoch, built ahead."""
    samples, config, world = training.samples, training.config, training.world
    order = samples.epoch_order(epoch)
    size = config.batch_size_at(epoch)
    shares = []
    for step in range(_count_steps(len(samples), config, epoch)):
        share = order[step * size : (step + 1) * size][world.rank :: world.size]
        if len(share):
            shares.append([int(index) for index in share])
    pinned = world.device.type == "cuda"
    return iter(Prefetcher(samples, epoch, shares, num_threads=training.threads, pinned=pinned))


def _take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, progress: Progress, training: Training
) -> dict[str, Tensor]:
    """Forward, backward and update over one batch, in ``accumulate`` pieces whose gradients add up to the whole."""
    config, world = training.config, training.world
    optimizer.zero_grad(set_to_none=True)
    pieces = list(_cut_batch(batch, config.accumulate))
    total: dict[str, Tensor] = {}
    size = batch.image.shape[0]
    for index, piece in enumerate(pieces):
        share = piece.image.shape[0] / size
        last = index == len(pieces) - 1
        waits = isinstance(model, nn.parallel.DistributedDataParallel) and not last
        bf16 = use_bf16(config.precision, world.device)
        autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=bf16)
        with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with autocast:
                parts = model(piece, progress)
            loss = torch.stack([v.float() for k, v in parts.items() if not k.startswith("monitor/")]).sum()
            if loss.requires_grad:
                torch.autograd.backward(loss * share)
        for name, value in {**parts, "total": loss}.items():
            total[name] = total.get(name, torch.zeros((), device=world.device)) + value.detach().float() * share
    if config.clip_gradient is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_gradient)
    optimizer.step()
    return total


def _cut_batch(batch: Batch, count: int) -> Iterator[Batch]:
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


def _mean_over_workers(values: dict[str, float], world: World) -> dict[str, float]:
    if world.size == 1:
        return values
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, values)
    return {name: float(np.mean([worker[name] for worker in gathered if name in worker])) for name in values}


def measure_peak_memory(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
