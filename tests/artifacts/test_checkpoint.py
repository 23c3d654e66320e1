# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is the files of the last epoch, whole, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss_ray.artifacts.checkpoint import read_checkpoint, remove_checkpoints, write_checkpoint

FIRST = {"model": b"one", "history": b"[1]"}
SECOND = {"model": b"two, longer", "history": b"[1, 2]"}


def test_the_last_epoch_is_read_and_kept_alone(tmp_path: Path) -> None:
    out = str(tmp_path)
    assert read_checkpoint(out) is None
    for epoch, files in enumerate((FIRST, SECOND)):
        write_checkpoint(out, epoch, files)
        assert read_checkpoint(out) == files
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    remove_checkpoints(out)
    assert read_checkpoint(out) is None
    assert not (tmp_path / "checkpoints").exists()


def test_an_epoch_without_its_record_is_not_there_yet(tmp_path: Path) -> None:
    """Killed between the files and the record: the epoch before is read."""
    write_checkpoint(str(tmp_path), 0, FIRST)
    record = (tmp_path / "checkpoints" / "checkpoint.json").read_bytes()
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    write_checkpoint(str(tmp_path), 1, SECOND)
    for name, data in before.items():
        (tmp_path / "checkpoints" / name).write_bytes(data)
    (tmp_path / "checkpoints" / "checkpoint.json").write_bytes(record)
    assert read_checkpoint(str(tmp_path)) == FIRST


@pytest.mark.parametrize("name", ["checkpoint.json", "00001-model", "00001-history"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_one_is_none_and_said(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(str(tmp_path), 1, SECOND)
    path = tmp_path / "checkpoints" / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-2] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    assert read_checkpoint(str(tmp_path)) is None
    said = [record.message for record in caplog.records]
    assert len(said) == (0 if (name, damage) == ("checkpoint.json", "gone") else 1)
    assert all("training begins anew" in line and name in line for line in said)
