# SPDX-License-Identifier: Apache-2.0
"""What each method costs in training: images per second and peak memory against CAM, same network, crop and batch.

    python benchmarks/methods.py [METHOD ...] --scale small --steps 6

Every method trains on the same random batch in a process of its own, so that memory is its own; the loader is left out.
Ratios are of images per second: 0.5 is twice the time of CAM.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wsss_ray.artifacts.network import build_localizer
from wsss_ray.contracts import Batch, Progress
from wsss_ray.engine.train import TrainConfig, measure_peak_memory
from wsss_ray.nets.optim import build_optimizer
from wsss_ray.recipe import Localization, Scale, take_localizer
from wsss_ray.studies import cam, eps, esol, ktse, l2g, smaf, ssss, wsfcn

NUM_CLASSES = 8


LOCALIZERS: dict[str, Callable[[Scale], Localization]] = {
    "cam": lambda scale: cam.recipe(scale),
    "eps": lambda scale: eps.recipe(scale),
    "l2g": lambda scale: l2g.recipe(scale),
    "l2g shared": lambda scale: l2g.build_variant(scale, "paper", shared=True),
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


def random_batch(size: int, count: int, partner: bool = True) -> Batch:
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
        partner=random_batch(size, count, False) if partner else None,
    )


def measure(name: str, scale: Scale, steps: int, batch_size: int) -> dict[str, float]:
    """Images per second after two steps to warm up, and the peak memory of this process in MB."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    localization = LOCALIZERS[name](scale)
    # Method by method the published crops differ: here all have CAM's.
    same: TrainConfig = cam.recipe(scale).train
    network: Any = build_localizer(take_localizer(localization), NUM_CLASSES)
    network.to(device=device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(network.param_groups(), localization.train.optimizer)
    batch = random_batch(same.augment.crop, batch_size).to(device)
    # Past every warm-up: methods that switch losses on late are measured with all of them.
    progress = Progress(localization.train.epochs - 1, 10**6, localization.train.epochs, 10**6 + 1)
    start = 0.0
    for step in range(steps + 2):
        if step == 2:
            start = now(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=same.precision == "bf16"):
            parts = network.loss(batch, progress)
        total = torch.stack([value.float() for key, value in parts.items() if not key.startswith("monitor/")]).sum()
        total.backward()
        optimizer.step()
    return {"speed": steps * batch_size / (now(device) - start), "memory": measure_peak_memory(device)}


def now(device: torch.device) -> float:
    """The time, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """One process per method, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=f"of: {', '.join(LOCALIZERS)}; default: all")
    parser.add_argument("--scale", default="small", choices=("toy", "small", "paper"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.scale, given.steps, given.batch)))
        return
    unknown = set(given.methods) - set(LOCALIZERS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(LOCALIZERS)}")
    found: dict[str, dict[str, float]] = {}
    print(f"{'method':<22}{'images/s':>11}{'ratio':>7}{'MB':>7}{'ratio':>7}")
    for name in dict.fromkeys(("cam", *(given.methods or LOCALIZERS))):
        command = [sys.executable, str(Path(__file__)), "--only", name, "--scale", given.scale]
        command += ["--steps", str(given.steps), "--batch", str(given.batch)]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            sys.exit(f"{name}: {answer.stderr.strip().splitlines()[-1]}")
        own = found[name] = json.loads(answer.stdout.strip().splitlines()[-1])
        ratios = [own[key] / found["cam"][key] for key in ("speed", "memory")]
        print(f"{name:<22}{own['speed']:>11.2f}{ratios[0]:>7.2f}{own['memory']:>7.0f}{ratios[1]:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
