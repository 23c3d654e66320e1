# SPDX-License-Identifier: Apache-2.0
"""A study for real: rows on Ray, one that fails, one that is quoted; a second call runs nothing again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from wsss_ray import storage
from wsss_ray.artifacts.store import hold_folder
from wsss_ray.config import UserError
from wsss_ray.data.augment import AugmentConfig
from wsss_ray.data.toy import ToyConfig
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.experiments import study_run
from wsss_ray.experiments.study import Row, Study
from wsss_ray.experiments.study_plan import (
    OpenStudy,
    SettledRow,
    StudyOptions,
    choose_rows,
    make_slug,
    mark_stale,
    open_study,
    plan_rows,
)
from wsss_ray.experiments.study_run import run_row, run_study
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.recipe import DataConfig, NetConfig, Recipe
from wsss_ray.refine.seeds import ThresholdSeedsConfig
from wsss_ray.reports.study_results import STALE, locate_study
from wsss_ray.reports.study_table import summarize_study
from wsss_ray.reports.study_text import format_rows


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


def test_rows_run_fail_and_are_kept(study: Study, tmp_path: Path, ray_cluster: None) -> None:
    from mlflow.tracking import MlflowClient

    out = str(tmp_path)
    results = run_study(study, StudyOptions(), out, max_concurrent=2)
    found = entries(results)
    assert [found[row.name].get("status") for row in study.rows] == ["finished", "finished", "failed", None]
    assert "no_such_weights" in found["No weights"]["reason"]
    assert results == storage.read_json(f"{out}/studies/fake.table-toy/results.json")
    for name in ("table.md", "figure.png"):
        assert (tmp_path / "studies" / "fake.table-toy" / name).stat().st_size > 100
    table = format_rows(summarize_study(results))
    assert [line[2] for line in table[2:]] == ["failed", "-"]
    assert float(table[0][2]) >= 0
    params = found["Seeds at 0.2 (ours)"]["params"]
    assert params is not None
    assert 0 < params < 10
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
    again = entries(run_study(study, StudyOptions(), out))
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
    assert entries(run_study(study, StudyOptions(), out))["Seeds at 0.6"]["status"] == "finished"
    assert client.get_run(lost.info.run_id).info.status == "KILLED"
    assert client.get_run(parent).info.status == "FINISHED"
    # Killed after the last row: nothing is left to run but to end the study's run.
    client.update_run(parent, status="RUNNING")
    kept = storage.read_json(f"{out}/studies/fake.table-toy/results.json")
    storage.write_json(f"{out}/studies/fake.table-toy/results.json", {**kept, "mlflow_status": "RUNNING"})
    run_study(study, StudyOptions(rows=("1", "2")), out)
    assert client.get_run(parent).info.status == "FINISHED"
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'study'")) == 1
    # Without the results the artifacts are still there.
    (tmp_path / "studies" / "fake.table-toy" / "results.json").unlink()
    beside = dataclasses.replace(study, also=("params",))
    rebuilt = entries(run_study(beside, StudyOptions(rows=("2",)), out))
    assert rebuilt["Seeds at 0.6"]["scores"] == found["Seeds at 0.6"]["scores"]
    assert rebuilt["Seeds at 0.2 (ours)"] == {}
    assert rebuilt["Seeds at 0.6"]["params"] == params
    record = storage.read_json(f"{out}/runs/{rebuilt['Seeds at 0.6']['run']}/run.json")
    assert all(step["reused"] for step in record["steps"])


def opened(study: Study, folder: Path, **options: Any) -> OpenStudy:
    """The study with what its folder keeps."""
    return open_study(study, StudyOptions(**options), str(folder))


def test_plan_takes_first_seeds_first_and_knows_what_is_done(study: Study, tmp_path: Path) -> None:
    new = opened(study, tmp_path, num_seeds=2, settings=("train.epochs=3",))
    planned = plan_rows(new, [0, 1, 3])
    assert [(row.place, row.seed) for row in planned] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    recipe = planned[2].recipe
    assert (recipe.seed, recipe.train.epochs, recipe.name) == (1, 3, "fake.table.seeds-at-0.2-ours")
    assert recipe.tags == {"study": "fake.table", "row": "Seeds at 0.2 (ours)", "seed": "1"}
    for row in planned[:3]:
        new.seeds_of(row.place)[str(row.seed)] = {"status": "finished", "key": row.key}
    assert [(row.place, row.seed) for row in plan_rows(new, [0, 1, 3])] == [(1, 1)]
    # Other settings are other results.
    other = dataclasses.replace(new, options=StudyOptions(num_seeds=2, settings=("train.epochs=4",)))
    assert len(plan_rows(other, [0, 1, 3])) == 4


def test_settings_that_fit_no_row_end_the_call(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.epoch"):
        run_study(study, StudyOptions(settings=("train.epoch=1",)), str(tmp_path))
    mixed = Study("m", "t", "s", "masks", (study.rows[0], Row("single", tiny(0.2).model_copy(update={"refine": None}))))
    new = opened(mixed, tmp_path / "mixed", settings=("refine.threshold=0.3",))
    assert [row.place for row in plan_rows(new, [0, 1])] == [0]
    assert new.seeds_of(1)["0"]["status"] == "failed"


def test_other_settings_set_the_results_aside(study: Study, tmp_path: Path) -> None:
    first = opened(study, tmp_path)
    first.seeds_of(0)["0"] = {"status": "finished"}
    storage.write_json(f"{tmp_path}/results.json", first.results)
    assert opened(study, tmp_path).seeds_of(0)
    assert not opened(study, tmp_path, settings=("seed=3",)).seeds_of(0)
    kept = [name for name in storage.list_names(str(tmp_path)) if name != "results.json"]
    assert len(kept) == 1
    assert storage.read_json(f"{tmp_path}/{kept[0]}") == first.results


def test_unknown_columns_are_refused(study: Study) -> None:
    with pytest.raises(UserError, match=r"'masks\.crf'; known: seeds, masks"):
        dataclasses.replace(study, also=("masks.crf",))


def test_rows_are_chosen_by_name_slug_or_number(study: Study) -> None:
    assert choose_rows(study, []) == [0, 1, 2, 3]
    assert choose_rows(study, ["2", "seeds at 0.2 (OURS)", "seeds-at-0.6"]) == [0, 1]
    with pytest.raises(UserError, match="3 'No weights'"):
        choose_rows(study, ["nothing"])
    assert make_slug("L2G + SA (λ=0.5)") == "l2g-sa-0.5"
    assert make_slug("…") == "row"


def test_older_seeds_do_not_count(study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three seeds, then another recipe with one: the other two are of another network and leave the average."""

    def scored(miou: float, key: str) -> dict[str, Any]:
        scores = {"masks": {"mask": {"miou": miou, "protocol": "train"}}}
        return {"status": "finished", "scores": scores, "key": key, "params": None}

    first = opened(study, tmp_path, num_seeds=3)
    for row in plan_rows(first, [0, 1]):
        first.seeds_of(row.place)[str(row.seed)] = scored(0.5, row.key)
    storage.write_json(str(tmp_path / "results.json"), first.results)
    mark_stale(first, [])
    assert len(summarize_study(first.results).lines[0].cells["masks"].ours) == 3
    assert not caplog.text

    changed = dataclasses.replace(study, rows=(dataclasses.replace(study.rows[0], recipe=tiny(0.3)), *study.rows[1:]))
    second = opened(changed, tmp_path)
    planned = plan_rows(second, [0])
    mark_stale(second, planned)
    assert [entry["status"] for entry in second.seeds_of(0).values()] == [STALE] * 3
    assert caplog.text.count("Seeds at 0.2 (ours) (2)") == 1, "the one that runs now is not named"
    second.seeds_of(0)[str(planned[0].seed)] = scored(0.9, planned[0].key)
    table = summarize_study(second.results)
    assert table.lines[0].cells["masks"].ours == (pytest.approx(90.0),)
    assert len(table.lines[1].cells["masks"].ours) == 3
    assert "2 older seeds left out" in format_rows(table)[0][-1]

    mark_stale(dataclasses.replace(second, study=study), [])
    counted = [entry["status"] for entry in second.seeds_of(0).values()]
    assert counted == [STALE, "finished", "finished"], "with the first recipe the first seeds count again"


def test_two_processes_do_not_run_one_study(study: Study, tmp_path: Path) -> None:
    folder = locate_study(str(tmp_path), study.name, "toy")
    with hold_folder(folder, "study"):
        with pytest.raises(UserError, match=f"{folder}: another process runs this study; wait"):
            run_study(study, StudyOptions(rows=("4",)), str(tmp_path))
        run_study(study, StudyOptions(scale="small", rows=("4",)), str(tmp_path))
    assert run_study(study, StudyOptions(rows=("4",)), str(tmp_path))["rows"][3]["seeds"] == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        run_study(study, StudyOptions(rows=("4",)), str(tmp_path / "file"))


def test_traceback_of_a_row_elsewhere_reaches_the_driver(
    study: Study, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train").write_text("where a folder of trainings should be")
    results = run_study(study, StudyOptions(rows=("1", "2")), str(tmp_path), max_concurrent=2)
    for name in ("Seeds at 0.2 (ours)", "Seeds at 0.6"):
        entry = entries(results)[name]
        assert entry["status"] == "failed"
        assert "Error: " in entry["reason"]
        assert "traceback" not in entry
    printed = caplog.text
    assert printed.count("Traceback (most recent call last)") >= 2
    assert "in run_row" in printed


def test_any_failure_of_a_row_is_a_reason(study: Study, tmp_path: Path, monkeypatch, caplog) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise KeyError("lost\nsecond line")

    row = SettledRow(0, study.rows[0].name, 0, tiny(0.2), "key")
    monkeypatch.setattr(study_run, "run", broken)
    entry = run_row(study, row, str(tmp_path), "parent")
    assert entry["status"] == "failed"
    assert entry["reason"].startswith("KeyError: ")
    assert entry["traceback"].startswith("Traceback")
    assert not caplog.text

    def refused(*args: Any, **options: Any) -> None:
        raise UserError("train.epochs: too few; raise it")

    monkeypatch.setattr(study_run, "run", refused)
    entry = run_row(study, row, str(tmp_path), "parent")
    assert entry["reason"] == "train.epochs: too few; raise it"
    assert "traceback" not in entry
