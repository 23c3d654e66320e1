# SPDX-License-Identifier: Apache-2.0
"""Models in MLflow's form: saved, logged with their runs, and the code by which they are served."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.tracking.store import choose_store


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
