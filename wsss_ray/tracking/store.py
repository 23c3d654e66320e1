# SPDX-License-Identifier: Apache-2.0
"""Runs in MLflow: the only file that imports it. The driver alone writes, in batches, with explicit run ids."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import posixpath
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.config import UserError

EXPERIMENT = "wsss-ray"
_MAX_METRICS, _MAX_PARAMS = 1000, 100
_LONGEST_NAME = 250
"""Characters of a metric's name that MLflow stores."""


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


class Tracker:
    """One MLflow run, written by the driver through ``MlflowClient``."""

    def __init__(
        self,
        out: str,
        name: str,
        tags: dict[str, str],
        parent: str | None = None,
        experiment: str = EXPERIMENT,
        resume: str | None = None,
    ):
        """Start the run, or go on with run ``resume`` where the store still has it.

        Raises UserError, naming the address, where the tracking server does not answer.
        """
        # A server that does not answer should be reported in seconds, not after MLflow's default of minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.uri = choose_store(out)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client = self._connect(MlflowClient)
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                experiment_id = self._client.create_experiment(
                    experiment,
                    artifact_location=choose_artifact_root(out),
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            else:
                experiment_id = found.experiment_id
            all_tags = {**tags, "mlflow.source.name": "wsss", "mlflow.user": os.environ.get("USER", "wsss")}
            if parent is not None:
                all_tags["mlflow.parentRunId"] = parent
            run = self._again(resume, all_tags) if resume is not None else None
            if run is None:
                run = self._client.create_run(experiment_id, run_name=name, tags=all_tags)
        except MlflowException as error:
            raise UserError(
                f"MLflow at {self.uri} does not answer ({str(error).splitlines()[0][:160]}); "
                "start it, correct MLFLOW_TRACKING_URI, or unset it to log to SQLite"
            ) from error
        self.run_id, self.experiment_id = run.info.run_id, experiment_id
        self._pending: list[Any] = []
        self.status = "RUNNING"
        """As the store knows it."""

    def __enter__(self) -> Tracker:
        return self

    @contextlib.contextmanager
    def hold_children(self) -> Iterator[None]:
        """``with tracker`` for a run whose children run inside: what still claims to run before or after is killed."""
        with self:
            self.end_children()
            try:
                yield
            finally:
                self.end_children()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the run: FINISHED, KILLED after ctrl-C, or FAILED; never hides why."""
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(Exception):
            self.finish(status)

    def _connect(self, client: Callable[..., Any]) -> Any:
        if not self.uri.startswith("sqlite:///"):
            return client(tracking_uri=self.uri)
        from filelock import FileLock

        lock = FileLock(self.uri.removeprefix("sqlite:///") + ".lock")
        with lock:
            return _InTurn(client(tracking_uri=self.uri), lock)

    def _again(self, run_id: str, tags: dict[str, str]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return None
        if run.info.lifecycle_stage != "active":  # deleted in the UI
            return None
        self._client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value[:5000])
        return run

    def end_children(self) -> None:
        """Mark runs below this one that still claim to be running as killed: their processes are gone."""
        query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
        while found := list(self._client.search_runs([self.experiment_id], query, max_results=1000)):
            for run in found:
                self._client.set_terminated(run.info.run_id, "KILLED")

    def log_params(self, values: dict[str, Any]) -> None:
        """Flat parameters; long values are cut at MLflow's limit."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:6000]) for key, value in values.items()]
        for start in range(0, len(entries), _MAX_PARAMS):
            self._client.log_batch(self.run_id, params=entries[start : start + _MAX_PARAMS])

    def set_tags(self, values: dict[str, str]) -> None:
        """Searchable tags."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value[:5000])

    def log_metrics(self, values: dict[str, float | None], step: int = 0) -> None:
        """Queue metrics; ``flush`` sends them in batches. None and NaN are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in values.items():
            if value is not None and value == value:
                self._pending.append(Metric(clean_name(key), float(value), now, step))

    def flush(self) -> None:
        """Send queued metrics."""
        while self._pending:
            self._client.log_batch(self.run_id, metrics=self._pending[:_MAX_METRICS])
            self._pending = self._pending[_MAX_METRICS:]

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Copy files into the run's artifacts."""
        for path in paths:
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """A text file among the run's artifacts."""
        self._client.log_text(self.run_id, text, name)

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is queued and end the run (FINISHED, FAILED or KILLED)."""
        self.flush()
        self._client.set_terminated(self.run_id, status)
        self.status = status


def check_store(out: str) -> str:
    """Whether the MLflow store of ``out`` answers, in words; UserError where it does not. Creates nothing."""
    uri = choose_store(out)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            return "not there yet, made by the first run"
        import sqlite3

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


def clean_name(name: str) -> str:
    """A name MLflow accepts, another one for every name: letters and digits of all scripts, ``_ - . / :`` and spaces
    stay, what else there is becomes its number.
    """
    kept = "".join(c if re.match(r"[\w\-./: ]", c) else f"_{ord(c):x}_" for c in unicodedata.normalize("NFC", name))
    if posixpath.normpath(kept) != kept or kept.startswith(("..", "/")) or kept == ".":
        kept = re.sub(r"(?<![^/])\.+(?![^/])|/(?=/|$)|^/", _number_marks, kept)
    if len(kept) > _LONGEST_NAME:
        kept = f"{kept[: _LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return kept


def _number_marks(found: re.Match[str]) -> str:
    return "".join(f"_{ord(c):x}_" for c in found[0])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``a.b.c`` keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save_model(folder: Path, code: Path, path: Path, run_id: str | None = None, out: str = "") -> str:
    """Save ``folder`` (network, weights, model card) as an MLflow pyfunc model at ``path`` whose ``code`` runs where
    it serves, and among the artifacts of the run ``run_id`` where that is known.

    Returns the URI ``mlflow models serve`` takes.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model as save
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("string", "image", required=False), ColSpec("string", "path", required=False)])
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about type hints and examples: the signature is given
        # Requirements are given, since MLflow would otherwise start the model in a second process to guess them.
        save(
            path=str(path),
            python_model=str(code),
            artifacts={"model": str(folder)},
            signature=ModelSignature(inputs=inputs),
            pip_requirements=["wsss-ray"],
        )
    if run_id is None:
        return str(path)
    try:
        MlflowClient(tracking_uri=choose_store(out)).log_artifacts(run_id, str(path), "model")
    except MlflowException as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"MLflow at {choose_store(out)} does not take the model of run {run_id} ({reason})") from error
    return f"runs:/{run_id}/model"


def set_served_model(
    load: Callable[[str], Any], answer: Callable[[Any, list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    """Make two functions the MLflow model of the file that calls this: ``load`` a folder once, ``answer`` its rows.

    A UserError of ``answer`` refuses the request as a bad one, in its own words.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import set_model
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from mlflow.pyfunc.model import PythonModel

    class Served(PythonModel):
        # The saved signature states the schema; without this MLflow asks for type hints on every start.
        _skip_type_hint_validation = True

        def load_context(self, context: Any) -> None:
            self.loaded = load(context.artifacts["model"])

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            try:
                return answer(self.loaded, model_input.to_dict("records"))
            except UserError as error:
                raise MlflowException(str(error), error_code=BAD_REQUEST) from error

    set_model(Served())
