"""Configuration -> digest -> folder: a finished stage is loaded, never redone; a half-finished one resumes.

A stage's folder is ``<out>/<stage>/<digest>``; it is finished when ``artifact.json`` is in it, which is written last
and
atomically. The digest covers everything that can change the result and nothing that cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_ray import storage

RECORD = "artifact.json"


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """The finished output of a stage."""

    stage: str
    digest: str
    uri: str
    record: dict[str, Any]
    """What ``artifact.json`` holds: config, inputs, summary metrics, seconds, content digest."""
    reused: bool = False


class Store:
    """All artifacts below one folder or URI."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)

    def folder(self, stage: str, uid: str) -> str:
        """Where the stage with this digest keeps its output, finished or not."""
        return storage.join(self.uri, stage, uid)

    def find(self, stage: str, uid: str) -> Artifact | None:
        """The finished artifact, or None."""
        record = storage.join(self.folder(stage, uid), RECORD)
        if not storage.exists(record):
            return None
        return Artifact(stage, uid, self.folder(stage, uid), storage.read_json(record), reused=True)

    def finish(self, stage: str, uid: str, record: dict[str, Any]) -> Artifact:
        """Mark the stage as finished, with its record."""
        storage.write_json(storage.join(self.folder(stage, uid), RECORD), record)
        return Artifact(stage, uid, self.folder(stage, uid), record)

    @contextlib.contextmanager
    def lock(self, stage: str, uid: str) -> Iterator[None]:
        """Hold the stage: of several runs that need it one computes, the others wait and then load.

        The lock is the operating system's and dies with its process. For a remote store it lies in this machine's
        temporary folder, so that only runs on one machine wait for each other (others would write the same bytes to
        the same names).
        """
        from filelock import FileLock

        folder = storage.local_path(self.folder(stage, uid))
        if folder is None:
            folder = Path(tempfile.gettempdir()) / f"wsss-locks-{os.getuid()}" / digest([self.uri, stage, uid])
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield


def content_digest(uri: str) -> str:
    """Digest over the names and bytes of a folder's data files (Parquet, safetensors): equal runs have equal ones."""
    hasher = hashlib.sha256()
    for name in storage.list_names(uri):
        if name.endswith((".parquet", ".safetensors")):
            hasher.update(name.encode())
            hasher.update(storage.read_bytes(storage.join(uri, name)))
    return hasher.hexdigest()[:16]
