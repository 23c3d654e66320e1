# SPDX-License-Identifier: Apache-2.0
"""Many short runs at once in one SQLite store: none lost, none locked out, and what a resumed run takes over."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wsss_ray.artifacts.store import Artifact
from wsss_ray.config import UserError
from wsss_ray.experiments.log import MlflowLog
from wsss_ray.tracking import Tracker, clean_name, close_dead_runs, sync_outboxes
from wsss_ray.tracking.outbox import is_gone, name_process
from wsss_ray.tracking.sending import locate_outboxes
from wsss_ray.tracking.store import HEARTBEAT, PROCESS, SILENT_SECONDS

NUM_PROCESSES, NUM_RUNS = 3, 3


def write_runs(out: str, parent: str, writer: int) -> None:
    """``NUM_RUNS`` short runs one after another, as the rows of a study write them."""
    for number in range(NUM_RUNS):
        tracker = Tracker(out, f"run {writer}.{number}", {"writer": str(writer)}, parent)
        tracker.log_params({f"key.{place}": place for place in range(60)})
        tracker.log_params({f"key.{place}": place for place in range(60, 120)}, later=True)
        for step in range(30):
            tracker.log_metrics({f"curve/{name}": float(step) for name in range(12)}, step)
        tracker.set_tags({"number": str(number)})
        tracker.log_text("text", "recipe.yaml")
        tracker.finish()


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output folder with its own store, whatever the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(tmp_path)


def test_processes_that_write_at_once_lose_nothing(out: str) -> None:
    """The store does not exist yet: the processes also race for its tables and its experiment."""
    from mlflow.tracking import MlflowClient

    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_runs, args=(out, "parent", place)) for place in range(NUM_PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * NUM_PROCESSES
    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("wsss-ray")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.mlflow.parentRunId = 'parent'", max_results=1000)
    assert len({(run.data.tags["writer"], run.data.tags["number"]) for run in found}) == NUM_PROCESSES * NUM_RUNS
    for run in found:
        assert run.info.status == "FINISHED"
        assert len(run.data.params) == 120
        assert len(run.data.metrics) == 12
    history = client.get_metric_history(found[0].info.run_id, "curve/3")
    assert [point.step for point in history] == list(range(30))
    assert [file.path for file in client.list_artifacts(found[-1].info.run_id)] == ["recipe.yaml"]


def test_parameters_that_wait_fit_into_a_batch_of_metrics(out: str) -> None:
    tracker = Tracker(out, "point", {})
    tracker.log_params({f"key.{place}": place for place in range(20)}, later=True)
    for step in range(990):
        tracker.log_metrics({"curve": float(step)}, step)
    tracker.finish()
    run = tracker._client.get_run(tracker.run_id)
    assert len(run.data.params) == 20
    assert len(tracker._client.get_metric_history(tracker.run_id, "curve")) == 990


def test_resumed_run_ends_its_children_and_a_deleted_one_is_begun_anew(out: str) -> None:
    parent = Tracker(out, "study", {"kind": "study"})
    child, other = Tracker(out, "row", {}, parent.run_id), Tracker(out, "row", {}, "another")
    client = parent._client
    again = Tracker(out, "study", {"kind": "study", "new": "yes"}, resume=parent.run_id)
    assert again.run_id == parent.run_id
    assert client.get_run(parent.run_id).data.tags["new"] == "yes"
    again.end_children()
    states = [client.get_run(run.run_id).info.status for run in (child, other, again)]
    assert states == ["KILLED", "RUNNING", "RUNNING"]
    again.finish()
    client.delete_run(parent.run_id)
    assert Tracker(out, "study", {}, resume=parent.run_id).run_id != parent.run_id
    assert Tracker(out, "study", {}, resume="0" * 32).run_id not in (parent.run_id, "0" * 32)


NAMES = (
    *("\u732b", "\u72d7", "R&B <b>", "R+B <b>", "a b", "a_b", "a/b", "a//b", "a/", "/a", "..", "../a", ".", "..."),
    *("a/./b", "a/../b", "\u00e9", "x" * 300, "x" * 299 + "y", "100%", "a:b", "a\nb", "\U0001f600"),
)


def test_names_of_metrics_stay_unique_and_are_taken_by_mlflow(tmp_path):
    made = [clean_name(f"{part}{name}") for part in ("", "iou/") for name in NAMES]
    assert len(set(made)) == len(made)
    assert clean_name("iou/\u732b") == "iou/\u732b"
    assert clean_name("e\u0301") == clean_name("\u00e9"), "two spellings of one letter are one name"
    from mlflow.utils.validation import _validate_metric_name

    for name in made:
        _validate_metric_name(name)


def test_monitors_stand_beside_losses_and_not_among_them(out: str) -> None:
    from mlflow.tracking import MlflowClient

    losses = {"total": 0.5, "inverse": -0.01, "monitor/offset": 0.7}
    record = {"step": {"kind": "localizer"}, "history": [{"epoch": 2, "losses": losses}]}
    tracker = Tracker(out, "run", {"kind": "run"})
    MlflowLog(tracker).hear_step("base train", Artifact("train", "0123", "", record))
    tracker.finish()
    found = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db").get_run(tracker.run_id).data.metrics
    assert found == {"base_train/loss/total": 0.5, "base_train/loss/inverse": -0.01, "base_train/monitor/offset": 0.7}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (ValueError("x"), "FAILED")]
)
def test_a_run_ends_as_what_happened_in_it_and_no_child_outlives_it(
    out: str, error: BaseException | None, status: str
) -> None:
    parent = Tracker(out, "sweep", {})
    before = Tracker(out, "trial", {}, parent.run_id)
    with contextlib.suppress(ValueError, KeyboardInterrupt), parent.hold_children():
        during = Tracker(out, "trial", {}, parent.run_id)
        assert parent.status == "RUNNING"
        if error is not None:
            raise error
    client = parent._client
    states = [client.get_run(run.run_id).info.status for run in (before, during, parent)]
    assert states == ["KILLED", "KILLED", status]
    assert parent.status == status


def test_a_store_that_is_gone_leaves_the_run_open_and_hides_no_error(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(out, "study", {})
    monkeypatch.setattr(tracker, "run_id", "0" * 32)
    with pytest.raises(ValueError, match="why"), tracker.hold_children():
        raise ValueError("why")
    assert tracker.status == "RUNNING", "it is logged again by the next call"


def log_all(tracker: Tracker, folder: Path) -> None:
    """Something of every kind."""
    tracker.log_params({"lr": 0.1})
    tracker.set_tags({"where": "there"})
    tracker.log_metrics({"loss": 0.5, "none": None}, step=3)
    tracker.flush()
    tracker.log_text("a: 1", "recipe.yaml")
    scratch = folder / "panel.png"
    scratch.write_bytes(b"pixels")
    tracker.log_files([scratch], "panels")
    scratch.unlink()
    tracker.finish("FINISHED")


def test_what_a_store_does_not_take_waits_and_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is a port at which nobody listens; later another one is there."""
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)  # where that store keeps its files
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9 does not answer .*unset it to log to SQLite"):
        Tracker(str(tmp_path), "run", {})
    tracker = Tracker(str(tmp_path), "trial", {"kind": "run"}, "parent")
    log_all(tracker, tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text
    assert f"it is sent when MLflow is back, or by 'wsss track sync --out {tmp_path}'" in caplog.text
    assert tracker.status == "RUNNING"
    assert sync_outboxes(str(tmp_path)) == (0, 0), "the process that logs is still there"
    (head,) = locate_outboxes(str(tmp_path)).glob("*/head.json")
    head.write_text(head.read_text().replace(name_process(), name_process().rpartition("/")[0] + "/1"))
    monkeypatch.setattr("wsss_ray.tracking.outbox.name_process", lambda: "another")
    assert sync_outboxes(str(tmp_path)) == (0, 1)
    assert "does not answer" in caplog.text
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert sync_outboxes(str(tmp_path)) == (1, 0)
    assert not locate_outboxes(str(tmp_path)).exists()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("wsss-ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params, run.data.metrics) == ("FINISHED", {"lr": "0.1"}, {"loss": 0.5})
    assert run.data.tags["where"] == "there"
    assert run.data.tags["mlflow.parentRunId"] == "parent"
    assert sorted(one.path for one in client.list_artifacts(run.info.run_id)) == ["panels", "recipe.yaml"]


def test_runs_whose_process_is_gone_are_closed_by_the_next_command(out: str) -> None:
    dead, silent, fresh, foreign = (Tracker(out, name, {}) for name in ("dead", "silent", "fresh", "foreign"))
    client = dead._client
    name = name_process()
    assert is_gone(name) is False
    assert is_gone(name.rpartition("/")[0] + "/1") is True
    assert is_gone("elsewhere/boot/1/2") is None
    client.set_tag(dead.run_id, PROCESS, name.rpartition("/")[0] + "/1")
    for tracker in (silent, fresh):
        client.set_tag(tracker.run_id, PROCESS, "elsewhere/boot/1/2")
    client.set_tag(silent.run_id, HEARTBEAT, str(int(time.time() - SILENT_SECONDS - 5)))
    client.delete_tag(foreign.run_id, HEARTBEAT)
    close_dead_runs(out)
    states = [client.get_run(tracker.run_id).info.status for tracker in (dead, silent, fresh, foreign)]
    assert states == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
    client.set_tag(fresh.run_id, HEARTBEAT, "1")
    Tracker(out, "next", {})
    assert client.get_run(fresh.run_id).info.status == "KILLED"


def test_a_deleted_experiment_is_restored(out: str, caplog: pytest.LogCaptureFixture) -> None:
    first = Tracker(out, "first", {})
    first._client.delete_experiment(first.experiment_id)
    again = Tracker(out, "again", {})
    assert again.experiment_id == first.experiment_id
    assert "was deleted there; it is restored" in caplog.text


def run_sql(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b"garbage" * 1000), "is no SQLite database; move it away"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be opened; choose another --out"),
        (lambda path: run_sql(path, "update alembic_version set version_num='bd07f7e963c5'"), "mlflow db upgrade"),
        (
            lambda path: run_sql(path, "update alembic_version set version_num='ffffffffffff'"),
            "or install the newer MLflow that made it",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:8192] + b"x" * 9000), "database"),
    ],
    ids=["garbage", "folder", "older", "newer", "cut"],
)
def test_a_store_that_cannot_be_used_is_one_line(
    out: str, damage: Callable[[Path], object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Tracker(out, "run", {}).finish()
    there = Path(out) / "there"  # MLflow looks at a place once in a process
    there.mkdir()
    shutil.copy(Path(out) / "mlflow.db", there / "mlflow.db")
    damage(there / "mlflow.db")
    capfd.readouterr()
    with pytest.raises(UserError) as refused:
        Tracker(str(there), "run", {})
    assert said in str(refused.value)
    assert "mlflow.db" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
