# SPDX-License-Identifier: Apache-2.0
"""Jobs on a cluster: which commands are refused since their results would be lost, and how a job is followed."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package

from wsss_ray.cluster import submit
from wsss_ray.cluster.submit import build_entrypoint, follow_job, hand_in_job, refuse_lost_results, submit_job
from wsss_ray.config import UserError


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
        ("predict /images --model /shared/runs/x", "--out"),
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
    assert writing - {"compare", "doctor", "runs", "submit", "track sync", "ui"} == set(submit.PLACES)
    assert all(place.option in found[name] for name, place in submit.PLACES.items())


def test_arguments_reach_the_job_as_they_were() -> None:
    assert build_entrypoint(["run", "a b"]).endswith("-m wsss_ray.cli.main run 'a b'")


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


class Young:
    """A cluster that takes no job yet, and says so as often as it is told to."""

    def __init__(self, error: str, times: int) -> None:
        self.error, self.times = error, times

    def submit_job(self, **job: Any) -> str:
        self.times -= 1
        if self.times >= 0:
            raise RuntimeError(f"Request failed with status code 500: {self.error}")
        return f"job of {job['entrypoint']}"


def test_cluster_that_has_only_just_started_is_waited_for(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = "No available agent to submit job, please try again later.."
    assert hand_in_job(Young(agents, 3), "here", entrypoint="it") == "job of it"
    with pytest.raises(UserError, match="not taken .*No such file"):
        hand_in_job(Young("No such file", 1), "here", entrypoint="it")
    with pytest.raises(UserError, match=r"not taken \(OSError: disk full\)"):
        hand_in_job(
            Young("Traceback (most recent call last):\n  File here\nOSError: disk full", 1), "here", entrypoint="it"
        )
    monkeypatch.setattr(submit, "WARM_UP", 0.1)
    with pytest.raises(UserError, match="not taken .*try again later.*--dashboard-agent-listen-port"):
        hand_in_job(Young(agents, 1000), "here", entrypoint="it")


GONE = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def test_lost_log_is_taken_up_where_it_broke(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs: list[list[str | float | Exception]] = [["one\ntw", GONE], [GONE], ["one\n", "two\nthree\n"]]
    cluster = Cluster(logs, ["RUNNING", ConnectionError("refused"), "FAILED"], code=7)
    assert follow_job(cluster, "job", "here") == 7
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_log_that_closes_early_does_not_end_a_running_job(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster([[], ["one\n"], ["one\ntwo\n"]], ["PENDING", "RUNNING", "SUCCEEDED"])
    assert follow_job(cluster, "job", "here") == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_long_log_does_not_use_up_the_patience(quick: None) -> None:
    cluster = Cluster([["one\n", 0.5, GONE], ["one\n"]], [ConnectionError("refused"), "SUCCEEDED"])
    assert follow_job(cluster, "job", "here") == 0


def test_rest_of_a_log_that_broke_at_the_end_is_shown(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster([["one\n", GONE], ["one\ntwo\n"]], ["SUCCEEDED"])
    assert follow_job(cluster, "job", "here") == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_cluster_that_is_gone_is_one_line_that_says_how_to_go_on(quick: None) -> None:
    cluster = Cluster([[GONE]] * 1000, [ConnectionError("refused")])
    with pytest.raises(UserError, match="ray job logs --address here --follow job"):
        follow_job(cluster, "job", "here")
    forgotten = Cluster([[GONE]], [RuntimeError("Request failed with status code 404: Job job does not exist.")])
    with pytest.raises(UserError, match="restarted"):
        follow_job(forgotten, "job", "here")
    assert forgotten.heard == ["log", "status"]


class Cable:
    """Carries TCP from a port of its own to another one, until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.far = host, port
        self.loop = asyncio.new_event_loop()
        self.writers: set[asyncio.StreamWriter] = set()
        self.num_cut = 0
        server = self.loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self.host, self.far)
        self.writers |= {writer, far_writer}

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            except OSError:
                pass
            finally:
                target.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def cut(self) -> None:
        """Break every connection there is; later ones are carried again."""

        def abort() -> None:
            for writer in self.writers:
                self.num_cut += not writer.is_closing()
                writer.transport.abort()
            self.writers.clear()

        self.loop.call_soon_threadsafe(abort)


def find_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Host and port of a real job server, beside whatever else runs Ray on this machine."""
    pytest.importorskip("aiohttp_cors")
    import ray
    from ray._private import parameter

    from tests.local_ray import start_ray

    # The agent that takes jobs listens on one fixed port; only 'ray start' can be given another one.
    params = functools.partial(parameter.RayParams, dashboard_agent_listen_port=find_port())
    monkeypatch.setattr(parameter, "RayParams", params)
    context = start_ray(1, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=find_port())
    host, _, given = str(context.dashboard_url).rpartition(":")
    yield host, int(given)
    ray.shutdown()


def test_real_job_is_followed_through_a_cut_connection(
    dashboard: tuple[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    cable = Cable(*dashboard)
    address = f"http://127.0.0.1:{cable.port}"
    client = submit.connect(address)
    command = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 1; done; exit 3"
    job = hand_in_job(submit.connect(":".join(map(str, dashboard))), "there", entrypoint=command)
    for seconds in (4.0, 7.0):
        threading.Timer(seconds, cable.cut).start()
    assert follow_job(client, job, address) == 3
    shown = [line for line in capfd.readouterr().out.splitlines() if line.startswith("line ")]
    assert shown == [f"line {place}" for place in range(1, 9)]
    assert cable.num_cut > 1, "no connection was there to be cut"


def test_a_checkout_is_sent_without_data_and_with_the_packages_own_weights(tmp_path: Path) -> None:
    """What Ray packs of a folder, by Ray's own packing."""
    sent = ("wsss_ray/nets/toy_pretrained.safetensors", "wsss_ray/nets/toy.py", "studies/cam.py", "pyproject.toml")
    kept = ("results/train/a/model.safetensors", "model.safetensors", "data/shard-00000.parquet", "weights/x.pth")
    for name in (*sent, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    package = tmp_path.parent / f"{tmp_path.name}.zip"
    create_package(str(tmp_path), package, include_gitignore=False, excludes=list(submit.EXCLUDES))
    with zipfile.ZipFile(package) as packed:
        assert {name for name in packed.namelist() if not name.endswith("/")} == set(sent)
