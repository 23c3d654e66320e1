"""The MLflow model, as code that MLflow runs where it serves: pictures in, class shares and masks out.

``wsss_ray.tracking.save_model`` is what names this file; nothing else imports it, since it needs mlflow.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel

from wsss_ray.answering import Answer, Answerer, open_model
from wsss_ray.config import UserError
from wsss_ray.data.picture import decode_picture, encode_mask

ROOT = "WSSS_SERVE_ROOT"
"""The folder below which a served model may read the files of column ``path``; without it none are read."""


class Segmentation(PythonModel):
    """Rows with ``picture`` (base64 of a JPEG, PNG, ...) or ``path`` -> one answer each."""

    # The saved signature states the schema; without this MLflow asks for type hints on every start.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Load the network once, when the server starts."""
        self.answerer = Answerer(open_model(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """{"height", "width", "classes": [{"class", "share", "confidence"}], "mask": base64 of a palette PNG} for every
        row; a bad picture refuses the request, naming its row."""
        pictures = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                pictures.append(decode_picture(_bytes(row), f"row {number}"))
            except UserError as error:
                raise MlflowException(str(error), error_code=BAD_REQUEST) from error
        return [self._row(answer) for answer in self.answerer.answer(pictures)]

    def _row(self, answer: Answer) -> dict[str, Any]:
        found = [
            {"class": one.name, "index": one.index, "share": one.share, "confidence": one.confidence}
            for one in answer.findings
        ]
        png = encode_mask(answer.mask, np.asarray(self.answerer.palette))
        height, width = answer.mask.shape
        mask = base64.b64encode(png).decode("ascii")
        return {"height": height, "width": width, "classes": found, "mask": mask}


def _bytes(row: dict[str, Any]) -> bytes:
    picture, path = row.get("picture"), row.get("path")
    if isinstance(picture, str) and picture:
        try:
            return base64.b64decode(picture.rpartition(",")[2], validate=True)
        except binascii.Error as error:
            raise UserError(f"column picture is not base64 ({error}); send base64 of the picture file") from error
    if not isinstance(path, str) or not path:
        raise UserError("a row has neither picture (base64 of the file) nor path; send one of them")
    root = os.environ.get(ROOT)
    if root is None:
        raise UserError(f"this server reads no paths; start it with {ROOT}=FOLDER, or send column picture (base64)")
    where = (Path(root) / path).resolve()
    if not where.is_relative_to(Path(root).resolve()) or not where.is_file():
        raise UserError(f"{path}: no such picture below {ROOT}; correct the path")
    return where.read_bytes()


set_model(Segmentation())
