"""Jobs on a cluster: which commands are refused since their results would be lost, and how a job is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from wsss_ray.config import UserError
from wsss_ray.stages import submit
from wsss_ray.stages.submit import entrypoint, followed, refuse_lost_results, submit_job


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("run cam", "--out"),
        ("sweep cam --out results", "--out"),
        ("study run l2g.table1 --out=", "--out"),
        ("study report l2g.table1 --out /shared --to table.md", "--to"),
        ("data prepare voc /devkit", "--out"),
        ("data saliency voc /devkit --out saliency", "--out"),
        ("export /shared/runs/x --to masks", "--to"),
        ("export /shared/runs/x --to s3://bucket/masks", "--to"),
        ("report x --results /shared", "--out"),
        ("predict /pictures --model /shared/runs/x", "--out"),
        ("weights fetch resnet38_imagenet --folder here", "--folder"),
    ],
)
def test_results_that_a_job_would_lose_are_refused(arguments: str, option: str) -> None:
    with pytest.raises(UserError, match=f"give 'wsss [a-z ]+' {option} with an absolute path"):
        submit_job(arguments.split(), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "arguments",
    [
        "run cam --out /shared/results",
        "run cam --out=s3://bucket/results",
        "sweep cam --over seed=1 --out ~/results",
        "study report l2g.table1 --out /shared",
        "data prepare voc /devkit --out gs://bucket/data",
        "export /shared/runs/x --to /shared/masks",
        "report x --results /shared --out s3://bucket/page.html",
        "compare a b",
        "data check x",
        "weights fetch resnet38_imagenet",
        "run --help",
        "list",
    ],
)
def test_what_outlives_its_job_or_writes_nothing_is_taken(arguments: str) -> None:
    refuse_lost_results(arguments.split())


def test_every_command_that_writes_has_its_place() -> None:
    from typer.main import get_command
    from wsss_ray.cli.main import app

    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        for part, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {part}".strip())
        if not hasattr(command, "commands"):
            found[name] = {option for parameter in command.params for option in parameter.opts}

    walk(get_command(app), "")
    writing = {name for name, options in found.items() if options & {"--out", "--to", "--folder"}}
    assert writing - {"compare", "ui", "submit"} == set(submit.PLACES)
    assert all(place.option in found[name] for name, place in submit.PLACES.items())


def test_arguments_reach_the_job_as_they_were() -> None:
    assert entrypoint(["run", "a b"]).endswith("-m wsss_ray.cli.main run 'a b'")


@dataclass
class Cluster:
    """What a job's server says: parts of the log (a number waits, an error breaks it) and states, one per question."""

    logs: list[list[str | float | Exception]]
    states: list[str | Exception]
    code: int | None = 0
    heard: list[str] = field(default_factory=list)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.heard.append("log")
        for part in self.logs.pop(0):
            if isinstance(part, Exception):
                raise part
            if isinstance(part, str):
                yield part
            else:
                await asyncio.sleep(part)

    def get_job_info(self, job: str) -> Any:
        self.heard.append("status")
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state, driver_exit_code=self.code, message="it ended")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PAUSE", 0.01)
    monkeypatch.setattr(submit, "PATIENCE", 0.2)


GONE = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def test_lost_log_is_taken_up_where_it_broke(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs: list[list[str | float | Exception]] = [["one\ntw", GONE], [GONE], ["one\n", "two\nthree\n"]]
    cluster = Cluster(logs, ["RUNNING", ConnectionError("refused"), "FAILED"], code=7)
    assert followed(cluster, "job", "here") == 7
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_log_that_closes_early_does_not_end_a_running_job(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster([[], ["one\n"], ["one\ntwo\n"]], ["PENDING", "RUNNING", "SUCCEEDED"])
    assert followed(cluster, "job", "here") == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_long_log_does_not_use_up_the_patience(quick: None) -> None:
    cluster = Cluster([["one\n", 0.5, GONE], ["one\n"]], [ConnectionError("refused"), "SUCCEEDED"])
    assert followed(cluster, "job", "here") == 0


def test_rest_of_a_log_that_broke_at_the_end_is_shown(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster([["one\n", GONE], ["one\ntwo\n"]], ["SUCCEEDED"])
    assert followed(cluster, "job", "here") == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_cluster_that_is_gone_is_one_line_that_says_how_to_go_on(quick: None) -> None:
    cluster = Cluster([[GONE]] * 1000, [ConnectionError("refused")])
    with pytest.raises(UserError, match="ray job logs --address here --follow job"):
        followed(cluster, "job", "here")
    forgotten = Cluster([[GONE]], [RuntimeError("Request failed with status code 404: Job job does not exist.")])
    with pytest.raises(UserError, match="restarted"):
        followed(forgotten, "job", "here")
    assert forgotten.heard == ["log", "status"]
