# SPDX-License-Identifier: Apache-2.0
"""One run in MLflow, written by its driver; whatever happens to the store, the run goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wsss_ray.tracking.names import clean_name
from wsss_ray.tracking.outbox import Outbox, name_process
from wsss_ray.tracking.sending import locate_outboxes, send_outbox, write_entry
from wsss_ray.tracking.store import (
    EXPERIMENT,
    HEARTBEAT,
    PROCESS,
    choose_store,
    end_dead_runs,
    explain_store,
    find_experiment,
    first_line,
    is_refusal,
    open_store,
)

log = logging.getLogger(__name__)
_MAX_METRICS, _MAX_PARAMS = 1000, 100
BEAT_SECONDS = 60.0
"""Between two heartbeats."""
RETRY_SECONDS = 60.0
"""Between two tries to send what waits."""


class Tracker:
    """One MLflow run, written by the driver through ``MlflowClient``.

    It never ends what it tracks: where the store stops answering, that is said once, and what is to be written waits
    in a file (``Outbox``) until the store answers again. What the store refuses is said and left out.
    """

    def __init__(
        self,
        out: str,
        name: str,
        tags: dict[str, str],
        parent: str | None = None,
        resume: str | None = None,
        beside: Tracker | None = None,
    ):
        """Start the run, or go on with run ``resume`` where the store still has it.

        ``beside``: a run of the same experiment, whose connection is used.

        Raises UserError, naming the address and the fix, where the store does not answer; a run with a ``parent``,
        which has begun when it did, waits in its file.
        """
        self.uri, self._out = choose_store(out), out
        self._outbox: Outbox | None = None
        self._client: Any = None
        self.experiment_id = ""
        """Empty where the store did not answer."""
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._pending: list[list[Any]] = []
        self._params: list[list[str]] = []
        self.status = "RUNNING"
        """As the store knows it."""
        own = {"mlflow.source.name": "wsss", "mlflow.user": os.environ.get("USER", "wsss"), PROCESS: name_process()}
        all_tags = {**tags, **own, HEARTBEAT: str(int(time.time()))}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        try:
            if beside is not None and beside.experiment_id:
                self._client, self.experiment_id = beside._client, beside.experiment_id  # noqa: SLF001
            else:
                self._client = open_store(self.uri)
                self.experiment_id = find_experiment(self._client, EXPERIMENT, out)
            if parent is None:  # a child's parent has looked
                end_dead_runs(self._client, self.experiment_id, but=resume)
            run = self._again(resume, all_tags) if resume is not None else None
            if run is None:
                run = self._client.create_run(self.experiment_id, run_name=name, tags=all_tags)
            self.run_id = str(run.info.run_id)
        except Exception as error:
            if parent is None:
                raise explain_store(error, self.uri) from error
            self.run_id, self.experiment_id = uuid.uuid4().hex, ""
            self._wait_in_file(error, {"experiment": EXPERIMENT, "name": name, "tags": all_tags})
        threading.Thread(target=self._beat, daemon=True).start()

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

    def _beat(self) -> None:
        """Say now and then that the run is alive, until it is finished."""
        while not self._stop.wait(BEAT_SECONDS):
            if self._outbox is None:
                with contextlib.suppress(Exception):
                    self._client.set_tag(self.run_id, HEARTBEAT, str(int(time.time())))

    def _again(self, run_id: str, tags: dict[str, str]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if is_refusal(error):
                return None
            raise
        if run.info.lifecycle_stage != "active":  # deleted in the UI
            return None
        self._client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value[:5000])
        return run

    def _write(self, kind: str, **values: Any) -> bool:
        """Write something of the run, or put it into the file where the store does not answer; whether it is there."""
        if self._outbox is not None and time.monotonic() > self._retry_at:
            self._send_outbox()
        if self._outbox is None:
            try:
                write_entry(self._client, self.run_id, kind, values)
            except Exception as error:
                if is_refusal(error):
                    log.warning(f"MLflow refused the {kind} of run {self.run_id}: {first_line(error)}")
                    return False
                self._wait_in_file(error)
            else:
                return True
        if self._outbox is not None:
            self._outbox.add(kind, values)
        return False

    def _wait_in_file(self, error: Exception, created: dict[str, Any] | None = None) -> None:
        self._outbox = Outbox.begin(locate_outboxes(self._out), self.uri, self.run_id, created)
        self._retry_at = time.monotonic() + RETRY_SECONDS
        log.warning(
            f"{explain_store(error, self.uri, running=True)}; the run goes on, what it logs waits in "
            f"{self._outbox.folder}: it is sent when MLflow is back, or by 'wsss track sync --out {self._out}'"
        )

    def _send_outbox(self) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if self._outbox is None:
            return
        try:
            client = open_store(self.uri)
            self.run_id = send_outbox(client, self._outbox, self._out)
        except Exception:
            return
        self._client, self._outbox = client, None
        log.info("MLflow is back: what waited has been sent")

    def end_children(self) -> None:
        """Mark runs below this one that still claim to be running as killed: their processes are gone."""
        if self._outbox is not None:
            return
        query = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
        with contextlib.suppress(Exception):  # the next command on this store does it
            while found := list(self._client.search_runs([self.experiment_id], query, max_results=1000)):
                for run in found:
                    self._client.set_terminated(run.info.run_id, "KILLED")

    def log_params(self, values: dict[str, Any], later: bool = False) -> None:
        """Flat parameters; long values are cut at MLflow's limit. ``later`` sends them with the next metrics, which
        for a run of few numbers is half the work.
        """
        self._params += [[key, str(value)[:6000]] for key, value in values.items()]
        while self._params and (not later or len(self._params) > _MAX_PARAMS):
            self._write("params", entries=self._params[:_MAX_PARAMS])
            self._params = self._params[_MAX_PARAMS:]

    def set_tags(self, values: dict[str, str]) -> None:
        """Searchable tags."""
        self._write("tags", entries={key: value[:5000] for key, value in values.items()})

    def log_metrics(self, values: dict[str, float | None], step: int = 0) -> None:
        """Queue metrics; ``flush`` sends them in batches. None and NaN are left out."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            if value is not None and value == value:
                self._pending.append([clean_name(key), float(value), now, step])

    def flush(self) -> None:
        """Send queued metrics."""
        while self._pending or self._params:
            most = _MAX_METRICS - len(self._params)
            self._write("metrics", entries=self._pending[:most], params=self._params)
            self._pending, self._params = self._pending[most:], []

    def log_files(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Copy files into the run's artifacts."""
        for path in paths:
            self._write("file", path=str(path), folder=folder)

    def log_text(self, text: str, name: str) -> None:
        """A text file among the run's artifacts."""
        self._write("text", text=text, name=name)

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is queued and end the run (FINISHED, FAILED or KILLED)."""
        self._stop.set()
        self.flush()
        self._retry_at = 0.0
        if self._write("end", status=status, time=int(time.time() * 1000)):
            self.status = status
