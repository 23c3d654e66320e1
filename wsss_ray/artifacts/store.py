# SPDX-License-Identifier: Apache-2.0
"""Settings -> digest -> folder: a finished step is loaded, never redone; a half-finished one resumes.

A step's folder is ``<out>/<stage>/<digest>``; it is finished when ``artifact.json`` is in it, which is written last and
atomically. The digest covers everything that can change the result and nothing that cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from wsss_ray import storage
from wsss_ray.artifacts.checkpoint import has_checkpoint
from wsss_ray.artifacts.files import FIX, LOCK, MARK, RECORD, ArtifactRecord, describe_files, find_damage
from wsss_ray.config import UserError

log = logging.getLogger(__name__)


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Step:
    """What can change the result of a step, and nothing that cannot: its fields are its digest.

    Fields hold plain values; inputs are the digests of artifacts and of splits.
    """

    stage: ClassVar[str]
    """The folder its artifacts lie in."""
    version: ClassVar[int]
    """Raised when its code changes its result, so that old artifacts are not mistaken for new ones."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name its artifact."""
        return digest({"stage": self.stage, "version": self.version, **asdict(self)})


@dataclass(frozen=True)
class Artifact:
    """The finished output of a step."""

    stage: str
    digest: str
    uri: str
    record: dict[str, Any]
    """What ``artifact.json`` holds: config, inputs, summary metrics, seconds, content digest."""
    reused: bool = False


class Store:
    """All artifacts below one folder or URI."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.make_absolute(uri)

    def folder(self, stage: str, uid: str) -> str:
        """Where the step with this digest keeps its output, finished or not."""
        return storage.join(self.uri, stage, uid)

    def find(self, stage: str, uid: str) -> Artifact | None:
        """The finished artifact, or None: also where its record is damaged, or a file is gone or of another size."""
        folder = self.folder(stage, uid)
        if not storage.exists(storage.join(folder, RECORD)):
            return None
        try:
            record = read_artifact(folder)
        except UserError:
            return None
        if find_damage(folder, record, whole=False):
            return None
        return Artifact(stage, uid, folder, record.model_dump(), reused=True)

    def finish(self, stage: str, uid: str, record: dict[str, Any]) -> Artifact:
        """Mark the step as finished, with its record and what its files hold."""
        folder = self.folder(stage, uid)
        whole = {**record, **describe_files(folder)}
        storage.write_record(storage.join(folder, RECORD), whole)
        return Artifact(stage, uid, folder, whole)

    def reopen(self, stage: str, uid: str) -> list[str]:
        """Make a damaged artifact an unfinished one, without its damaged files, so that it is computed again.

        Returns what was damaged, by name; nothing where the artifact is whole or unfinished.
        """
        folder = self.folder(stage, uid)
        record = storage.join(folder, RECORD)
        if not storage.exists(record):
            return []
        try:
            damaged = find_damage(folder, read_artifact(folder))
        except UserError:
            damaged = [RECORD]
        if damaged:
            # The record first: a folder with one is finished.
            for name in (RECORD, *damaged, MARK):
                storage.remove(storage.join(folder, name))
            log.warning("%s: damaged (%s), computed again", folder, ", ".join(damaged))
        return damaged

    def is_begun(self, stage: str, uid: str) -> bool:
        """Whether an earlier run left a part of a step that is not finished."""
        folder = self.folder(stage, uid)
        return has_checkpoint(folder) or any(name != LOCK for name in storage.list_names(folder))

    @contextlib.contextmanager
    def lock(self, stage: str, uid: str) -> Iterator[None]:
        """Hold the step: of several runs that need it one computes, the others wait and then load.

        Only runs on one machine wait for each other over a remote store; others would write the same bytes to the same
        names.
        """
        with lock_folder(self.folder(stage, uid)):
            yield


def read_artifact(folder: str) -> ArtifactRecord:
    """What the record of a finished artifact says; UserError where it is damaged."""
    return storage.read_record(storage.join(folder, RECORD), ArtifactRecord, FIX)


def lock_folder(folder: str) -> FileLock:
    """A folder's lock, not held yet: the operating system's, which dies with its process.

    A remote folder's lies in this machine's temporary folder, and holds on this machine alone.
    """
    place = storage.find_local(folder)
    if place is None:
        place = Path(tempfile.gettempdir()) / f"wsss-locks-{os.getuid()}" / digest([folder])
    place.mkdir(parents=True, exist_ok=True)
    return FileLock(place / LOCK)


@contextlib.contextmanager
def hold_folder(folder: str, what: str) -> Iterator[None]:
    """Keep other processes off the folder of a "study" or "sweep", whose results two of them would overwrite.

    Raises UserError at once where another has it, or where nothing can be written there.
    """
    try:
        lock = lock_folder(folder)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another process runs this {what}; wait until it ends, or give this one another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot write ({error}); free some space there or choose another --out") from error
    try:
        yield
    finally:
        lock.release()
