# SPDX-License-Identifier: Apache-2.0
"""/dev/shm of 48 MB, as containers have it: said in a line, and data are prepared all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import SmallDisk
from tests.faults.processes import Command
from wsss_ray.cluster import shared_memory

pytestmark = [pytest.mark.timeout(600)]


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    disk = SmallDisk(Path("/dev/shm"), 48)
    yield disk
    disk.close()


@pytest.mark.faults
def test_a_local_ray_starts_beside_it(small: SmallDisk, tmp_path: Path) -> None:
    sizes = ("--set", "num_train=8", "--set", "num_val=4", "--set", "size=32")
    prepare = Command(tmp_path, "data", "prepare", "toy", *sizes, "--out", str(tmp_path / "data"), wrap=small.wrap)
    doctor = Command(tmp_path, "doctor", "--out", str(tmp_path / "out"), wrap=small.wrap)
    try:
        for command in (prepare, doctor):
            command.process.wait(timeout=300)
        assert prepare.process.returncode == 0, prepare.text
        assert [line for line in prepare.text.splitlines() if "shm" in line] == [
            "/dev/shm has 48 MB free: Ray keeps its objects in /tmp, which is slower; in a container, --shm-size=4g"
        ]
        assert "/dev/shm: 0.05 GB free: Ray keeps its objects on the disk, slower" in doctor.text
    finally:
        prepare.kill()
        doctor.kill()


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (None, {}),
        (10**15, {}),
        (2**29, {"object_store_memory": int(0.9 * 2**29)}),
        (2**26, {"object_store_memory": shared_memory.ON_DISK, "_plasma_directory": "/tmp"}),
    ],
)
def test_what_ray_is_told(free: int | None, chosen: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(shared_memory, "read_free", lambda: free)
    monkeypatch.setattr(shared_memory.tempfile, "tempdir", None)
    assert shared_memory.choose_store() == chosen
