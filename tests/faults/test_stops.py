# SPDX-License-Identifier: Apache-2.0
"""ctrl-C and SIGTERM in every command: one line, the shell's exit code, MLflow KILLED, and no process left.

In every step of a run and in ``wsss data saliency`` they are faults like others (test_matrix.py, test_saliency.py).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_model import fake_model
from tests.fake_run import prepare
from tests.faults.head import OPEN, Head
from tests.faults.images import write_images
from tests.faults.processes import SETTINGS, Command, read_states

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
SECONDS = 10
"""From the signal to the end of the command."""
RUN = ("run", "cam", *SETTINGS, "--out", "out")
LONG = ("--set", "train.epochs=2000", "--set", "segment.train.epochs=2000")


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """Commands that are ended whatever happens."""
    begun: list[Command] = []
    yield begun
    for command in begun:
        command.kill()


def check_stop(command: Command, number: signal.Signals) -> None:
    before = command.text
    took = command.stop(number)
    assert command.process.returncode == 128 + number, command.text
    new = command.text.removeprefix(before)
    lines = [line for line in new.splitlines() if not line.startswith(("train", "segment", "prepare", "saliency"))]
    assert len(lines) == 1, new
    assert lines[0].startswith("wsss: ")
    assert "run the same command to resume" in lines[0]
    assert took < SECONDS
    assert command.list_left() == []
    print(f"{number.name} after {command.process.args[3:5]}: {took:.1f} s")


@pytest.mark.parametrize(
    ("number", "arguments", "words"),
    [
        (signal.SIGINT, RUN, "scale: toy"),
        (signal.SIGTERM, (*RUN, *LONG), "prepare: 32/32 images"),
        (
            signal.SIGTERM,
            ("sweep", "cam", *SETTINGS, *LONG, "--over", "train.optimizer.lr=0.1,0.2", "--out", "out"),
            "at a time",
        ),
        (signal.SIGINT, ("study", "run", "cam.baseline", *SETTINGS[:10], "--out", "out"), "prepare: 32/32"),
    ],
    ids=["start", "train", "sweep", "study"],
)
def test_runs(
    number: signal.Signals, arguments: tuple[str, ...], words: str, tmp_path: Path, commands: list[Command]
) -> None:
    command = Command(tmp_path, *arguments)
    commands.append(command)
    command.wait_for(words)
    time.sleep(1.0)
    check_stop(command, number)
    if (tmp_path / "out" / "mlflow.db").exists() and "scale" not in words:
        assert set(read_states(tmp_path)) == {"KILLED"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_predictions(number: signal.Signals, tmp_path: Path, commands: list[Command]) -> None:
    store = fake_model(tmp_path / "store")
    data = prepare(tmp_path / "data", num_images=400, size=(480, 640))
    command = Command(tmp_path, "predict", data, "--model", str(store / "runs" / "cam-1"), "--out", "predictions")
    commands.append(command)
    command.wait_for("predict: ")
    check_stop(command, number)


def wait_for_file(command: Command, folder: Path, pattern: str) -> None:
    """Until the first file of a form is there."""
    until = time.monotonic() + 900
    while not list(folder.glob(pattern)):
        assert command.process.poll() is None, command.text
        assert time.monotonic() < until, command.text
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_preparing(number: signal.Signals, tmp_path: Path, commands: list[Command]) -> None:
    """Stopped in the middle, and the same command finishes."""
    write_images(tmp_path / "images")
    whole = ("data", "prepare", "folder", str(tmp_path / "images"), "--out", "made")
    commands.append(Command(tmp_path, *whole))
    wait_for_file(commands[-1], tmp_path / "made", "shard-*.parquet")
    check_stop(commands[-1], number)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("shard-*.parquet")}
    commands.append(Command(tmp_path, *whole))
    commands[-1].process.wait(timeout=900)
    assert commands[-1].process.returncode == 0, commands[-1].text
    assert {name: (tmp_path / "made" / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_was_submitted(number: signal.Signals, tmp_path: Path, commands: list[Command]) -> None:
    """What follows a job is stopped: so is the job, and nothing of it is left on the cluster."""
    head = Head(dashboard=True)
    try:
        job = ("run", "cam", *SETTINGS, *LONG, "--out", str(tmp_path / "out"))
        commands.append(Command(tmp_path, "submit", "--address", head.dashboard, "--folder", "", "--", *job, **OPEN))
        commands[-1].wait_for("prepare: 32/32")
        before = commands[-1].text
        took = commands[-1].stop(number)
        assert commands[-1].process.returncode == 128 + number, commands[-1].text
        assert took < SECONDS
        lines = [line for line in commands[-1].text.removeprefix(before).splitlines() if "steps" not in line]
        assert [line.split()[0] for line in lines] == ["stopped", "wsss:"], lines
        assert "submit it again to resume" in lines[0]
        until = time.monotonic() + 60
        while (left := list_running(str(tmp_path / "out"))) and time.monotonic() < until:
            time.sleep(0.2)
        assert left == []
        assert set(read_states(tmp_path)) == {"KILLED"}
    finally:
        head.end()


def list_running(words: str) -> list[str]:
    """Command lines of the processes that hold some words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if words in line and "cli.main run" in line else []
    return found


def test_a_run_that_was_killed_is_closed_by_the_next_command(tmp_path: Path, commands: list[Command]) -> None:
    """kill -9 lets nobody say that it ended: MLflow shows it as running until the next command on that store."""
    commands.append(Command(tmp_path, *RUN, *LONG))
    commands[-1].wait_for("prepare: 32/32")
    commands[-1].stop(signal.SIGKILL)
    assert read_states(tmp_path) == ["RUNNING"]
    commands.append(Command(tmp_path, "track", "sync", "--out", "out"))
    commands[-1].process.wait(timeout=120)
    assert commands[-1].process.returncode == 0
    assert "MLflow: 1 runs that were cut off are marked as KILLED" in commands[-1].text
    assert read_states(tmp_path) == ["KILLED"]


def test_the_ui_leaves_no_server(tmp_path: Path, commands: list[Command]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = Command(tmp_path, "ui", "--out", "out", "--port", str(port))
    commands.append(command)
    command.wait_for("Application startup complete")
    took = command.stop(signal.SIGTERM)
    assert (command.process.returncode, command.list_left()) == (143, [])
    assert took < SECONDS
    assert command.text.strip().splitlines()[-1] == "wsss: ended by SIGTERM; run the same command to resume"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
