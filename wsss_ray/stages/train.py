"""The train step on Ray Train: any number of workers, a checkpoint per epoch, killed runs resume under the same
name."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from wsss_ray import storage
from wsss_ray.artifacts import network as build
from wsss_ray.artifacts.network import NetworkSpec
from wsss_ray.artifacts.tables import Lookup
from wsss_ray.cluster.board import Board
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import Config, UserError
from wsss_ray.data.samples import Lookups, Sampling, TrainSamples
from wsss_ray.data.shards import Rows
from wsss_ray.engine import train as training
from wsss_ray.engine.watch import SeedWatch

STATE = "state.pt"
TRAINING_COLUMNS = ("image_id", "image", "labels", "saliency", "height", "width")
WATCH_COLUMNS = ("image_id", "image", "labels", "mask")
"""Of validation images alone, and only where ``train.validate_seeds`` opts in to score seeds every epoch."""


class TrainJob(Config):
    """Everything a training worker needs to know; addresses and worker counts are not part of a result."""

    spec: NetworkSpec
    data: str
    split: str
    val_split: str | None
    seed: int
    base: str | None = None
    """Folder of the trained base localizer."""
    maps: str | None = None
    masks: str | None = None
    threads: int = 2


def run_training(
    title: str,
    job: TrainJob,
    out: str,
    machines: Machines,
    on_epoch: Callable[[str, dict[str, Any]], None] = lambda title, epoch: None,
) -> dict[str, Any]:
    """Train into folder ``out`` (weights and history); continues from its last epoch's checkpoint after any kill.

    ``on_epoch`` is called in this process, from another thread, with the title and the record of every epoch.
    Returns {"history": [one record per epoch], ...} for the artifact's record.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    filesystem, path = storage.open_fs(out)
    filesystem.create_dir(path, recursive=True)
    resources: dict[str, float] = {"CPU": machines.train_cpus}
    if machines.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job.model_dump_json(), "board": board},
        torch_config=TorchConfig(backend="nccl" if machines.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=machines.train_workers, use_gpu=machines.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with _watched(title, board, on_epoch):
        try:
            result = trainer.fit()
        except Exception as error:
            message = ray.get(board.read.remote())[4]
            if message:
                raise UserError(message) from None
            raise RuntimeError(f"{title}: training failed: {error}") from error
    checkpoint = result.checkpoint
    if checkpoint is None:
        raise RuntimeError(f"{title}: training ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        for name in (build.MODEL, "history.json"):
            storage.write_bytes(storage.join(out, name), (Path(folder) / name).read_bytes())
    filesystem.delete_dir(f"{path}/checkpoints")
    storage.write_bytes(storage.join(out, "network.json"), job.spec.model_dump_json(indent=1).encode())
    return {"history": storage.read_json(storage.join(out, "history.json"))}


@contextlib.contextmanager
def _watched(title: str, board: Any, on_epoch: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """A progress bar fed from the board while training runs."""
    stop = threading.Event()
    told: set[int] = set()

    def watch() -> None:
        with Bar(title, 0, "steps") as bar:
            while True:
                ended = stop.wait(1.0)
                try:
                    step, num_steps, loss, epochs, _ = ray.get(board.read.remote())
                except Exception:  # the cluster is going down; the run itself reports why
                    return
                for epoch in sorted(set(epochs) - told):
                    told.add(epoch)
                    on_epoch(title, epochs[epoch])
                bar.set_total(num_steps)
                last = epochs.get(max(epochs, default=-1), {})
                precision = f" mAP {last['mean_ap']:.3f}" if last.get("mean_ap") is not None else ""
                bar.at(step, f"loss {loss:.4f}{precision}")
                if ended:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _worker(config: dict[str, Any]) -> None:
    """One training worker."""
    board = config["board"]
    try:
        _train(TrainJob.model_validate_json(config["job"]), board)
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise


def _train(job: TrainJob, board: Any) -> None:
    keep_freed_memory()
    context = ray.train.get_context()
    world = training.World(context.get_world_rank(), context.get_world_size(), get_device())
    spec, config = job.spec, job.spec.train
    torch.manual_seed(job.seed)
    network = build.network(spec, pretrained=True, base_folder=job.base)
    # Without the columns of ground truth: training cannot read it, even by mistake.
    rows = Rows(job.data, job.split, columns=TRAINING_COLUMNS)
    samples = TrainSamples(
        rows,
        spec.num_classes,
        Sampling(config.augment, spec.net.normalize, job.seed, spec.needs),
        Lookups(Lookup(job.masks).mask if job.masks else None, Lookup(job.maps).maps if job.maps else None),
    )
    validation = None
    if job.val_split and config.validate_images and spec.kind == "localizer":
        validation = training.validation_images(
            Rows(job.data, job.val_split, columns=TRAINING_COLUMNS),
            spec.num_classes,
            spec.net.normalize,
            config.validate_images,
            config.validate_long_side,
        )
    watch = None
    if job.val_split and config.validate_seeds and spec.localization is not None and world.rank == 0:
        watch = SeedWatch(
            Rows(job.data, job.val_split, columns=WATCH_COLUMNS),
            spec.num_classes,
            spec.localization,
            config.validate_seeds,
        )
    state, history = _restore(world)
    last = [0.0]

    def on_step(step: int, num_steps: int, loss: float) -> None:
        if world.rank == 0 and (time.monotonic() - last[0] > 1 or step == num_steps):
            last[0] = time.monotonic()
            board.at.remote(step, num_steps, loss)

    def on_epoch(report: training.EpochReport, snapshot: Any) -> None:
        record = {
            "epoch": report.epoch,
            "step": report.step,
            "losses": report.losses,
            "mean_ap": report.mean_ap,
            "images_per_second": report.images_per_second,
            "peak_memory_mb": report.peak_memory_mb,
            "learning_rate": report.learning_rate,
        }
        if watch is not None:
            record |= watch.score(network, world.device)
        history.append(record)
        if world.rank != 0:
            ray.train.report(report.losses)
            return
        board.epoch.remote(record)
        with tempfile.TemporaryDirectory() as folder:
            whole = snapshot()
            build.save_state(network, Path(folder) / build.MODEL)
            torch.save({"optimizer": whole["optimizer"], "epoch": whole["epoch"]}, Path(folder) / STATE)
            storage.write_json(f"{folder}/history.json", history)
            ray.train.report(report.losses, checkpoint=Checkpoint.from_directory(folder))

    training.fit(
        network, samples, config, job.seed, world, validation, state, training.Hooks(on_epoch, on_step), job.threads
    )


def _restore(world: training.World) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The state and history of the last finished epoch, or nothing."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None, []
    from safetensors.torch import load_file

    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
        state["model"] = load_file(Path(folder) / build.MODEL)
        history = storage.read_json(f"{folder}/history.json")
    return state, history
