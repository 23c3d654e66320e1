# SPDX-License-Identifier: Apache-2.0
"""Runs in MLflow: which store, and what is in it."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.tracking.outbox import is_gone

log = logging.getLogger(__name__)
EXPERIMENT = "wsss-ray"
HEARTBEAT, PROCESS = "wsss.heartbeat", "wsss.process"
"""Tags: when a run was last known to be alive, in seconds of Unix time, and which process writes it."""
SILENT_SECONDS = 900.0
"""After which silence a run on another machine counts as dead."""


def choose_store(out: str) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, otherwise SQLite beside the artifacts (in the working folder for a
    remote --out).

    Several machines want a server, over PostgreSQL for instance: ``mlflow server --artifacts-destination FOLDER
    --backend-store-uri postgresql+psycopg2://USER@HOST/DATABASE``, psycopg2-binary installed beside it alone.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = storage.find_local(out) or Path.cwd() / "runs"
    return f"sqlite:///{folder / 'mlflow.db'}"


def choose_artifact_root(out: str) -> str | None:
    """Where a default store keeps images and files: beside the database."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    folder = storage.find_local(out) or Path.cwd() / "runs"
    return (folder / "mlflow").as_uri()


class _InTurn:
    """A client of whose callers, in any process of this machine, one at a time reaches the SQLite file.

    Without turns, runs that start together both create its tables and fail, and long writes end in "database is
    locked".
    """

    def __init__(self, client: Any, lock: Any) -> None:
        self._client, self._lock = client, lock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return method(*args, **kwargs)

        return call


def open_store(uri: str) -> Any:
    """A client of a store; its own log is silent, since what goes wrong there is said in a line."""
    # A server that does not answer should be reported in seconds, not after MLflow's default of minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow", "sqlalchemy", "urllib3"):
        if (logger := logging.getLogger(name)).level != logging.CRITICAL:  # setting it is slow
            logger.setLevel(logging.CRITICAL)
    path = find_database(uri)
    if path is None:
        return MlflowClient(tracking_uri=uri)
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
            # MLflow would try for two minutes to open what is no file.
            database.execute("pragma schema_version")
    lock = FileLock(f"{path}.lock")
    with lock:
        return _InTurn(MlflowClient(tracking_uri=uri), lock)


def find_database(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def find_experiment(client: Any, name: str, out: str) -> str:
    """The id of an experiment: made where there is none, restored where it was deleted in the UI."""
    found = client.get_experiment_by_name(name)
    if found is None:
        made: str = client.create_experiment(
            name,
            artifact_location=choose_artifact_root(out),
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
        return made
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        log.warning(f"MLflow: the experiment {name!r} was deleted there; it is restored, with its runs")
    return str(found.experiment_id)


def end_dead_runs(client: Any, experiment_id: str, but: str | None = None) -> int:
    """Mark runs as killed that claim to run, though their process is gone or has been silent; how many these were."""
    count = 0
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
        beat, process = run.data.tags.get(HEARTBEAT), run.data.tags.get(PROCESS, "")
        if beat is None or run.info.run_id == but:
            continue
        gone = is_gone(process)
        if gone or (gone is None and time.time() - float(beat) > SILENT_SECONDS):
            client.set_terminated(run.info.run_id, "KILLED")
            count += 1
    if count:
        log.info(f"MLflow: {count} runs that were cut off are marked as KILLED")
    return count


def close_dead_runs(out: str) -> None:
    """Mark the runs in the store of ``out`` as killed whose processes are gone; nothing where there is no store."""
    uri = choose_store(out)
    path = find_database(uri)
    if path is not None and not path.exists():
        return
    with contextlib.suppress(Exception):  # whoever needs the store says what is wrong with it
        client = open_store(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            end_dead_runs(client, found.experiment_id)


REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "PERMISSION_DENIED",
)
"""What a store answers to what it does not take, however often it is sent."""


def is_refusal(error: Exception) -> bool:
    """Whether a store that works refused what it was given."""
    return getattr(error, "error_code", "") in REFUSALS


def first_line(error: Exception) -> str:
    """What an error says, without its lists of causes."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def explain_store(error: Exception, uri: str, running: bool = False) -> UserError:
    """Why a store cannot be used, and what to do; ``running``: what does not stop a run that has begun."""
    text, path = str(error), find_database(uri)
    if isinstance(error, UserError):
        return error
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return UserError(
            f"MLflow at {uri} is of another MLflow version; make a copy of the database, then run 'mlflow db upgrade "
            f"{uri}', or install the newer MLflow that made it"
        )
    if path is not None:
        known = {
            "not a database": ("is no SQLite database", "move it away"),
            "malformed": ("is damaged", "move it away; results are complete without it"),
            "readonly": ("cannot be written", "make it writable or choose another --out"),
            "Read-only file system": ("cannot be written", "choose another --out"),
            "Permission denied": ("cannot be written", "choose another --out"),
            "unable to open": ("cannot be opened", "choose another --out"),
            "disk I/O error": ("cannot be opened", "choose another --out"),
            "No such file or directory": ("cannot be made there", "choose another --out"),
            "Not a directory": ("cannot be made there", "choose another --out"),
            "no such table": ("has lost its tables", "move it away; results are complete without it"),
            "is full": ("does not fit on the disk", "free some space"),
            "No space left": ("does not fit on the disk", "free some space"),
        }
        for words, (what, fix) in known.items():
            if words in text:
                return UserError(f"{path}: MLflow's database {what}" + ("" if running else f"; {fix}"))
    what = f"MLflow at {uri} does not answer ({first_line(error)})"
    fix = "start it, correct MLFLOW_TRACKING_URI, or unset it to log to SQLite"
    return UserError(what if running else f"{what}; {fix}")


def check_store(out: str) -> str:
    """Whether the MLflow store of ``out`` answers, in words; UserError where it does not. Creates nothing."""
    uri = choose_store(out)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            return "not there yet, made by the first run"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                count = database.execute("select count(*) from runs").fetchone()[0]
        except sqlite3.Error as error:
            raise UserError(f"{path}: no MLflow database ({error}); move it away, or set MLFLOW_TRACKING_URI") from None
        return f"{count} runs"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"MLflow at {uri} does not answer ({reason}); correct MLFLOW_TRACKING_URI") from None
    return "answers"
