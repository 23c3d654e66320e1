"""A small sweep for real: two trainings, two score settings each, one impossible point."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from wsss_ray.studies import resolve

from wsss_ray.recipe import Recipe
from wsss_ray.space import parse_space
from wsss_ray.stages.sweep import run_sweep
from wsss_ray.sweep import Outcome, Plan, plan

SMALL = [
    "data.toy.num_train=12",
    "data.toy.num_val=4",
    "data.toy.size=48",
    "train.epochs=1",
    "train.batch_size=4",
    "train.augment.crop=48",
    "train.validate_pictures=0",
    "localize.scales=[1.0]",
    "refine={name: seeds, threshold: 0.2}",
    "segment=null",
]


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    """The tests share a cluster of two cores."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Outcome]]:
    """Thresholds 0.2 and 0.3, masks at thresholds 0.2, 0.4 and one that cannot be."""
    out = tmp_path_factory.mktemp("sweep")
    axes = parse_space(["refine.threshold=0.2,0.4,7", "score.background=0.25,0.3333"])
    made = plan(small(), axes, metric="seeds.fixed")
    return out, made, run_sweep(made, str(out), max_concurrent=2)


def small() -> Recipe:
    """CAM on a dozen tiny pictures."""
    return resolve("cam", settings=SMALL)


def test_one_training_serves_all_trials(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    out, _, outcomes = swept
    assert len(list((out / "train").iterdir())) == len(list((out / "localize").iterdir())) == 1
    assert len(list((out / "refine").iterdir())) == 2
    trained = [one for one in outcomes if "train" in one.computed]
    assert len(trained) == 1
    assert sum("train" in one.reused for one in outcomes) == 1


def test_failed_points_are_told_and_stop_nothing(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    _, _, outcomes = swept
    states = [one.state for one in outcomes]
    assert states.count("failed") == 2 and states.count("finished") == 4
    assert all("threshold" in one.reason for one in outcomes if one.state == "failed")


def test_thresholds_are_read_off_one_curve_as_if_each_had_run(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    out, made, outcomes = swept
    answered = [one for one in outcomes if one.reused == ["curve of seeds"]]
    assert len(answered) == 2 and all(not one.computed for one in answered)
    # Seeds refined at threshold t are the seeds scored at background t.
    record = json.loads((Path(outcomes[-1].folder) / "run.json").read_text())["scores"]["seeds"]
    curve = dict(zip(record["curve"]["thresholds"], record["curve"]["miou"], strict=True))
    finished = {one.point["score.background"]: one.value for one in outcomes if one.state == "finished"}
    assert set(finished) == {0.25, 0.3333}
    for threshold, value in finished.items():
        assert curve[threshold] == pytest.approx(value, abs=1e-6)
    masks = {one.point["refine.threshold"]: one.scores["masks/mask"] for one in outcomes if one.state == "finished"}
    for threshold, value in masks.items():
        assert curve[threshold] == pytest.approx(value, abs=1e-6)
    assert record["best"]["threshold"] != 0.3333


def test_every_trial_is_a_child_of_the_sweep(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    from mlflow.tracking import MlflowClient

    out, made, outcomes = swept
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    state = json.loads((out / "sweeps" / made.name / "sweep.json").read_text())
    parent = client.get_run(state["mlflow_run"])
    assert parent.info.status == "FINISHED" and parent.data.tags["kind"] == "sweep"
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_id for run in children} == {one.mlflow_run for one in outcomes if one.state == "finished"}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert (out / "sweeps" / made.name / "sweep.png").stat().st_size > 1000


def test_same_command_again_runs_nothing_that_is_done(
    swept: tuple[Path, Plan, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    out, made, outcomes = swept

    class Untouched(tune.Tuner):
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise AssertionError("a finished sweep started trials")

    monkeypatch.setattr(tune, "Tuner", Untouched)
    again = run_sweep(made, str(out))
    assert {one.key: one.value for one in again} == {one.key: one.value for one in outcomes}
