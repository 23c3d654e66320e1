"""A study for real: rows on Ray, one that fails, one that is quoted; a second call runs nothing again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsss_ray import storage
from wsss_ray.artifacts.store import held
from wsss_ray.cluster.join import cluster
from wsss_ray.config import UserError
from wsss_ray.data.augment import AugmentConfig
from wsss_ray.data.toy import ToyConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments import run as runs
from wsss_ray.experiments.study import Row, Study
from wsss_ray.experiments.study_plan import STALE, chosen_rows, left_out, opened, planned, slug, study_folder
from wsss_ray.experiments.study_run import finished_row, run_study
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import DataConfig, NetConfig, Recipe
from wsss_ray.refine.seeds import ThresholdSeedsConfig
from wsss_ray.reports.study_table import rows, summarize


def tiny(threshold: float, weights: str | None = None) -> Recipe:
    """A recipe of seconds."""
    return Recipe(
        data=DataConfig(toy=ToyConfig(num_train=16, num_val=4, size=64, num_classes=2)),
        method=CAMConfig(),
        net=NetConfig(backbone="toy", weights=weights),
        train=TrainConfig(epochs=1, batch_size=8, augment=AugmentConfig(resize="scale", range=(1.0, 1.0), crop=64)),
        localize=LocalizeConfig(scales=(1.0,), flip=False),
        refine=ThresholdSeedsConfig(threshold=threshold),
    )


@pytest.fixture
def study() -> Study:
    published = {"masks": 50.0}
    return Study(
        name="fake.table",
        title="Two thresholds",
        source="nowhere",
        metric="masks",
        rows=(
            Row("Seeds at 0.2 (ours)", tiny(0.2), {"masks": 40.0, "params": 1.0}),
            Row("Seeds at 0.6", tiny(0.6), published),
            Row("No weights", tiny(0.2, "no_such_weights"), published),
            Row("Quoted", None, published),
        ),
    )


def entries(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["seeds"].get("0", {}) for row in results["rows"]}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One local cluster for every call."""
    with cluster():
        yield


def test_rows_run_fail_and_are_kept(study: Study, tmp_path: Path, ray_cluster: None) -> None:
    from mlflow.tracking import MlflowClient

    out = str(tmp_path)
    results = run_study(study, "toy", "paper", out, max_concurrent=2)
    found = entries(results)
    assert [found[row.name].get("status") for row in study.rows] == ["finished", "finished", "failed", None]
    assert "no_such_weights" in found["No weights"]["reason"]
    assert results == storage.read_json(f"{out}/studies/fake.table-toy/results.json")
    for name in ("table.md", "figure.png"):
        assert (tmp_path / "studies" / "fake.table-toy" / name).stat().st_size > 100
    table = rows(summarize(results))
    assert [line[2] for line in table[2:]] == ["failed", "-"] and float(table[0][2]) >= 0
    params = found["Seeds at 0.2 (ours)"]["params"]
    assert params is not None and 0 < params < 10
    assert found["Seeds at 0.6"]["params"] is None, "counted only where it is printed"

    # Both rows, running at the same time, share data, network and maps: each is computed by one of them.
    shared: dict[str, int] = {}
    for name in ("Seeds at 0.2 (ours)", "Seeds at 0.6"):
        for step in storage.read_json(f"{out}/runs/{found[name]['run']}/run.json")["steps"]:
            shared[step["title"]] = shared.get(step["title"], 0) + (not step["reused"])
    assert [shared[title] for title in ("data", "train", "localize")] == [1, 1, 1]

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("wsss-ray")
    assert experiment is not None
    parents = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
    assert [run.info.status for run in parents] == ["FINISHED"]
    tags = {key: parents[0].data.tags[key] for key in ("method", "data", "scale", "profile", "study")}
    assert tags == {"method": "cam", "data": "toy", "scale": "toy", "profile": "paper", "study": "fake.table"}
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}' and status = 'FINISHED'"
    )
    assert {run.data.tags["row"] for run in children} == {"Seeds at 0.2 (ours)", "Seeds at 0.6"}
    assert {run.data.tags["study"] for run in children} == {"fake.table"}

    # Again: what is finished stays, what failed is tried again and fails before Ray starts.
    again = entries(run_study(study, "toy", "paper", out))
    for name in ("Seeds at 0.2 (ours)", "Seeds at 0.6"):
        assert again[name] == found[name]
    assert again["No weights"]["status"] == "failed"
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'study'")) == 1

    # Killed in the middle of a row: the next call goes on in the same run and ends what still claims to be running.
    parent = parents[0].info.run_id
    lost = client.create_run(experiment.experiment_id, tags={"mlflow.parentRunId": parent})
    client.update_run(parent, status="RUNNING")
    kept = storage.read_json(f"{out}/studies/fake.table-toy/results.json")
    del kept["rows"][1]["seeds"]["0"]
    storage.write_json(f"{out}/studies/fake.table-toy/results.json", {**kept, "mlflow_status": "RUNNING"})
    assert entries(run_study(study, "toy", "paper", out))["Seeds at 0.6"]["status"] == "finished"
    assert client.get_run(lost.info.run_id).info.status == "KILLED"
    assert client.get_run(parent).info.status == "FINISHED"
    # Killed after the last row: nothing is left to run but to end the study's run.
    client.update_run(parent, status="RUNNING")
    kept = storage.read_json(f"{out}/studies/fake.table-toy/results.json")
    storage.write_json(f"{out}/studies/fake.table-toy/results.json", {**kept, "mlflow_status": "RUNNING"})
    run_study(study, "toy", "paper", out, rows=["1", "2"])
    assert client.get_run(parent).info.status == "FINISHED"
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'study'")) == 1
    # Without the results the artifacts are still there.
    (tmp_path / "studies" / "fake.table-toy" / "results.json").unlink()
    beside = dataclasses.replace(study, also=("params",))
    rebuilt = entries(run_study(beside, "toy", "paper", out, rows=["2"]))
    assert rebuilt["Seeds at 0.6"]["scores"] == found["Seeds at 0.6"]["scores"]
    assert rebuilt["Seeds at 0.2 (ours)"] == {} and rebuilt["Seeds at 0.6"]["params"] == params
    record = storage.read_json(f"{out}/runs/{rebuilt['Seeds at 0.6']['run']}/run.json")
    assert all(step["reused"] for step in record["steps"])


def empty_results(study: Study) -> dict[str, Any]:
    return {"rows": [{"name": row.name, "seeds": {}} for row in study.rows]}


def test_plan_takes_first_seeds_first_and_knows_what_is_done(study: Study) -> None:
    results = empty_results(study)
    todo = planned(study, [0, 1, 3], results, 2, None, ["train.epochs=3"])
    assert [(place, seed) for place, seed, _, _ in todo] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    recipe = todo[2][2]
    assert (recipe.seed, recipe.train.epochs, recipe.name) == (1, 3, "fake.table.seeds-at-0.2-ours")
    assert recipe.tags == {"study": "fake.table", "row": "Seeds at 0.2 (ours)", "seed": "1"}
    for place, seed, _, key in todo[:3]:
        results["rows"][place]["seeds"][str(seed)] = {"status": "finished", "key": key}
    assert [entry[:2] for entry in planned(study, [0, 1, 3], results, 2, None, ["train.epochs=3"])] == [(1, 1)]
    # Other settings are other results.
    assert len(planned(study, [0, 1, 3], results, 2, None, ["train.epochs=4"])) == 4


def test_settings_that_fit_no_row_end_the_call(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.epoch"):
        run_study(study, "toy", "paper", str(tmp_path), settings=["train.epoch=1"])
    results = empty_results(study)
    mixed = Study("m", "t", "s", "masks", (study.rows[0], Row("single", tiny(0.2).model_copy(update={"refine": None}))))
    todo = planned(mixed, [0, 1], results, 1, None, ["refine.threshold=0.3"])
    assert [place for place, *_ in todo] == [0]
    assert results["rows"][1]["seeds"]["0"]["status"] == "failed"


def test_other_settings_set_the_results_aside(study: Study, tmp_path: Path) -> None:
    folder = str(tmp_path / "s")
    first = opened(study, "toy", "paper", folder, None, [])
    first["rows"][0]["seeds"]["0"] = {"status": "finished"}
    storage.write_json(f"{folder}/results.json", first)
    assert opened(study, "toy", "paper", folder, None, [])["rows"][0]["seeds"]
    assert not opened(study, "toy", "paper", folder, None, ["seed=3"])["rows"][0]["seeds"]
    kept = [name for name in storage.list_names(folder) if name != "results.json"]
    assert len(kept) == 1 and storage.read_json(f"{folder}/{kept[0]}") == first


def test_rows_are_chosen_by_name_slug_or_number(study: Study) -> None:
    assert chosen_rows(study, []) == [0, 1, 2, 3]
    assert chosen_rows(study, ["2", "seeds at 0.2 (OURS)", "seeds-at-0.6"]) == [0, 1]
    with pytest.raises(UserError, match="3 'No weights'"):
        chosen_rows(study, ["nothing"])
    assert slug("L2G + SA (λ=0.5)") == "l2g-sa-0.5" and slug("…") == "row"


def test_older_seeds_do_not_count(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three seeds, then another recipe with one: the other two are of another network and leave the average."""

    def scored(miou: float, key: str) -> dict[str, Any]:
        scores = {"masks": {"mask": {"miou": miou, "protocol": "train"}}}
        return {"status": "finished", "scores": scores, "key": key, "params": None}

    first = opened(study, "toy", "paper", str(tmp_path), None, [])
    for place, seed, _, key in planned(study, [0, 1], first, 3, None, []):
        first["rows"][place]["seeds"][str(seed)] = scored(0.5, key)
    storage.write_json(str(tmp_path / "results.json"), first)
    left_out(study, first, [], None, [])
    assert len(summarize(first).lines[0].cells["masks"].ours) == 3 and not capsys.readouterr().out

    changed = dataclasses.replace(study, rows=(dataclasses.replace(study.rows[0], recipe=tiny(0.3)), *study.rows[1:]))
    results = opened(changed, "toy", "paper", str(tmp_path), None, [])
    todo = planned(changed, [0], results, 1, None, [])
    left_out(changed, results, todo, None, [])
    assert [entry["status"] for entry in results["rows"][0]["seeds"].values()] == [STALE] * 3
    assert capsys.readouterr().out.count("Seeds at 0.2 (ours) (2)") == 1, "the one that runs now is not named"
    (place, seed, _, key), *_ = todo
    results["rows"][place]["seeds"][str(seed)] = scored(0.9, key)
    lines = summarize(results).lines
    assert lines[0].cells["masks"].ours == (pytest.approx(90.0),) and len(lines[1].cells["masks"].ours) == 3
    assert "2 older seeds left out" in rows(summarize(results))[0][-1]

    left_out(study, results, [], None, [])
    counted = [entry["status"] for entry in results["rows"][0]["seeds"].values()]
    assert counted == [STALE, "finished", "finished"], "with the first recipe the first seeds count again"


def test_two_processes_do_not_run_one_study(study: Study, tmp_path: Path) -> None:
    folder = study_folder(str(tmp_path), study.name, "toy")
    with held(folder, "study"):
        with pytest.raises(UserError, match=f"{folder}: another process runs this study; wait"):
            run_study(study, "toy", "paper", str(tmp_path), rows=["4"])
        run_study(study, "small", "paper", str(tmp_path), rows=["4"])
    assert run_study(study, "toy", "paper", str(tmp_path), rows=["4"])["rows"][3]["seeds"] == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        run_study(study, "toy", "paper", str(tmp_path / "file"), rows=["4"])


def test_traceback_of_a_row_elsewhere_reaches_the_driver(
    study: Study, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train").write_text("where a folder of trainings should be")
    results = run_study(study, "toy", "paper", str(tmp_path), rows=["1", "2"], max_concurrent=2)
    for name in ("Seeds at 0.2 (ours)", "Seeds at 0.6"):
        entry = entries(results)[name]
        assert entry["status"] == "failed" and "Error: " in entry["reason"] and "traceback" not in entry
    printed = capsys.readouterr().out
    assert printed.count("Traceback (most recent call last)") >= 2 and "in finished_row" in printed


def test_any_failure_of_a_row_is_a_reason(study: Study, tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise KeyError("lost\nsecond line")

    monkeypatch.setattr(runs, "run", broken)
    entry = finished_row(study, study.rows[0], tiny(0.2), str(tmp_path), "parent")
    assert entry["status"] == "failed" and entry["reason"].startswith("KeyError: ")
    assert entry["traceback"].startswith("Traceback") and not capsys.readouterr().out

    def refused(*args: Any, **options: Any) -> None:
        raise UserError("train.epochs: too few; raise it")

    monkeypatch.setattr(runs, "run", refused)
    entry = finished_row(study, study.rows[0], tiny(0.2), str(tmp_path), "parent")
    assert entry["reason"] == "train.epochs: too few; raise it" and "traceback" not in entry
