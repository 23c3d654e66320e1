# SPDX-License-Identifier: Apache-2.0
"""Many short runs at once in one SQLite store: none lost, none locked out, and what a resumed run takes over."""

from __future__ import annotations

import contextlib
import multiprocessing
from pathlib import Path

import pytest

from wsss_ray.artifacts.store import Artifact
from wsss_ray.experiments.log import MlflowLog
from wsss_ray.tracking import Tracker, clean_name

NUM_PROCESSES, NUM_RUNS = 3, 3


def write_runs(out: str, parent: str, writer: int) -> None:
    """``NUM_RUNS`` short runs one after another, as the rows of a study write them."""
    for number in range(NUM_RUNS):
        tracker = Tracker(out, f"run {writer}.{number}", {"writer": str(writer)}, parent)
        tracker.log_params({f"key.{place}": place for place in range(120)})
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
