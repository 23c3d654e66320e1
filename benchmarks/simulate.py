# SPDX-License-Identifier: Apache-2.0
"""What a run at paper scale would take on 1 to 64 nodes, simulated from the costs of one image and one shard.

    python -m benchmarks.simulate [--docs docs/costs.md]
    python -m benchmarks.simulate --measure

The run is CAM on ResNet-38, dense CRF, DeepLab v2 on ResNet-101, on VOC (train_aug) or COCO 2014. ``COSTS`` says of
every number where it is from; arithmetic of networks is counted here. ``--measure`` measures the CPU's costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_methods import Case, read_cases
from benchmarks.report import replace_block
from benchmarks.schedule import Cluster, ShardStep, Spent, Start, TrainStep, run_all

BEGIN, END = "<!-- simulation -->", "<!-- end of simulation -->"
NODES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cost:
    """A number, and where it is from."""

    value: float
    unit: str
    source: str
    """measured, published or assumed; and how."""


COSTS = {
    "prepare": Cost(0.0084, "CPU s an image", "measured earlier, VOC photographs"),
    "sample": Cost(0.010, "CPU s a training sample", "measured earlier: 6 to 14 ms by crop and method"),
    "decode": Cost(0.0014, "CPU s an image", "measured, JPEG of 375 x 500"),
    "crf 2": Cost(0.061, "CPU s an image", "measured, `psa`, 2 labels, engine fast"),
    "crf 21": Cost(0.42, "CPU s an image", "measured, `deeplab_v2`, 21 labels, engine fast"),
    "crf 81": Cost(1.28, "CPU s an image", "measured, `deeplab_v2`, 81 labels, engine fast"),
    "score": Cost(0.0044, "CPU s an image", "measured, 100 thresholds in one pass"),
    "core": Cost(60e9, "FLOP/s of one core", "measured: ResNet-38 forward, fp32, AVX2"),
    "gpu": Cost(40e12, "FLOP/s of one GPU", "assumed: an eighth of an A100's published peak of 312e12 in bf16"),
    "launch": Cost(0.03, "s of a training step", "assumed: launches and optimiser on a GPU"),
    "shard": Cost(0.02, "s of the driver a shard", "measured, `memory`, 100,000 and 1,000,000 rows, busy machine"),
    "worker": Cost(5.0, "s", "measured earlier: imports and network of a worker"),
    "training": Cost(30.0, "s", "measured earlier: start and end of a training group"),
    "bandwidth": Cost(1.25e9, "bytes/s between nodes", "assumed: 10 Gbit/s"),
    "latency": Cost(5e-5, "s a message", "assumed"),
    "cores": Cost(16, "cores a node", "assumed"),
}


@dataclass(frozen=True)
class DataSet:
    """What of a data set decides about time."""

    name: str
    num_train: int
    num_val: int
    size: tuple[int, int]
    crf: str
    """The cost of the last CRF."""
    num_classifier_steps: int
    num_segmenter_steps: int
    """VOC: 20,000; COCO: 100,000 (deeplab-pytorch)."""

    @property
    def rows(self) -> int:
        """Images of a shard, as ``prepare`` chooses it."""
        return max(16, min(128, (self.num_train + self.num_val) // 256))


VOC = DataSet("VOC", 10_582, 1_449, (375, 500), "crf 21", 15 * 10_582 // 8, 20_000)
COCO = DataSet("COCO", 82_783, 40_504, (480, 640), "crf 81", 15 * 82_783 // 8, 100_000)


@cache
def find_case(name: str) -> Case:
    """A network of the GPU kit by the beginning of its name."""
    return next(case for case in read_cases("paper") if case.name.startswith(name))


@cache
def count_flops(name: str, size: tuple[int, int]) -> float:
    """Arithmetic of one forward pass of one image, multiply and add counted apart."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = cast(Any, find_case(name).build(20)).eval()
        forward: Callable[[torch.Tensor], Any] = network.maps if name == "cam" else network.scores
        with torch.no_grad():
            forward(torch.zeros(1, 3, *size))
    return float(counter.get_total_flops())


def count_parameters(name: str) -> int:
    """Of a network."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in find_case(name).build(20).parameters())


def list_steps(data: DataSet, gpu: bool) -> list[ShardStep | TrainStep]:
    """The run, step by step, on nodes with or without GPUs."""
    speed = COSTS["gpu"].value if gpu else COSTS["core"].value * COSTS["cores"].value
    worker_speed = COSTS["gpu"].value if gpu else COSTS["core"].value
    cost = {name: one.value for name, one in COSTS.items()}
    cam, deeplab = find_case("cam"), find_case("deeplab_v2")
    localize = cam.localize
    assert localize is not None
    maps = 2 * sum(count_flops("cam", _scale(data.size, scale)) for scale in localize.scales) / worker_speed
    mask = count_flops("deeplab_v2", data.size) / worker_speed

    def networks(title: str, num_images: int, seconds: float, cpu: float) -> ShardStep:
        if gpu:
            return ShardStep(title, num_images, data.rows, gpu_seconds=seconds, cpu_seconds=cpu)
        return ShardStep(title, num_images, data.rows, cpu_seconds=seconds + cpu)

    def cores(title: str, num_images: int, seconds: float) -> ShardStep:
        return ShardStep(title, num_images, data.rows, cpu_seconds=seconds)

    def train(title: str, name: str, num_steps: int, case: Case) -> TrainStep:
        crop = case.train.augment.crop
        forward = count_flops(name, (crop, crop))
        size, gradients = case.train.batch_size, 4.0 * count_parameters(name)
        launch = cost["launch"] if gpu else 0.0
        return TrainStep(title, num_steps, size, 3 * forward / speed, launch, cost["sample"], gradients)

    return [
        cores("prepare", data.num_train + data.num_val, cost["prepare"]),
        train("train", "cam", data.num_classifier_steps, cam),
        networks("maps", data.num_train, maps, cost["decode"]),
        cores("CRF", data.num_train, cost["decode"] + cost["crf 2"]),
        train("segment", "deeplab_v2", data.num_segmenter_steps, deeplab),
        networks("predict", data.num_val, mask, cost["decode"] + cost[data.crf]),
        cores("scores", 2 * data.num_train + data.num_val, cost["score"]),
    ]


def _scale(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return round(size[0] * scale), round(size[1] * scale)


@dataclass(frozen=True)
class Setup:
    """A data set on nodes of one kind."""

    data: DataSet
    gpu: bool = True
    faster: float = 1.0
    """How many times as fast the network between the nodes is."""

    @property
    def name(self) -> str:
        """For the head of a column."""
        gigabits = 8e-9 * self.faster * COSTS["bandwidth"].value
        return f"{self.data.name}, {'GPU' if self.gpu else '16 cores'}, {gigabits:g} Gbit/s"


SETUPS = (Setup(VOC), Setup(VOC, faster=10), Setup(COCO), Setup(COCO, faster=10), Setup(VOC, gpu=False))


def simulate(setup: Setup, nodes: int) -> list[Spent]:
    """The steps of a run on so many nodes."""
    cost = {name: one.value for name, one in COSTS.items()}
    bandwidth = setup.faster * cost["bandwidth"]
    cluster = Cluster(nodes, int(cost["cores"]), int(setup.gpu), bandwidth, cost["latency"])
    start = Start(worker=cost["worker"], training=cost["training"], shard=cost["shard"])
    return run_all(list_steps(setup.data, setup.gpu), cluster, start)


def write_tables() -> str:
    """Total hours by nodes, the hours of every step, and the costs with their sources, as Markdown."""
    found = {(setup, nodes): simulate(setup, nodes) for setup in SETUPS for nodes in NODES}
    hours = {key: sum(step.seconds for step in steps) / 3600 for key, steps in found.items()}
    text = [f"| nodes | {' | '.join(setup.name for setup in SETUPS)} |", f"|---|{'---|' * len(SETUPS)}"]
    for nodes in NODES:
        cells = [f"{hours[one, nodes]:.3g} h ({hours[one, 1] / hours[one, nodes]:.1f}x)" for one in SETUPS]
        text.append(f"| {nodes} | {' | '.join(cells)} |")
    limits = [
        f"{one.name}: {max(nodes for nodes in NODES if hours[one, 1] / hours[one, nodes] >= nodes / 2)}"
        for one in SETUPS
    ]
    text += ["", f"Most nodes of which at least half is used: {'; '.join(limits)}.", ""]
    titles = [step.title for step in found[SETUPS[0], 1]]
    text += [f"| hours of each step (training workers) | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for setup in SETUPS:
        for nodes in (1, 8, 64):
            cells = [f"{step.seconds / 3600:.2g}{_name_workers(step)}" for step in found[setup, nodes]]
            text.append(f"| {setup.name}, nodes: {nodes} | {' | '.join(cells)} |")
    text += ["", "| cost | value | where from |", "|---|---|---|"]
    text += [f"| {name} | {cost.value:.3g} {cost.unit} | {cost.source} |" for name, cost in COSTS.items()]
    for name, size in (("cam", VOC.size), ("cam", (448, 448)), ("deeplab_v2", VOC.size), ("deeplab_v2", (321, 321))):
        title = {"cam": "ResNet-38 classifier", "deeplab_v2": "DeepLab v2, three input scales"}[name]
        cell = f"{title}, {size[0]} x {size[1]} | {count_flops(name, size):.3g} FLOP an image"
        text.append(f"| {cell} | counted here; training takes 3 times as much |")
    return "\n".join(text) + "\n"


def _name_workers(step: Spent) -> str:
    return f" ({step.workers})" if step.title in ("train", "segment") else ""


def measure_costs() -> dict[str, float]:
    """The CPU's costs on this machine, one thread, CPU time of one image; about a minute."""
    from benchmarks.crf import make_scores
    from benchmarks.images import draw_noise
    from benchmarks.thresholds import NUM_LABELS, draw_maps
    from wsss_ray.data.image import decode_image, encode_jpeg
    from wsss_ray.refine.crf import PRESETS, smooth_scores
    from wsss_ray.score.curve import ThresholdCurve

    torch.set_num_threads(1)
    images = [draw_noise(seed) for seed in range(3)]
    files, maps = [encode_jpeg(image) for image in images], draw_maps(3)
    curve = ThresholdCurve(np.arange(100) / 100, NUM_LABELS)
    scores = {labels: make_scores(VOC.size, labels, 0, network=False) for labels in (2, 21, 81)}
    network = cast(Any, find_case("cam").build(20)).eval()
    inputs = torch.zeros(1, 3, 224, 224)

    def forward() -> None:
        with torch.inference_mode():
            network.maps(inputs)

    found = {
        "decode": _time_each(lambda place: decode_image(files[place], "image")),
        "crf 2": _time_each(lambda place: smooth_scores(images[place], scores[2], PRESETS["psa"])),
        "crf 21": _time_each(lambda place: smooth_scores(images[place], scores[21], PRESETS["deeplab_v2"])),
        "crf 81": _time_each(lambda place: smooth_scores(images[place], scores[81], PRESETS["deeplab_v2"])),
        "score": _time_each(lambda place: curve.add(maps[place][1], maps[place][0].classes, maps[place][0].full())),
    }
    return {**found, "core": count_flops("cam", (224, 224)) / _time_each(lambda place: forward())}


def _time_each(work: Callable[[int], object]) -> float:
    work(0)
    start = time.process_time()
    for place in range(3):
        work(place)
    return (time.process_time() - start) / 3


def main() -> None:
    """Print the tables, or this machine's costs beside those of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", metavar="PAGE", help=f"also put the tables between the marks {BEGIN} of this page")
    parser.add_argument("--measure", action="store_true", help="measure the CPU's costs on this machine instead")
    given = parser.parse_args()
    if given.measure:
        for name, value in measure_costs().items():
            print(f"{name:<8} {value:10.3g} {COSTS[name].unit} (table: {COSTS[name].value:.3g})")
        return
    text = write_tables()
    print(text)
    if given.docs:
        replace_block(Path(given.docs), text, (BEGIN, END))


if __name__ == "__main__":
    main()
