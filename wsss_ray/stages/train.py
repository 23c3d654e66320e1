# SPDX-License-Identifier: Apache-2.0
"""The train step on Ray Train: any number of workers, a checkpoint per epoch, killed runs resume under the same
name.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from wsss_ray import storage
from wsss_ray.artifacts.network import (
    MODEL,
    NETWORK,
    LocalizerSpec,
    NetworkSpec,
    parse_spec,
    save_state,
)
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import Lookup
from wsss_ray.cluster.board import Board, Notices
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.cluster.progress import Bar
from wsss_ray.config import UserError
from wsss_ray.data.samples import Lookups, Sampling, TrainSamples
from wsss_ray.data.shards import Rows
from wsss_ray.engine.train import EpochReport, Hooks, Training, train_network
from wsss_ray.engine.validate import ValidationImage, World, load_validation_images
from wsss_ray.engine.watch import SeedReading, SeedWatch
from wsss_ray.nets.weight_store import digest_weights, locate_weights
from wsss_ray.recipe import Localization, take_localizer
from wsss_ray.stages.localize import localize
from wsss_ray.stages.run import Run

VERSION = 3
"""3: the backbone of a method that takes no base over whole starts from its base's. 2: KTSE's pseudo labels changed."""
STATE = "state.pt"
HISTORY = "history.json"
TRAINING_COLUMNS = ("image_id", "image", "labels", "saliency", "height", "width")
"""Without the columns of ground truth: training cannot read it, even by mistake."""
WATCH_COLUMNS = ("image_id", "image", "labels", "mask")
"""Of validation images alone, and only where ``train.validate_seeds`` opts in to score seeds every epoch."""


@dataclass(frozen=True)
class TrainStep(Step):
    """What can change trained weights and their history; inputs by name, None where there is none."""

    stage: ClassVar[str] = "train"
    version: ClassVar[int] = VERSION
    kind: str
    """localizer, affinity or segmenter."""
    num_classes: int
    settings: dict[str, Any]
    """Those that change weights."""
    seed: int
    data: str
    """The training split."""
    validation: str | None = None
    """The validation split, where the history says something of it."""
    weights: str | None = None
    """The file of published weights it starts from."""
    base: str | None = None
    """The localizer it starts from."""
    maps: str | None = None
    masks: str | None = None


@dataclass(frozen=True)
class TrainInputs:
    """The artifacts a training starts from or learns from."""

    base: Artifact | None = None
    maps: Artifact | None = None
    masks: Artifact | None = None


@dataclass(frozen=True)
class TrainJob:
    """Everything a training worker needs to know; addresses and worker counts are not part of a result."""

    spec: str
    """The network, as JSON."""
    data: str
    split: str
    val_split: str
    seed: int
    threads: int
    base: str | None = None
    """Folder of the trained base localizer."""
    maps: str | None = None
    masks: str | None = None


def train_localizer(run: Run, localization: Localization, prefix: str = "") -> Artifact:
    """Train a localizer, after the one it starts from and that one's maps where it learns from them."""
    inputs = TrainInputs()
    if localization.base is not None:
        base = train_localizer(run, localization.base, f"{prefix}base ")
        maps = None
        if "maps" in localization.method.needs:
            maps = localize(run, f"{prefix}base localize", localization.base, base)
        inputs = TrainInputs(base=base, maps=maps)
    spec = LocalizerSpec(num_classes=run.data.num_classes, localization=take_localizer(localization))
    return train(run, f"{prefix}train", spec, inputs)


def train(run: Run, title: str, spec: NetworkSpec, inputs: TrainInputs) -> Artifact:
    """Train one network on the training split."""
    recipe = run.recipe
    validates = isinstance(spec, LocalizerSpec) and (spec.train.validate_images or spec.train.validate_seeds)
    weights = spec.net.weights if inputs.base is None else None
    step = TrainStep(
        kind=spec.kind,
        num_classes=spec.num_classes,
        settings=spec.settings,
        seed=recipe.seed,
        data=run.train_digest,
        validation=run.split_digest(recipe.data.val_split) if validates else None,
        weights=None if weights is None else digest_weights(locate_weights(weights)),
        base=_digest_of(inputs.base),
        maps=_digest_of(inputs.maps),
        masks=_digest_of(inputs.masks),
    )
    job = TrainJob(
        spec=spec.model_dump_json(),
        data=run.data.uri,
        split=recipe.data.train_split,
        val_split=recipe.data.val_split,
        seed=recipe.seed,
        threads=recipe.resources.loader_threads,
        base=_uri_of(inputs.base),
        maps=_uri_of(inputs.maps),
        masks=_uri_of(inputs.masks),
    )

    def hear_epoch(epoch: Mapping[str, Any]) -> None:
        run.steps.hear_epoch(title, epoch)

    return run.steps.find_or_compute(
        title, step, lambda folder: run_training(title, job, folder, run.machines, hear_epoch)
    )


def _digest_of(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.digest


def _uri_of(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.uri


def run_training(
    title: str, job: TrainJob, out: str, machines: Machines, hear_epoch: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Train into folder ``out`` (weights and history); resumes from its last checkpoint after an interruption.

    ``hear_epoch`` is called in this process, from another thread, with the record of every epoch. Returns
    {"history": [one record per epoch]} for the artifact's record.
    """
    board = Board.remote()  # type: ignore[attr-defined]
    filesystem, path = storage.open_fs(out)
    filesystem.create_dir(path, recursive=True)
    resources: dict[str, float] = {"CPU": machines.train_cpus}
    if machines.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "board": board},
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
    with _show_progress(title, board, hear_epoch):
        try:
            result = trainer.fit()
        except Exception as error:
            notices: Notices = ray.get(board.read.remote())
            if notices.error:
                raise UserError(notices.error) from None
            raise RuntimeError(f"{title}: training failed: {error}") from error
    checkpoint = result.checkpoint
    if checkpoint is None:
        raise RuntimeError(f"{title}: training ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        for name in (MODEL, HISTORY):
            storage.write_bytes(storage.join(out, name), (Path(folder) / name).read_bytes())
    filesystem.delete_dir(f"{path}/checkpoints")
    storage.write_bytes(storage.join(out, NETWORK), parse_spec(job.spec).model_dump_json(indent=1).encode())
    return {"history": storage.read_json(storage.join(out, HISTORY))}


@contextlib.contextmanager
def _show_progress(title: str, board: Any, hear_epoch: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """A progress bar fed from the board while training runs."""
    stop = threading.Event()

    def watch() -> None:
        heard: set[int] = set()
        with Bar(title, 0, "steps") as bar:
            ended = False
            while not ended:
                ended = stop.wait(1.0)
                try:
                    notices: Notices = ray.get(board.read.remote())
                except Exception:  # the cluster is going down; the run itself reports why
                    return
                for epoch in sorted(set(notices.epochs) - heard):
                    heard.add(epoch)
                    hear_epoch(notices.epochs[epoch])
                _show_notices(bar, notices)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _show_notices(bar: Bar, notices: Notices) -> None:
    bar.set_total(notices.num_steps)
    last = notices.epochs.get(max(notices.epochs, default=-1), {})
    precision = f" mAP {last['mean_ap']:.3f}" if last.get("mean_ap") is not None else ""
    bar.at(notices.step, f"loss {notices.loss:.4f}{precision}")


def _work(config: dict[str, Any]) -> None:
    """One training worker."""
    board = config["board"]
    try:
        _Worker(config["job"], board).train()
    except UserError as error:
        ray.get(board.note_error.remote(str(error)))
        raise


class _Worker:
    """Trains its share of every batch and reports each epoch, with a checkpoint on the first worker."""

    def __init__(self, job: TrainJob, board: Any) -> None:
        self.job, self.board = job, board
        self.spec = parse_spec(job.spec)
        context = ray.train.get_context()
        self.world = World(context.get_world_rank(), context.get_world_size(), get_device())
        self.history: list[dict[str, Any]] = []
        self.watch: SeedWatch | None = None
        self.last_note = 0.0

    def train(self) -> None:
        """The whole training, from the last finished epoch on."""
        keep_freed_memory()
        job, spec = self.job, self.spec
        torch.manual_seed(job.seed)
        self.network = spec.build(pretrained=True, base_folder=job.base)
        samples = TrainSamples(
            Rows(job.data, job.split, columns=TRAINING_COLUMNS),
            spec.num_classes,
            Sampling(spec.train.augment, spec.net.normalize, job.seed, spec.needs),
            Lookups(
                mask=Lookup(job.masks).mask if job.masks else None, maps=Lookup(job.maps).maps if job.maps else None
            ),
        )
        validation: list[ValidationImage] = []
        if isinstance(spec, LocalizerSpec):
            validation = self._load_validation(spec)
            self.watch = self._open_watch(spec)
        state, self.history = _restore()
        training = Training(samples, spec.train, job.seed, self.world, validation, job.threads)
        train_network(self.network, training, state, Hooks(self._report_epoch, self._note_step))

    def _load_validation(self, spec: LocalizerSpec) -> list[ValidationImage]:
        limit = spec.train.validate_images
        if not limit:
            return []
        rows = Rows(self.job.data, self.job.val_split, columns=TRAINING_COLUMNS)
        return load_validation_images(rows, spec.num_classes, spec.net.normalize, limit, spec.train.validate_long_side)

    def _open_watch(self, spec: LocalizerSpec) -> SeedWatch | None:
        limit = spec.train.validate_seeds
        if not limit or self.world.rank:
            return None
        part = spec.localization
        reading = SeedReading(
            spec.num_classes, part.localize, part.fusion, part.net.normalize, part.method.background()
        )
        return SeedWatch(Rows(self.job.data, self.job.val_split, columns=WATCH_COLUMNS), reading, limit)

    def _note_step(self, step: int, num_steps: int, loss: float) -> None:
        if self.world.rank == 0 and (time.monotonic() - self.last_note > 1 or step == num_steps):
            self.last_note = time.monotonic()
            self.board.note_step.remote(step, num_steps, loss)

    def _report_epoch(self, report: EpochReport, snapshot: Callable[[], dict[str, Any]]) -> None:
        record = vars(report).copy()
        if self.watch is not None:
            record |= self.watch.score_seeds(self.network, self.world.device)
        self.history.append(record)
        if self.world.rank != 0:
            ray.train.report(report.losses)
            return
        self.board.note_epoch.remote(record)
        with tempfile.TemporaryDirectory() as folder:
            whole = snapshot()
            save_state(self.network, Path(folder) / MODEL)
            torch.save({"optimizer": whole["optimizer"], "epoch": whole["epoch"]}, Path(folder) / STATE)
            storage.write_json(f"{folder}/{HISTORY}", self.history)
            ray.train.report(report.losses, checkpoint=Checkpoint.from_directory(folder))


def _restore() -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The state and history of the last finished epoch, or nothing."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None, []
    from safetensors.torch import load_file

    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)
        state["model"] = load_file(Path(folder) / MODEL)
        history: list[dict[str, Any]] = storage.read_json(f"{folder}/{HISTORY}")
    return state, history
