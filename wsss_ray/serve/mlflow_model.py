# SPDX-License-Identifier: Apache-2.0
"""The MLflow model, as code that MLflow runs where it serves: images in, class areas and masks out.

``wsss_ray.tracking.save_model`` names this file; nothing imports it, since it hands its functions to MLflow.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data.image import decode_image, encode_mask, open_image
from wsss_ray.serve.guard import MEGABYTE, Limits, guard_server, read_limits
from wsss_ray.serve.model import Prediction, Predictor, open_model
from wsss_ray.tracking import set_served_model

ROOT = "WSSS_SERVE_ROOT"
"""The folder below which a served model may read the files of column ``path``; without it none are read."""


def load_model(folder: str) -> Predictor:
    """The model in ``folder``, once, when the server starts."""
    guard_server()
    return Predictor(open_model(folder))


def predict_rows(predictor: Predictor, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``image`` (base64 of a JPEG, PNG, ...) or ``path`` -> {"height", "width", "classes": [{"class",
    "index", "area_fraction", "confidence"}], "mask": base64 of a palette PNG} each.

    UserError names the row of a bad image, and says where there are too many rows or pixels (``Limits``).
    """
    limits = read_limits()
    if not rows or len(rows) > limits.rows:
        raise UserError(f"{len(rows)} rows; send 1 to {limits.rows} (WSSS_SERVE_MAX_ROWS)")
    files = [_read_row(row, limits) for row in rows]
    _check_pixels(files, limits)
    images = [decode_image(data, f"row {number}", predictor.grey) for number, data in enumerate(files)]
    return [_describe(one, np.asarray(predictor.palette)) for one in predictor.predict_images(images)]


def _check_pixels(files: list[bytes], limits: Limits) -> None:
    """UserError where the images have too many pixels together, by their headers alone."""
    total = 0
    for number, data in enumerate(files):
        width, height = open_image(data, f"row {number}").size
        total += width * height
        if total > limits.pixels:
            raise UserError(
                f"row {number}: {width} x {height}, and {limits.pixels} pixels of all rows are the limit "
                "(WSSS_SERVE_MAX_PIXELS); scale it down or send fewer"
            )


def _describe(found: Prediction, palette: np.ndarray) -> dict[str, Any]:
    classes = [
        {"class": one.name, "index": one.index, "area_fraction": one.area_fraction, "confidence": one.confidence}
        for one in found.classes
    ]
    mask = base64.b64encode(encode_mask(found.mask, palette)).decode("ascii")
    height, width = found.mask.shape
    return {"height": height, "width": width, "classes": classes, "mask": mask}


def _read_row(row: dict[str, Any], limits: Limits) -> bytes:
    image, path = row.get("image"), row.get("path")
    if isinstance(image, str) and image:
        try:
            return base64.b64decode(image.rpartition(",")[2], validate=True)
        except binascii.Error as error:
            raise UserError(f"column image is not base64 ({error}); send base64 of the image file") from error
    if not isinstance(path, str) or not path:
        raise UserError("a row has neither image (base64 of the file) nor path; send one of them")
    root = os.environ.get(ROOT)
    if root is None:
        raise UserError(f"this server reads no paths; start it with {ROOT}=FOLDER, or send column image (base64)")
    where = (Path(root) / path).resolve()
    if not where.is_relative_to(Path(root).resolve()) or not where.is_file():
        raise UserError(f"{path}: no such image below {ROOT}; correct the path")
    if where.stat().st_size > limits.megabytes * MEGABYTE:
        raise UserError(f"{path}: above {limits.megabytes} MB (WSSS_SERVE_MAX_MB); make it smaller")
    return where.read_bytes()


set_served_model(load_model, predict_rows)
