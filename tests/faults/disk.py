# SPDX-License-Identifier: Apache-2.0
"""A small disk of one's own: a tmpfs in a mount namespace, which is full when it is filled."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

FILLER = "filler"


class SmallDisk:
    """A tmpfs of some megabytes over a folder, as a command sees it that is called through ``wrap``."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        script = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && echo mounted && exec sleep 3600'
        self.keeper = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.keeper.stdout is not None
        if self.keeper.stdout.readline() != b"mounted\n":
            _, error = self.keeper.communicate()
            pytest.skip(f"no mount namespace here: {error.decode().strip()}")

    @property
    def wrap(self) -> tuple[str, ...]:
        """What enters the namespace and becomes the command."""
        pid = str(self.keeper.pid)
        return ("nsenter", "--target", pid, "--user", "--mount", "--preserve-credentials")

    @property
    def seen(self) -> Path:
        """The folder as it is seen from outside."""
        return Path(f"/proc/{self.keeper.pid}/root{self.folder}")

    def fill(self) -> None:
        """Take all the room there is."""
        with (self.seen / FILLER).open("ab", buffering=0) as stream:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        stream.write(bytes(size))

    def free(self) -> None:
        """Give it back."""
        (self.seen / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """The disk is gone."""
        self.keeper.kill()
        self.keeper.wait()
