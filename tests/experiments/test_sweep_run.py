# SPDX-License-Identifier: Apache-2.0
"""A small sweep for real: two trainings, two score settings each, one impossible point."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from tests.local_ray import start_ray
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.experiments.sweep import Plan, SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_outcomes import Outcome
from wsss_ray.experiments.sweep_run import run_sweep
from wsss_ray.experiments.sweep_search import build_scheduler
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.experiments.sweep_trial import rescore_seeds
from wsss_ray.recipe import Recipe, replace_settings
from wsss_ray.stages.score import ScoreStep
from wsss_ray.studies import resolve

ROOT = Path(__file__).parents[2]

SMALL = [
    "data.toy.num_train=12",
    "data.toy.num_val=4",
    "data.toy.size=48",
    "train.epochs=1",
    "train.batch_size=4",
    "train.augment.crop=48",
    "train.validate_images=0",
    "localize.scales=[1.0]",
    "refine={name: seeds, threshold: 0.2}",
    "segment=null",
]


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    """The tests share a cluster of two cores."""
    import ray

    start_ray(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Outcome]]:
    """Thresholds 0.2 and 0.3, masks at thresholds 0.2, 0.4 and one that cannot be."""
    out = tmp_path_factory.mktemp("sweep")
    axes = parse_space(["refine.threshold=0.2,0.4,7", "score.background=0.25,0.3333"])
    made = plan_sweep(small(), axes, SweepOptions(metric="seeds.fixed"))
    return out, made, run_sweep(made, str(out), max_concurrent=2)


def small() -> Recipe:
    """CAM on a dozen tiny images."""
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
    assert states.count("failed") == 2
    assert states.count("finished") == 4
    assert all("threshold" in one.reason for one in outcomes if one.state == "failed")


def test_thresholds_are_read_off_one_curve_as_if_each_had_run(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    out, made, outcomes = swept
    answered = [one for one in outcomes if one.reused == ["curve of seeds"]]
    assert len(answered) == 2
    assert all(not one.computed for one in answered)
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


def test_scores_read_off_a_curve_are_those_of_a_run(tmp_path: Path) -> None:
    """With a method that learns from saliency, which its protocols name."""
    recipe = resolve("eps", settings=[setting for setting in SMALL if "threshold" not in setting])
    recipe = replace_settings(recipe, {"refine": None, "score.background": 0.25, "score.at": (0.25, 0.3333)})
    other = replace_settings(recipe, {"score.background": 0.3333, "score.at": ()})
    read_off = rescore_seeds(run(recipe, RunOptions(str(tmp_path))), other)["seeds"]
    computed = run(other, RunOptions(str(tmp_path))).scores["seeds"]
    assert "saliency" in computed["fixed"]["protocol"]
    # Recall of parts needs the maps.
    computed["fixed"].pop("part_recall")
    assert {name: read_off[name] for name in ("fixed", "best", "otsu")} == {
        name: computed[name] for name in ("fixed", "best", "otsu")
    }


@pytest.mark.parametrize("epochs", [2, 3, 5, 9, 15, 40])
def test_trials_are_stopped_in_the_middle_of_their_training(epochs: int) -> None:
    falling = stops(epochs, lambda place, epoch: 0.9 - place / 10)
    assert falling[0] is None
    assert None not in falling[3:]
    assert all(max(1, epochs // 3) <= epoch < epochs for epoch in falling if epoch is not None)
    # Ahead until the last epoch, and there behind: by then nothing is left to save.
    assert stops(epochs, lambda place, epoch: (place - 100 * (epoch == epochs) * place) / 10) == [None] * 9


def stops(epochs: int, score: Callable[[int, int], float]) -> list[int | None]:
    """The epoch at which each of nine trials, one after the other, is stopped."""
    scheduler, found = build_scheduler(epochs), []
    for place in range(9):
        trial = SimpleNamespace(trial_id=str(place))
        scheduler.on_trial_add(None, trial)
        answers = (
            (epoch, scheduler.on_trial_result(None, trial, {"epoch": epoch, "seed_miou": score(place, epoch)}))
            for epoch in range(1, epochs + 1)
        )
        found.append(next((epoch for epoch, answer in answers if answer == "STOP"), None))
    return found


def test_a_single_epoch_is_not_stopped() -> None:
    assert build_scheduler(1) is None


def test_every_trial_is_a_child_of_the_sweep(swept: tuple[Path, Plan, list[Outcome]]) -> None:
    from mlflow.tracking import MlflowClient

    out, made, outcomes = swept
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    state = json.loads((out / "sweeps" / made.name / "sweep.json").read_text())
    parent = client.get_run(state["mlflow_run"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["kind"] == "sweep"
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_id for run in children} == {one.mlflow_run for one in outcomes if one.state == "finished"}
    assert {run.info.status for run in children} == {"FINISHED"}
    # Under one name in all of them, also where the scores come off another run's curve.
    values = {run.info.run_id: run.data.metrics["sweep/value"] for run in children}
    assert values == {one.mlflow_run: pytest.approx(one.value) for one in outcomes if one.state == "finished"}
    # What no threshold changes is in the run that was computed.
    read_off = {one.mlflow_run for one in outcomes if one.reused == ["curve of seeds"]}
    for child in children:
        assert {"seeds/best/miou", "seeds/fixed/iou/background", "masks/mask/miou"} <= set(child.data.metrics)
        assert ("seeds/best/iou/background" in child.data.metrics) == (child.info.run_id not in read_off)
    assert (out / "sweeps" / made.name / "sweep.png").stat().st_size > 1000


def test_same_command_again_runs_nothing_that_is_done(
    swept: tuple[Path, Plan, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made, outcomes = swept
    forbid_trials(monkeypatch)
    again = run_sweep(made, str(out))
    assert {one.key: one.value for one in again} == {one.key: one.value for one in outcomes}


def forbid_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a sweep that starts trials fails."""
    from ray import tune

    class Untouched(tune.Tuner):
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise AssertionError("a finished sweep started trials")

    monkeypatch.setattr(tune, "Tuner", Untouched)


def test_outcomes_of_older_steps_are_run_again(
    swept: tuple[Path, Plan, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:

    out, made, _ = swept
    forbid_trials(monkeypatch)
    monkeypatch.setattr(ScoreStep, "version", -1)
    kept = (out / "sweeps" / made.name / "sweep.json").read_bytes()
    with pytest.raises(AssertionError, match="started trials"):
        run_sweep(made, str(out))
    (out / "sweeps" / made.name / "sweep.json").write_bytes(kept)


def test_tpe_stops_at_the_end_of_its_space(
    swept: tuple[Path, Plan, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    out, _, _ = swept
    made = plan_sweep(small(), parse_space(["refine.threshold=0.2,0.4"]), SweepOptions(search="tpe", trials=20))
    first = run_sweep(made, str(out), max_concurrent=1)
    assert sum(one.draws for one in first) == 2
    assert len({one.key for one in first}) == len(first)
    forbid_trials(monkeypatch)
    assert run_sweep(made, str(out)) == first


@pytest.mark.faults
def test_cores_of_a_killed_trial_are_given_back(tmp_path: Path) -> None:
    """In a process that knew no other cluster: the killer asks Ray's private state who is alive."""
    call = "import sys; from tests.experiments import test_sweep_run as t; t.killed_trial(t.Path(sys.argv[1]))"
    told = subprocess.run([sys.executable, "-c", call, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stdout + told.stderr


def killed_trial(tmp_path: Path) -> None:
    """The first trial holds both cores in training when it dies; the second one needs them."""
    recipe = replace_settings(small(), {"refine": None})
    made = plan_sweep(recipe, parse_space(["train.epochs=5000,1"]), SweepOptions(metric="seeds.fixed"))
    killer = threading.Thread(target=kill_while_training, args=(tmp_path,), daemon=True)
    killer.start()
    outcomes = run_sweep(made, str(tmp_path), max_concurrent=1)
    assert [(one.point["train.epochs"], one.state) for one in outcomes] == [(5000, "failed"), (1, "finished")]


def kill_while_training(out: Path) -> None:
    """SIGKILL the process of the one trial there is, once its training has written something."""
    from ray._private.state import actors

    while not list(out.glob("train/*/checkpoints/*")):
        time.sleep(0.2)
    while True:
        with contextlib.suppress(Exception):
            alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
            trials = [actor["Pid"] for actor in alive if actor["ActorClassName"] in ("ImplicitFunc", "run_trial")]
            if trials:
                os.kill(trials[0], signal.SIGKILL)
                return
        time.sleep(0.2)
