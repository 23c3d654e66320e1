# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent to a store that does not answer: a folder of each run, in the order in which it was logged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError

HEAD, ENTRIES, SENT = "head.json", "entries.jsonl", "sent"
Entry = tuple[int, str, dict[str, Any]]
"""Its number from 0, its kind, and what is written."""


@dataclass(frozen=True)
class Head:
    """Whose entries these are."""

    uri: str
    """Of the store."""
    run: str
    """The run's id; a made-up one where the store has not made it yet."""
    process: str
    """Which process writes them."""
    created: dict[str, Any] | None = None
    """What the run is to be made of, where the store has not made it yet."""
    sent_as: str | None = None
    """Its id in the store, where that was made while sending."""


class Outbox:
    """The entries of one run, in files: ``head.json``, ``entries.jsonl``, the number sent, and copies of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    @classmethod
    def begin(cls, place: Path, uri: str, run: str, created: dict[str, Any] | None) -> Outbox:
        """An outbox below ``place``, or the one that is there; one that cannot be written drops what it is given."""
        outbox = cls(place / run)
        with contextlib.suppress(OSError):
            outbox.folder.mkdir(parents=True, exist_ok=True)
            if not (outbox.folder / HEAD).exists():
                outbox._write(HEAD, json.dumps(asdict(Head(uri, run, name_process(), created))))
            outbox._count = len(list(outbox._list_all()))
        return outbox

    @classmethod
    def list(cls, place: Path) -> list[Outbox]:
        """All outboxes below ``place``."""
        return [cls(path.parent) for path in sorted(place.glob(f"*/{HEAD}"))]

    def read_head(self) -> Head:
        """Whose entries these are; UserError where the file is damaged."""
        try:
            return Head(**json.loads((self.folder / HEAD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.folder / HEAD}: damaged ({error}); remove the folder") from None

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """One more entry; files are copied, since theirs may be gone when it is sent. Never raises for a full disk."""
        with contextlib.suppress(OSError):
            if kind == "file":
                copy = self.folder / f"files-{self._count}" / Path(values["path"]).name
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(values["path"], copy)
                values = {**values, "path": str(copy)}
            with (self.folder / ENTRIES).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"kind": kind, "values": values}) + "\n")
            self._count += 1

    def list_left(self) -> Iterator[Entry]:
        """The entries that were not sent yet, in order."""
        sent = 0
        with contextlib.suppress(OSError, ValueError):
            sent = int((self.folder / SENT).read_text())
        for number, kind, values in self._list_all():
            if number >= sent:
                yield number, kind, values

    def _list_all(self) -> Iterator[Entry]:
        """A last line that was cut off, by a full disk or a kill, is left out."""
        with contextlib.suppress(FileNotFoundError), (self.folder / ENTRIES).open(encoding="utf-8") as stream:
            for number, line in enumerate(stream):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    yield number, entry["kind"], entry["values"]

    def note_run(self, run: str) -> None:
        """Note the id that the store gave to the run."""
        self._write(HEAD, json.dumps({**asdict(self.read_head()), "sent_as": run}))

    def note_sent(self, number: int) -> None:
        """Note that the entries up to this one were sent."""
        self._write(SENT, str(number + 1))

    def remove(self) -> None:
        """All was sent."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _write(self, name: str, text: str) -> None:
        temporary = self.folder / f".tmp-{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)


def name_process(pid: int | None = None) -> str:
    """A process of this machine, by default this one, by a name that no later one gets: host, start of the host,
    number, own start.
    """
    pid = pid or os.getpid()
    return f"{socket.gethostname()}/{_read_boot()}/{pid}/{_read_start(pid)}"


def is_gone(process: str) -> bool | None:
    """Whether the process of a name has ended; None where that cannot be told from here."""
    parts = process.split("/")
    if len(parts) != 4 or parts[0] != socket.gethostname() or not _read_boot() or not parts[2].isdigit():
        return None
    return parts[1] != _read_boot() or not parts[3] or _read_start(int(parts[2])) != parts[3]


def _read_boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _read_start(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
