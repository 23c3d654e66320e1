# SPDX-License-Identifier: Apache-2.0
"""One training loop for localizers, affinity networks and segmenters; plain torch, resumable to the bit on one CPU
worker.
"""

from __future__ import annotations

import contextlib
import resource
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
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
from wsss_ray.engine.epoch import Epoch, mean_over_workers
from wsss_ray.engine.precision import Precision, use_bf16
from wsss_ray.engine.validate import ValidationImage, World, measure_precision
from wsss_ray.nets.optim import OptimizerConfig, ScheduleConfig, build_optimizer, compute_lr_multiplier, set_lr
from wsss_ray.nets.synced_norm import sync_norms


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
    sync_batch_norm: Annotated[bool, Changes("weights")] = False
    """BatchNorm that learns takes its statistics from all workers' images, as one worker would from the whole batch;
    else each worker has its own. Layers that are frozen, as most published ones are, need it not."""
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
    seconds: float
    """Of its steps, without validation; also those before it was broken off."""
    images_per_second: float
    peak_memory_mb: float
    learning_rate: float


class Request(IntEnum):
    """What is asked of a training between two steps."""

    NOTHING = 0
    CHECKPOINT = 1
    """Give the state, and go on."""
    LEAVE = 2
    """Give the state, and end here: it goes on elsewhere."""


@dataclass
class Hooks:
    """What the surroundings want to hear, and what they ask for."""

    on_epoch: Callable[[EpochReport, Callable[[], dict[str, Any]]], None] = lambda report, state: None
    """Every epoch, with a function that gives the whole state."""
    on_step: Callable[[int, int, float], None] = lambda step, num_steps, loss: None
    """Every few steps."""
    ask: Callable[[], Request] = lambda: Request.NOTHING
    """Asked of the first worker, after every step on a CPU and every ``AGREE_STEPS`` beside a GPU."""
    on_request: Callable[[int, dict[str, Any]], None] = lambda step, state: None
    """The steps done so far and the state in the middle of an epoch, where ``ask`` wants it; on every worker."""


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
    skips_parameters: bool = False
    """Whether a step may give no gradient to some parameters."""

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
) -> bool:
    """Train ``trainable`` in place; False where it was asked to leave before its end.

    ``state`` continues a run from what ``on_epoch``'s function gave or ``on_request`` heard; random numbers are
    re-seeded from (seed, step, rank) before every step, so that a resumed run equals an unbroken one. Raises UserError
    on an empty epoch or a loss that is not finite.
    """
    hooks = hooks or Hooks()
    config, world = training.config, training.world
    _place(trainable, training)
    steps_per_epoch = training.steps_per_epoch
    num_steps = sum(steps_per_epoch)
    if not num_steps:
        raise UserError(
            f"train.batch_size: {config.batch_size} is more than the {len(training.samples)} training images; lower it"
        )
    optimizer = build_optimizer(cast(Trainable, trainable).param_groups(), config.optimizer)
    first, begun = 0, None
    if state is not None:
        trainable.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, begun = state["epoch"] + 1, state.get("begun")
    model = _wrap(trainable, training)
    for epoch in range(first, config.epochs):
        step = sum(steps_per_epoch[:epoch])
        if config.max_steps is not None and step >= config.max_steps:
            break
        trainable.train()
        done = Epoch(step) if begun is None else Epoch.resume(begun, world.device)
        begun = None

        def snapshot(epoch: int = epoch) -> dict[str, Any]:
            return {"model": trainable.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}

        def give_state(done: Epoch = done, epoch: int = epoch) -> None:
            hooks.on_request(done.step, {**snapshot(epoch - 1), "begun": done.save(world)})

        progress = Progress(epoch, step, config.epochs, num_steps)
        if not _train_epoch(model, optimizer, training, progress, _Watched(done, hooks, give_state)):
            return False
        seconds = done.count_seconds()
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
            mean_over_workers(losses, world),
            mean_ap,
            seconds,
            done.num_images / max(seconds, 1e-9),
            measure_peak_memory(world.device),
            optimizer.param_groups[0]["lr"],
        )
        hooks.on_epoch(report, snapshot)
        if not last and _hear_request(hooks, world) is Request.LEAVE:
            return False
    return True


def _wrap(trainable: nn.Module, training: Training) -> nn.Module:
    """The loss of the network, whose gradients are means over the workers."""
    model, world = _Loss(trainable), training.world
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=training.skips_parameters)


AGREE_STEPS = 10
"""Beside GPUs, steps between two looks of several workers at what is asked: each waits for all steps before it."""


def _hear_request(hooks: Hooks, world: World) -> Request:
    """What the first worker is asked for, on every worker."""
    asked = hooks.ask() if world.rank == 0 else Request.NOTHING
    if world.size == 1:
        return asked
    told = torch.tensor(int(asked), device=world.device)
    dist.broadcast(told, src=0)
    return Request(int(told))


def _place(trainable: nn.Module, training: Training) -> None:
    """The network where it is trained, its BatchNorm as the settings want it there."""
    if training.config.sync_batch_norm and training.world.size > 1:
        sync_norms(trainable)
    trainable.to(device=training.world.device)
    trainable.to(memory_format=training.memory_format)  # type: ignore[call-overload]


@dataclass(frozen=True)
class _Watched:
    """An epoch, and who watches it."""

    done: Epoch
    hooks: Hooks
    give_state: Callable[[], None]


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Training, start: Progress, watched: _Watched
) -> bool:
    """The steps of an epoch that are not done yet; False where it is asked to leave before the last one."""
    config, world, done, hooks = training.config, training.world, watched.done, watched.hooks
    steps_per_epoch = training.steps_per_epoch[start.epoch]
    end = min(start.step + steps_per_epoch, config.max_steps or start.num_steps)
    left = False
    for batch in _build_batches(training, start.epoch, done.step - start.step):
        progress = replace(start, step=done.step)
        set_lr(optimizer, compute_lr_multiplier(config.schedule, done.step, start.num_steps, steps_per_epoch))
        torch.manual_seed(zlib.crc32(f"{training.seed}/{done.step}/{world.rank}".encode()))
        weight = batch.image.shape[0] * world.size / _count_images(training, start.epoch, done.step - start.step)
        batch = batch.to(world.device, training.memory_format)
        parts = _take_step(model, optimizer, batch, progress, training, weight)
        done.add(parts, batch.image.shape[0] * world.size)
        if done.is_due(world.device):
            hooks.on_step(done.step, start.num_steps, done.look())
        if done.step >= end:
            break
        if world.device.type == "cpu" or done.step % AGREE_STEPS == 0:
            request = _hear_request(hooks, world)
            if request is not Request.NOTHING:
                if done.unseen:  # no state of a loss that is not finite
                    hooks.on_step(done.step, start.num_steps, done.look())
                watched.give_state()
            if request is Request.LEAVE:
                left = True
                break
    if done.unseen:
        hooks.on_step(done.step, start.num_steps, done.look())
    return not left


def _count_steps(num_images: int, config: TrainConfig, epoch: int) -> int:
    size = config.batch_size_at(epoch)
    return num_images // size if config.drop_last else -(-num_images // size)


def _count_images(training: Training, epoch: int, place: int) -> int:
    """Images of the global batch at a place in an epoch."""
    size = training.config.batch_size_at(epoch)
    return min(size, len(training.samples) - place * size)


def _build_batches(training: Training, epoch: int, first: int) -> Iterator[Batch]:
    """The worker's share of every global batch of an epoch from the step ``first`` on, built ahead.

    A last batch of fewer images than workers is left out: each must have one, or they wait for each other.
    """
    samples, config, world = training.samples, training.config, training.world
    order = samples.epoch_order(epoch)
    size = config.batch_size_at(epoch)
    shares = []
    for step in range(first, _count_steps(len(samples), config, epoch)):
        batch = order[step * size : (step + 1) * size]
        if len(batch) >= world.size:
            shares.append([int(index) for index in batch[world.rank :: world.size]])
    pinned = world.device.type == "cuda"
    return iter(Prefetcher(samples, epoch, shares, num_threads=training.threads, pinned=pinned))


def _take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    progress: Progress,
    training: Training,
    weight: float,
) -> dict[str, Tensor]:
    """Forward, backward and update over one batch, in ``accumulate`` pieces whose gradients add up to the whole.

    ``weight`` is the worker's share of the global batch times the workers, since the mean over them is what counts.
    """
    config, world = training.config, training.world
    optimizer.zero_grad(set_to_none=True)
    pieces = list(_cut_batch(batch, config.accumulate))
    total: dict[str, Tensor] = {}
    size = batch.image.shape[0]
    for index, piece in enumerate(pieces):
        share = weight * piece.image.shape[0] / size
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


def measure_peak_memory(device: torch.device) -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
