# SPDX-License-Identifier: Apache-2.0
"""What each method costs in training: CPU time of a step and peak memory against CAM, same network, crop and batch.

Every reading is a process of its own, forked from one that has imported everything, so that memory is the method's. All
train on the same random batch, so that the loader is left out.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.claim import CPU, MEMORY, WALL, Claim, Given, Pair, Reading
from benchmarks.machine import read_peak_mb, reset_peak
from wsss_ray.artifacts.network import build_localizer
from wsss_ray.contracts import Batch, Progress
from wsss_ray.engine.precision import use_bf16
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.optim import build_optimizer
from wsss_ray.recipe import Localization, Scale, take_localizer
from wsss_ray.studies import cam, eps, esol, ktse, l2g, smaf, ssss, wsfcn

NUM_CLASSES = 8
SCALE: Scale = "small"
WARM_STEPS = 1

LOCALIZERS: dict[str, Callable[[Scale], Localization]] = {
    "cam": lambda scale: cam.recipe(scale),
    "eps": lambda scale: eps.recipe(scale),
    "l2g": lambda scale: l2g.recipe(scale),
    "l2g, one backbone": lambda scale: l2g.build_variant(scale, "paper", shared=True),
    "l2g without saliency": lambda scale: l2g.build_variant(scale, "paper", saliency=False),
    "smaf over eps": lambda scale: smaf.recipe(scale),
    "smaf over cam": lambda scale: smaf.recipe_over(take_localizer(cam.recipe(scale)), scale, "paper"),
    "ktse base": lambda scale: ktse.build_seeds(scale, "paper", **ktse.switch()),
    "ktse base + sie": lambda scale: ktse.build_seeds(scale, "paper", **ktse.switch("sie")),
    "ktse base + ssr": lambda scale: ktse.build_seeds(scale, "paper", **ktse.switch("ssr")),
    "ktse": lambda scale: ktse.build_seeds(scale, "paper"),
    "esol classifier": lambda scale: esol.find_phase(esol.recipe(scale), "classifier"),
    "esol expansion": lambda scale: esol.find_phase(esol.recipe(scale), "expansion"),
    "esol shrinkage": lambda scale: esol.recipe(scale),
    "ssss": lambda scale: ssss.recipe(scale),
    "ws-fcn": lambda scale: wsfcn.recipe(scale),
}
QUICK = ("eps", "l2g", "smaf over eps", "ktse", "esol expansion", "ssss", "ws-fcn")


def draw_batch(size: int, count: int, partner: bool = True) -> Batch:
    """A batch with everything a method may ask for; about a quarter of the labels are there, at least one an image."""
    labels = (torch.rand(count, NUM_CLASSES) < 0.25).float()
    labels[:, 0] = 1
    coarse = torch.rand(count, NUM_CLASSES + 1, size // 16, size // 16)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return Batch(
        image=torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last),
        labels=labels,
        inside=torch.ones(count, 1, size, size),
        rgb=torch.rand(count, 3, size, size),
        saliency=smooth[:, -1:],
        maps=smooth[:, :-1] * labels[:, :, None, None],
        partner=draw_batch(size, count, False) if partner else None,
    )


def train_steps(name: str, steps: int, batch_size: int) -> dict[str, float]:
    """Seconds of a step after one to warm up, and the peak memory of this process."""
    reset_peak()
    torch.manual_seed(0)
    localization = LOCALIZERS[name](SCALE)
    # Method by method the published crops differ: here all have CAM's.
    same: TrainConfig = cam.recipe(SCALE).train
    network: Any = build_localizer(take_localizer(localization), NUM_CLASSES)
    network.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network.param_groups(), localization.train.optimizer)
    batch = draw_batch(same.augment.crop, batch_size)
    # Past every warm-up: methods that switch losses on late are measured with all of them.
    progress = Progress(localization.train.epochs - 1, 10**6, localization.train.epochs, 10**6 + 1)
    bf16 = use_bf16(same.precision, torch.device("cpu"))
    cpu = wall = 0.0
    for step in range(steps + WARM_STEPS):
        if step == WARM_STEPS:
            cpu, wall = time.process_time(), time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts = network.loss(batch, progress)
        total = torch.stack([value.float() for key, value in parts.items() if not key.startswith("monitor/")]).sum()
        total.backward()
        optimizer.step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {CPU: cpu / steps, WALL: wall / steps, MEMORY: read_peak_mb()}


def measure(given: Given) -> Iterator[Pair]:
    """Every method against CAM."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.methods"])
    steps, batch_size, rounds = (2, 4, 2) if given.quick else (6, 8, 3)
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:

        def read(name: str) -> Reading:
            return pool.submit(train_steps, name, steps, batch_size).result()

        for name in QUICK if given.quick else list(LOCALIZERS)[1:]:
            yield Pair(name, top=partial(read, name), bottom=partial(read, "cam"), rounds=rounds, warm=False)


CLAIM = Claim(
    says="what a training step of each method costs beside one of CAM, on the same network, crop and batch",
    ratio="method / CAM",
    measure=measure,
    seconds=60,
)
