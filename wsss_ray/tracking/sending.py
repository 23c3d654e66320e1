# SPDX-License-Identifier: Apache-2.0
"""What waits below an output folder, sent to the store it was meant for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.tracking.outbox import Outbox, is_gone
from wsss_ray.tracking.store import (
    explain_store,
    find_experiment,
    first_line,
    is_refusal,
    open_store,
)

log = logging.getLogger(__name__)


def write_entry(client: Any, run_id: str, kind: str, values: Mapping[str, Any]) -> None:
    """Write one entry of a run through a client."""
    from mlflow.entities import Metric, Param, RunTag

    if kind == "params":
        client.log_batch(run_id, params=[Param(*entry) for entry in values["entries"]])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(*entry) for entry in values["entries"].items()])
    elif kind == "metrics":
        params = [Param(*entry) for entry in values.get("params", ())]
        client.log_batch(run_id, metrics=[Metric(*entry) for entry in values["entries"]], params=params)
    elif kind == "file":
        client.log_artifact(run_id, values["path"], values["folder"])
    elif kind == "text":
        client.log_text(run_id, values["text"], values["name"])
    elif kind == "end":
        client.set_terminated(run_id, values["status"], values["time"])
    else:
        raise ValueError(f"no kind of entry: {kind}")


def send_outbox(client: Any, outbox: Outbox, out: str) -> str:
    """Send all that waits for a run, in its order, and remove the file; the run's id in the store.

    What the store refuses is said and left out. What was sent already is not sent again after a failure.
    """
    head = outbox.read_head()
    run_id = head.sent_as or head.run
    if head.created is not None and head.sent_as is None:
        experiment_id = find_experiment(client, head.created["experiment"], out)
        made = client.create_run(experiment_id, run_name=head.created["name"], tags=head.created["tags"])
        run_id = str(made.info.run_id)
        outbox.note_run(run_id)
    else:
        client.get_run(run_id)  # of another store nothing is taken for sent
    for number, kind, values in outbox.list_left():
        try:
            write_entry(client, run_id, kind, values)
        except Exception as error:
            if not is_refusal(error):
                raise
            log.warning(f"MLflow refused the {kind} of run {run_id}: {first_line(error)}")
        outbox.note_sent(number)
    outbox.remove()
    return run_id


def sync_outboxes(out: str) -> tuple[int, int]:
    """Send what waits below ``out`` to the store it was meant for, or to ``MLFLOW_TRACKING_URI``; (sent, left) runs."""
    sent = left = 0
    for outbox in list_outboxes(out):
        uri = os.environ.get("MLFLOW_TRACKING_URI") or outbox.read_head().uri
        try:
            send_outbox(open_store(uri), outbox, out)
            sent += 1
        except Exception as error:
            left += 1
            log.warning(f"{outbox.folder}: {explain_store(error, uri)}")
    return sent, left


def list_outboxes(out: str) -> list[Outbox]:
    """The runs below ``out`` of which something waits, whose own processes are gone."""
    return [outbox for outbox in Outbox.list(locate_outboxes(out)) if is_gone(outbox.read_head().process) is not False]


def locate_outboxes(out: str) -> Path:
    """The folder of what waits to be sent: beside the default store."""
    return (storage.find_local(out) or Path.cwd() / "runs") / ".mlflow-waiting"
