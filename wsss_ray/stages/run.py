# SPDX-License-Identifier: Apache-2.0
"""A run under way: its recipe, its data, and every step so far, each found in the store or computed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wsss_ray import storage
from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.artifacts.store import Artifact, Step, Store
from wsss_ray.cluster.join import Machines
from wsss_ray.config import UserError
from wsss_ray.data.manifest import DataSet
from wsss_ray.recipe import SettledRecipe

log = logging.getLogger(__name__)
Compute = Callable[[str], Mapping[str, Any]]
"""Fills the folder it is given and returns what the artifact's record says of it."""


class Listener:
    """Hears what a run does, as it does it; one that listens overrides what it wants to hear."""

    def hear_start(self, run: Run) -> None:
        """The data is open and the recipe settled."""

    def hear_epoch(self, title: str, epoch: Mapping[str, Any]) -> None:
        """The record of an epoch of the training step ``title``, at once of one that is loaded."""

    def hear_step(self, title: str, artifact: Artifact) -> None:
        """A step is finished or was found finished."""

    def hear_end(self, finished: FinishedRun) -> None:
        """The last step is done and the record written."""


@dataclass(frozen=True)
class Steps:
    """The steps of a run so far, and where their artifacts lie."""

    store: Store
    listeners: Sequence[Listener] = ()
    finished: list[tuple[str, Artifact]] = field(default_factory=list)
    """(title, artifact) in order."""

    def find_or_compute(self, title: str, step: Step, compute: Compute) -> Artifact:
        """Load the step's artifact, or compute it under its lock."""
        artifact = self.store.find(step.stage, step.digest)
        if artifact is None:
            with self.store.lock(step.stage, step.digest):
                artifact = self.store.find(step.stage, step.digest) or self._compute(title, step, compute)
        if artifact.reused:
            for epoch in artifact.record.get("history", []):
                self.hear_epoch(title, epoch)
        self.finished.append((title, artifact))
        for listener in self.listeners:
            listener.hear_step(title, artifact)
        return artifact

    def reopen_damaged(self) -> bool:
        """Verify every artifact used so far; make the damaged ones unfinished, and begin the steps anew.

        False where all are whole.
        """
        found = [self.store.reopen(artifact.stage, artifact.digest) for _, artifact in self.finished]
        if any(found):
            self.finished.clear()
        return any(found)

    def hear_epoch(self, title: str, epoch: Mapping[str, Any]) -> None:
        """Pass the record of an epoch on to all listeners."""
        for listener in self.listeners:
            listener.hear_epoch(title, epoch)

    def _compute(self, title: str, step: Step, compute: Compute) -> Artifact:
        start = time.monotonic()
        self.store.reopen(step.stage, step.digest)
        folder, resumed = self.store.folder(step.stage, step.digest), self.store.is_begun(step.stage, step.digest)
        log.debug(f"{title}: computing {folder}")
        try:
            result = compute(folder)
        except Exception as error:
            if storage.is_disk_full(error):
                raise UserError(f"{folder}: {title}: {storage.DISK_FULL}") from None
            raise
        record = {"step": asdict(step), "seconds": time.monotonic() - start, "resumed": resumed, **result}
        return self.store.finish(step.stage, step.digest, record)


@dataclass(frozen=True)
class Run:
    """What every step of a run needs."""

    recipe: SettledRecipe
    data: DataSet
    steps: Steps
    machines: Machines

    @property
    def train_digest(self) -> str:
        """The digest of the training split."""
        return self.split_digest(self.recipe.data.train_split)

    def split_digest(self, split: str) -> str:
        """The digest of all rows of a split."""
        return self.data.manifest.splits[split].digest
