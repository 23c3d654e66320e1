# SPDX-License-Identifier: Apache-2.0
"""Every fault that comes to ``wsss data saliency``, one after another into one folder: the same command goes on, and in
the end all maps are those of an undisturbed call.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.chain import DEATH_SECONDS, list_told
from tests.faults.disk import SmallDisk
from tests.faults.head import OPEN, Head
from tests.faults.images import write_images
from tests.faults.processes import Command
from tests.faults.test_matrix import STOPS, WORKING, expect_full, expect_lost, kill_named

pytest.importorskip("cv2", reason="pip install 'wsss-ray[saliency]'")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
NUM_IMAGES, NUM_KEPT, SIZE = 48, 8, (320, 240)
SECONDS = 900


def list_maps(out: Path) -> dict[str, bytes]:
    """Name -> bytes of all maps."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def read_times(out: Path) -> dict[str, int]:
    """Name -> when it was written, of all maps: a worker that outlives its command leaves some that count for none."""
    found = {}
    for path in out.glob("*.png"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def wait_for_more(command: Command, out: Path, more: int = 3) -> None:
    """Until so many more maps are written."""
    before, until = read_times(out).items(), time.monotonic() + SECONDS
    while len(read_times(out).items() - before) < more:
        assert command.process.poll() is None, command.text
        assert time.monotonic() < until, command.text
        time.sleep(0.02)


def leave_some(out: Path) -> None:
    """Remove most maps, so that there is work: those that were being made when a command ended are there, too."""
    for path in sorted(out.glob("*.png"))[NUM_KEPT:]:
        path.unlink()


def end(command: Command, code: int) -> str:
    """What a command said to its end."""
    command.process.wait(timeout=SECONDS)
    assert command.process.returncode == code, command.text
    assert "Traceback" not in command.text
    left = command.list_left(DEATH_SECONDS)
    assert left == [], left
    return command.text


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Command]:
    """Starts the command; all are ended whatever happens."""
    begun: list[Command] = []

    def start(*extra: str, out: str = "maps", wrap: tuple[str, ...] = (), **environment: str) -> Command:
        place = str(tmp_path / "images")
        arguments = ("data", "saliency", "folder", place, "--detector", "border_cut", "--out", out, *extra)
        begun.append(Command(tmp_path, *arguments, wrap=wrap, **environment))
        return begun[-1]

    yield start
    for command in begun:
        command.kill()


def test_all_faults(begin: Callable[..., Command], tmp_path: Path) -> None:
    write_images(tmp_path / "images", NUM_IMAGES, SIZE)
    end(begin(out="whole"), 0)
    whole, maps = list_maps(tmp_path / "whole"), tmp_path / "maps"
    assert len(whole) == NUM_IMAGES

    for fault, check in STOPS.values():
        leave_some(maps)
        command = begin()
        wait_for_more(command, maps)
        before = command.text
        fault(command)
        command.process.wait(timeout=SECONDS)
        check(command, command.text.removeprefix(before))
        left = command.list_left(DEATH_SECONDS)
        assert left == [], left

    head = Head()
    try:
        leave_some(maps)
        command = begin("--address", head.address, **OPEN)
        wait_for_more(command, maps)
        before = command.text
        head.kill()
        command.process.wait(timeout=SECONDS)
        expect_lost(command, command.text.removeprefix(before))
    finally:
        head.end()

    # Damaged maps are found by their checksums and made again.
    leave_some(maps)
    first, second, *_ = sorted(maps.glob("*.png"))
    first.write_bytes(first.read_bytes()[:100])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(bytes(data))
    command = begin()
    wait_for_more(command, maps)
    kill_named(*WORKING)(command)
    text = end(command, 0)
    assert f"{first.name}: damaged, made again" in text
    assert f"{second.name}: damaged, made again" in text
    assert f"saliency: {NUM_IMAGES}/{NUM_IMAGES}" in text
    assert list_maps(maps) == whole

    # Nobody can tell what made the maps where the note is damaged.
    note = next(maps.glob("*.json"))
    kept = note.read_bytes()
    note.write_text(kept.decode()[:-5])
    refused = list_told(end(begin(), 2))
    assert [line for line in refused if "wsss: " in line] == refused[-1:]
    assert note.name in refused[-1]
    assert "remove" in refused[-1]
    note.write_bytes(kept)
    assert json.loads(kept)


def test_a_full_disk(begin: Callable[..., Command], tmp_path: Path) -> None:
    write_images(tmp_path / "images", NUM_IMAGES, SIZE)
    disk = SmallDisk(tmp_path / "disk", 16)
    try:
        out = str(disk.folder / "maps")
        seen = disk.seen / "maps"
        command = begin(out=out, wrap=disk.wrap)
        wait_for_more(command, seen)
        before = command.text
        disk.fill()
        command.process.wait(timeout=SECONDS)
        expect_full(command, command.text.removeprefix(before))
        disk.free()
        end(begin(out=out, wrap=disk.wrap), 0)
        end(begin(out="whole"), 0)
        assert list_maps(seen) == list_maps(tmp_path / "whole")
    finally:
        disk.close()
