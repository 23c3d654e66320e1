# SPDX-License-Identifier: Apache-2.0
"""Every method at paper scale on one GPU, without Ray: speed against bare PyTorch loops, memory, and equal results.

    python -m benchmarks.gpu [--data PREPARED] [--out gpu_results] [--minutes 9]

Needs this repository, torch, numpy, pyarrow, pillow, pydantic and safetensors, and nothing else. Networks have random
weights; images are generated, or those of prepared data. Writes ``gpu.json`` and ``gpu.md``; what the time does not
suffice for is said there. ``--tiny`` runs the methods at toy scale, in seconds, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.baselines.localize_loop import Protocol, read_maps
from benchmarks.baselines.predict_loop import predict_mask
from benchmarks.baselines.train_loop import train_by_hand, wait
from benchmarks.gpu_methods import SETTINGS, Case, collect_settings, make_lookups, read_cases
from benchmarks.gpu_report import write_table
from benchmarks.images import list_images, write_images
from wsss_ray.contracts import Batch, Localizer, Progress, Segments, Trainable
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.samples import Sampling, TrainSamples, collate
from wsss_ray.data.shards import Rows
from wsss_ray.engine.localize import LabelledImage, read_class_maps
from wsss_ray.engine.passes import Device
from wsss_ray.engine.precision import use_bf16
from wsss_ray.engine.predict import MaskPredictor
from wsss_ray.engine.train import Training, measure_peak_memory, train_network
from wsss_ray.engine.validate import World
from wsss_ray.nets.optim import build_optimizer

NUM_CLASSES, NUM_IMAGES, NUM_ASKED = 20, 320, 8
PARITY_SIZE = (240, 320)
TINY_CROP = 80


@dataclass(frozen=True)
class Bench:
    """What all cases are measured with."""

    device: torch.device
    rows: Rows
    num_classes: int
    images: list[np.ndarray]
    """Of the localize and predict passes."""
    crop: int | None = None
    """Side of training crops and images to a batch, where the methods' own are too large (``--tiny``)."""
    batch: int | None = None
    threads: int = 8


def measure_case(case: Case, bench: Bench, seconds: float) -> dict[str, Any]:
    """Everything of one network in about so many seconds; a part that fails says so in its place."""
    start = time.monotonic()
    parts: dict[str, Callable[[float], Mapping[str, Any]]] = {"train": lambda left: measure_training(case, bench, left)}
    if case.localize is not None:
        parts["localize"] = lambda left: measure_localizing(case, bench, left)
    if case.predict is not None:
        parts["predict"] = lambda left: measure_predicting(case, bench, left)
    parts["parity"] = lambda left: compare_devices(case, bench)
    found: dict[str, Any] = {"name": case.name, "backbone": case.part["net"]["backbone"]}
    for place, (name, measure) in enumerate(parts.items()):
        left = max(0.0, seconds - (time.monotonic() - start)) / (len(parts) - place)
        try:
            found[name] = dict(measure(left))
        except torch.OutOfMemoryError:
            found[name] = {"error": "out of memory"}
        except Exception as problem:  # the other parts still say something
            found[name] = {"error": f"{type(problem).__name__}: {str(problem).splitlines()[0][:200]}"}
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return {**found, "seconds": time.monotonic() - start}


def measure_training(case: Case, bench: Bench, seconds: float) -> dict[str, Any]:
    """Steps and images per second of the engine with its loader, and of a bare loop over one batch of the same network.

    Both are past every warm-up of a method's losses. The share of time the device waits is what the bare loop spares.
    """
    config = case.train
    size = bench.batch or config.batch_size_at(config.epochs - 1)
    update: dict[str, Any] = {"validate_images": 0, "batch_size": size, "batch_milestones": {}, "accumulate": 1}
    if bench.crop is not None:
        update["augment"] = config.augment.model_copy(update={"crop": bench.crop})
    config = config.model_copy(update=update)
    sampling = Sampling(config.augment, case.normalize, 0, case.needs)
    samples = TrainSamples(bench.rows, bench.num_classes, sampling, make_lookups(bench.rows, bench.num_classes))
    network = case.build(bench.num_classes)
    network.to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(cast(Trainable, network).param_groups(), config.optimizer)
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": config.epochs - 2}
    batch = collate([samples.sample(0, index) for index in range(size)]).to(bench.device, torch.channels_last)
    whole = len(samples) // size
    progress = Progress(config.epochs - 1, (config.epochs - 1) * whole, config.epochs, config.epochs * whole)
    loss = _choose_loss(network, batch, progress, use_bf16(config.precision, bench.device))
    train_by_hand(loss, optimizer, bench.device, 2)
    once = train_by_hand(loss, optimizer, bench.device, 2)
    steps = int(max(1, min(whole, 60, 0.3 * seconds / once)))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    bare = train_by_hand(loss, optimizer, bench.device, steps)
    training = Training(
        samples,
        config.model_copy(update={"max_steps": (config.epochs - 1) * whole + steps}),
        0,
        World(device=bench.device),
        threads=bench.threads,
    )
    begin = wait(bench.device)
    train_network(network, training, state)
    engine = (wait(bench.device) - begin) / steps
    return {
        "batch": size,
        "crop": config.augment.crop,
        "precision": config.precision,
        "steps": steps,
        "steps_per_second": 1 / engine,
        "images_per_second": size / engine,
        "bare_images_per_second": size / bare,
        "ratio": engine / bare,
        "waiting": max(0.0, 1 - bare / engine),
        "memory_mb": measure_peak_memory(bench.device),
    }


def _choose_loss(network: nn.Module, batch: Batch, progress: Progress, bf16: bool) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=bf16):
            parts = cast(Trainable, network).loss(batch, progress)
        return torch.stack([value.float() for key, value in parts.items() if not key.startswith("monitor/")]).sum()

    return loss


def measure_localizing(case: Case, bench: Bench, seconds: float) -> dict[str, Any]:
    """Images per second of class maps at the method's scales, and of a bare loop over the same passes."""
    config = case.localize
    assert config is not None
    network = _load_for_asking(case, bench)
    localizer = cast(Localizer, network)
    told = case.normalize.describe()
    protocol = Protocol(config.scales, tuple(told["mean"]), tuple(told["std"]), config.stride)
    images = [LabelledImage(str(number), image, (0, 1)) for number, image in enumerate(bench.images)]
    on = Device(case.normalize, bench.device, len(images))

    def engine() -> None:
        read_class_maps(localizer, images, config, case.fusion, on)

    def bare() -> None:
        for image in images:
            read_maps(localizer.maps, image.pixels, image.classes, protocol, bench.device)

    return _race(engine, bare, len(images), bench.device, seconds)


def measure_predicting(case: Case, bench: Bench, seconds: float) -> dict[str, Any]:
    """Images per second of multi-scale probabilities, without CRF, and of a bare loop over the same passes."""
    config = case.predict
    assert config is not None
    network = _load_for_asking(case, bench)
    segments = cast(Segments, network)
    on = Device(case.normalize, bench.device, len(bench.images))
    predictor = MaskPredictor(segments, bench.num_classes + 1, config, on)

    def engine() -> None:
        for _, scores in predictor.score_images(bench.images):
            scores.multi.argmax(axis=0)

    def bare() -> None:
        for image in bench.images:
            predict_mask(segments.scores, image, config.scales, config.flip, case.normalize.apply, bench.device)

    return _race(engine, bare, len(bench.images), bench.device, seconds)


def _load_for_asking(case: Case, bench: Bench) -> nn.Module:
    network = case.build(bench.num_classes).to(bench.device).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _race(
    engine: Callable[[], None], bare: Callable[[], None], num_images: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Both sides in turn for about so many seconds, after one call each that does not count."""
    engine()
    bare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    until = time.monotonic() + 0.6 * seconds
    times: list[tuple[float, float]] = []
    while not times or time.monotonic() < until:
        start = wait(device)
        engine()
        middle = wait(device)
        bare()
        times.append((middle - start, wait(device) - middle))
    ours, theirs = np.median(np.array(times), axis=0)
    return {
        "images_per_second": num_images / float(ours),
        "bare_images_per_second": num_images / float(theirs),
        "ratio": float(ours / theirs),
        "rounds": len(times),
        "memory_mb": measure_peak_memory(device),
    }


def compare_devices(case: Case, bench: Bench) -> dict[str, Any]:
    """How far fp32 results on the device lie from those on the CPU: of one image, at one scale, without TF32."""
    image = bench.images[0][: PARITY_SIZE[0], : PARITY_SIZE[1]]
    inputs = case.normalize.apply(np.ascontiguousarray(image))[None]
    found: list[Tensor] = []
    for device in (torch.device("cpu"), bench.device):
        network = case.build(bench.num_classes).to(device).eval()
        ask = cast(Localizer, network).maps if case.localize is not None else cast(Segments, network).scores
        with switch_off_tf32(), torch.inference_mode():
            found.append(ask(inputs.to(device)).float().cpu())
    on_cpu, on_device = found
    scale = on_cpu.abs().max().clamp(min=1e-12)
    return {
        "largest_difference": float((on_cpu - on_device).abs().max() / scale),
        "equal_labels": float((on_cpu.argmax(1) == on_device.argmax(1)).float().mean()),
    }


class switch_off_tf32:  # noqa: N801 (used like a function)
    """Full fp32 in convolutions and matrix products within the block."""

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self.before


def describe_device(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 0.0
    found = {"device": f"{name}, {memory:.0f} GiB" if memory else f"CPU ({name})"}
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {**found, **versions, "CUDA": str(torch.version.cuda)} if device.type == "cuda" else {**found, **versions}


def prepare_bench(given: argparse.Namespace, folder: Path) -> Bench:
    """Images as prepared data on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() and not given.cpu else "cpu")
    if given.tiny:
        data = write_images(folder / "data", list_images(None, 8, (80, 96)), 5, saliency=True)
        rows = Rows(data, "train", cache=folder / "cache")
        return Bench(device, rows, 5, list_images(None, 2, (64, 80)), crop=TINY_CROP, batch=2, threads=1)
    data = given.data or write_images(folder / "data", list_images(None, NUM_IMAGES), NUM_CLASSES, saliency=True)
    manifest = load_manifest(data)
    split = "train" if "train" in manifest.splits else next(iter(manifest.splits))
    rows = Rows(data, split, cache=folder / "cache")
    return Bench(device, rows, len(manifest.classes), list_images(given.data, NUM_ASKED), threads=given.threads)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure all cases within the minutes given."""
    start = time.monotonic()
    until = start + 60 * given.minutes - 10
    cases = read_cases("toy" if given.tiny else "paper")
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare_bench(given, Path(folder))
        print(json.dumps(describe_device(bench.device)), flush=True)
        found = []
        for place, case in enumerate(cases):
            left = (until - time.monotonic()) / (len(cases) - place)
            if left < 0.5 and not given.tiny:
                found.append({"name": case.name, "error": "not run: no time was left"})
                continue
            found.append(measure_case(case, bench, min(left, 1.0) if given.tiny else left))
            print(f"{case.name}: {found[-1]['seconds']:.0f} s", flush=True)
    kind = "toy scale, tiny" if given.tiny else "paper scale"
    images = "photographs" if given.data else "generated images"
    return {
        "machine": describe_device(bench.device),
        "images": f"{kind}, {images}",
        "seconds": time.monotonic() - start,
        "cases": found,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where a part failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="prepared data with saliency maps (wsss data prepare); default: generated")
    parser.add_argument("--out", default="gpu_results", help="folder of the two tables (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="that build batches (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument("--tiny", action="store_true", help="toy scale, one short round each")
    parser.add_argument("--write-settings", action="store_true", help=f"write {SETTINGS.name} from the studies anew")
    given = parser.parse_args(arguments)
    if given.write_settings:
        SETTINGS.write_text(f"{json.dumps(collect_settings(), indent=1)}\n", encoding="utf-8")
        return 0
    record = run(given)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (out / "gpu.md").write_text(write_table(record), encoding="utf-8")
    print(f"{record['seconds']:.0f} s; tables in {out}")
    failed = [
        case for case in record["cases"] if any("error" in part for part in case.values() if isinstance(part, dict))
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
