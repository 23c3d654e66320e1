# SPDX-License-Identifier: Apache-2.0
"""A full disk is one line that names the place, whoever noticed it; tables are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import errno
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from wsss_ray import storage
from wsss_ray.artifacts.store import Step, Store
from wsss_ray.config import UserError
from wsss_ray.stages.run import Steps

FULL = OSError(errno.ENOSPC, "No space left on device")


def wrapped() -> RuntimeError:
    """As the train step reports what a worker met."""
    error = RuntimeError("train: training failed")
    error.__cause__ = FULL
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (wrapped(), True),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (None, False),
    ],
)
def test_a_full_disk_is_known_by_any_of_its_names(error: BaseException | None, full: bool) -> None:
    assert storage.is_disk_full(error) is full


@dataclass(frozen=True)
class Training(Step):
    stage: ClassVar[str] = "train"
    version: ClassVar[int] = 1


def test_a_step_on_a_full_disk_names_its_folder(tmp_path: Path) -> None:
    steps = Steps(Store(str(tmp_path)))

    def fails(error: Exception) -> Any:
        def compute(folder: str) -> dict[str, Any]:
            raise error

        return compute

    with pytest.raises(UserError, match=f"{tmp_path}/train/.*: training: no space left on the disk; free some"):
        steps.find_or_compute("training", Training(), fails(wrapped()))
    with pytest.raises(ZeroDivisionError):
        steps.find_or_compute("training", Training(), fails(ZeroDivisionError()))


def test_no_cell_of_a_table_is_a_formula() -> None:
    hostile = ["=1+1", "+SUM(A1)", "-2+3", "@cmd", "\t=1", "\r=1", "\n=1"]
    plain = ["a=1", "cat, dog", 'say "no"', "", "-0.5", "+3e-2", -0.5, 7]
    rows = list(csv.reader(io.StringIO(storage.format_csv([hostile, plain]).decode(), newline="")))
    assert rows == [[f"'{text}" for text in hostile], [str(cell) for cell in plain]]


QUERY = "endpoint_override=http%3A%2F%2F127.0.0.1%3A9000&region=us-east-1"


@pytest.mark.parametrize("key", ["", "key:secret@"])
def test_what_is_appended_stands_before_the_query(key: str) -> None:
    """pyarrow's own options of a URI stay options, whatever is done with the location."""
    uri = f"s3://{key}bucket/results/?{QUERY.replace('%2F', '/')}"
    for given in (uri, storage.make_absolute(uri)):
        below = storage.join(given, "runs", "cam-1", "run.json")
        filesystem, path = storage.open_fs(below)
        assert path == "bucket/results/runs/cam-1/run.json"
        assert (filesystem.type_name, filesystem.region) == ("s3", "us-east-1")
        assert storage.open_fs(below.rsplit("/", 2)[0])[1] == "bucket/results/runs"
        assert storage.make_absolute(below) == below
    assert storage.open_fs(uri)[1].rstrip("/") == "bucket/results"
    assert storage.join("hdfs://[::1]:9000/a", "b") == "hdfs://[::1]:9000/a/b"
    assert storage.make_absolute("gs://bucket/a?") == "gs://bucket/a"


def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """Also where the fault comes in the middle of its writing, and is not the disk's."""
    where = str(tmp_path / "one.json")
    storage.write_json(where, {"b": [1], "a": "ä"})
    before = Path(where).read_bytes()
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        storage.write_json(where, {"a": "x" * 100_000, "b": set()})
    assert Path(where).read_bytes() == before == b'{\n "a": "\\u00e4",\n "b": [\n  1\n ]\n}'
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.json"]
