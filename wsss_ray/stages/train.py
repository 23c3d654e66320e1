# SPDX-License-Identifier: Apache-2.0
"""The train step: any number of workers, a checkpoint per epoch and every few minutes, killed runs resume."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from wsss_ray import storage
from wsss_ray.artifacts.checkpoint import read_checkpoint, remove_checkpoints, write_checkpoint
from wsss_ray.artifacts.network import (
    MODEL,
    NETWORK,
    LocalizerSpec,
    NetworkSpec,
    encode_state,
    parse_spec,
)
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import Lookup
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.workers import Seat, TrainingWork, run_workers
from wsss_ray.data.samples import Lookups, Sampling, TrainSamples
from wsss_ray.data.shards import Rows
from wsss_ray.engine.train import EpochReport, Hooks, Request, Training, train_network
from wsss_ray.engine.validate import ValidationImage, load_validation_images
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
    out: str
    """Where its checkpoints, and in the end weights and history go."""
    data: str
    split: str
    val_split: str
    seed: int
    threads: int
    checkpoint_seconds: float
    """Between two checkpoints within an epoch."""
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
        out=run.steps.store.folder(step.stage, step.digest),
        data=run.data.uri,
        split=recipe.data.train_split,
        val_split=recipe.data.val_split,
        seed=recipe.seed,
        threads=recipe.resources.loader_threads,
        checkpoint_seconds=60 * recipe.resources.checkpoint_minutes,
        base=_uri_of(inputs.base),
        maps=_uri_of(inputs.maps),
        masks=_uri_of(inputs.masks),
    )

    def hear_epoch(epoch: Mapping[str, Any]) -> None:
        run.steps.hear_epoch(title, epoch)

    return run.steps.find_or_compute(title, step, lambda _: run_training(title, job, run.machines, hear_epoch))


def _digest_of(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.digest


def _uri_of(artifact: Artifact | None) -> str | None:
    return None if artifact is None else artifact.uri


def run_training(
    title: str, job: TrainJob, machines: Machines, hear_epoch: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Train into the job's folder (weights and history); resumes from its last checkpoint after an interruption.

    ``hear_epoch`` is called in this process, from another thread, with the record of every epoch. Returns
    {"history": [one record per epoch]} for the artifact's record.
    """
    run_workers(TrainingWork(title, partial(_train, job), job.out), machines, hear_epoch)
    last = read_checkpoint(job.out)
    if last is None:
        raise RuntimeError(f"{title}: training ended without a checkpoint")
    storage.write_bytes(storage.join(job.out, MODEL), last[MODEL])
    storage.write_bytes(storage.join(job.out, NETWORK), parse_spec(job.spec).model_dump_json(indent=1).encode())
    storage.write_bytes(storage.join(job.out, HISTORY), last[HISTORY])
    remove_checkpoints(job.out)
    return {"history": json.loads(last[HISTORY])}


def _train(job: TrainJob, seat: Seat) -> None:
    _Worker(job, seat).train()


class _Worker:
    """Trains its share of every batch and reports each epoch, with a checkpoint on the first worker."""

    def __init__(self, job: TrainJob, seat: Seat) -> None:
        self.job, self.seat, self.world, self.notes = job, seat, seat.world, seat.notes
        self.spec = parse_spec(job.spec)
        self.history: list[dict[str, Any]] = []
        self.watch: SeedWatch | None = None
        self.last_note = 0.0
        self.last_checkpoint = time.monotonic()

    def train(self) -> None:
        """The whole training, from the last checkpoint on."""
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
        state, self.history = _restore(job.out)
        if self.world.rank == 0:
            self.notes.note_history(self.history, _count_done(state, self.history))
        skips = isinstance(spec, LocalizerSpec) and spec.localization.method.skips_parameters
        training = Training(samples, spec.train, job.seed, self.world, validation, job.threads, skips)
        hooks = Hooks(self._report_epoch, self._note_step, self._ask, self._keep)
        if not train_network(self.network, training, state, hooks) and self.world.rank == 0:
            self.notes.note_left()

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
            self.notes.note_step(step, num_steps, loss)

    def _ask(self) -> Request:
        asked = self.seat.requests.take()
        if time.monotonic() - self.last_checkpoint > self.job.checkpoint_seconds:
            asked = max(asked, Request.CHECKPOINT)
        return asked

    def _keep(self, step: int, state: dict[str, Any]) -> None:
        if self.world.rank == 0:
            self._write_checkpoint(2 * step, {name: value for name, value in state.items() if name != "model"})

    def _report_epoch(self, report: EpochReport, snapshot: Callable[[], dict[str, Any]]) -> None:
        record = vars(report).copy()
        if self.watch is not None:
            record |= self.watch.score_seeds(self.network, self.world.device)
        self.history.append(record)
        if self.world.rank != 0:
            return
        whole = snapshot()
        self._write_checkpoint(2 * report.step + 1, {"optimizer": whole["optimizer"], "epoch": whole["epoch"]})
        self.notes.note_epoch(record)

    def _write_checkpoint(self, number: int, rest: dict[str, Any]) -> None:
        """The network, the history and the rest of the state."""
        state = io.BytesIO()
        torch.save(rest, state)
        files = {
            MODEL: encode_state(self.network),
            STATE: state.getvalue(),
            HISTORY: json.dumps(self.history, indent=1, sort_keys=True).encode(),
        }
        write_checkpoint(self.job.out, number, files)
        self.last_checkpoint = time.monotonic()


def _count_done(state: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> int:
    """Steps that are done, those of an epoch that was broken off among them."""
    begun = (state or {}).get("begun")
    return int(begun["step"] if begun else history[-1]["step"] if history else 0)


def _restore(out: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The state and history of the last checkpoint, or nothing."""
    files = read_checkpoint(out)
    if files is None:
        return None, []
    from safetensors.torch import load

    state = torch.load(io.BytesIO(files[STATE]), map_location="cpu", weights_only=True)
    state["model"] = load(files[MODEL])
    history: list[dict[str, Any]] = json.loads(files[HISTORY])
    return state, history
