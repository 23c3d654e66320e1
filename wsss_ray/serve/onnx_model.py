# SPDX-License-Identifier: Apache-2.0
"""The network as an ONNX model, for programs without PyTorch; what a caller must know stands in its metadata."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.contracts import Segments
from wsss_ray.nets.same_conv import SameConv2d
from wsss_ray.serve.model import Predictor

OPSET = 20
IMAGES, SCORES = "images", "scores"
"""Names of its input and its output."""
SIDE = 320
"""Height and width of the images of a network that is exported for one size alone."""


class FullSizeScores(nn.Module):
    """(N, 3, H, W) normalised images -> (N, K, H, W) probabilities, background first: one view, as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The network's scores, enlarged to the images' size."""
        scores = cast(Segments, self.network).scores(images)
        return nn.functional.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def describe_network(predictor: Predictor) -> dict[str, Any]:
    """What stands in the metadata, each as JSON.

    ``classes`` (background first), ``palette``, ``normalize`` (``data.colour.NormalizeConfig.describe``) and
    ``protocol``: the scales, flips, gate and CRF the model was tested with, none of which is inside it.
    """
    model = predictor.model
    return {
        "classes": list(predictor.names),
        "palette": [list(colour) for colour in model.palette[: len(predictor.names)]],
        "normalize": predictor.spec.net.normalize.describe(),
        "protocol": model.predict.model_dump(mode="json"),
    }


def export_onnx(predictor: Predictor, to: str | Path) -> str:
    """Write the network to the file ``to``; says what was written.

    Any number of images of any one size. A network whose padding depends on the size of its images (EfficientNet's
    SAME) is exported for ``SIDE`` x ``SIDE`` alone: the exporter would carry the size of every layer as a formula, and
    not come to its end. Needs the extra ``onnx``; UserError without it, and where the exporter knows
    no ONNX for a part of the network.
    """
    try:
        import onnxscript  # noqa: F401 (the exporter imports it)
    except ImportError:
        raise UserError("export to ONNX needs onnxscript; pip install 'wsss-ray[onnx]'") from None
    network = FullSizeScores(copy.deepcopy(predictor.trained.network).cpu().float()).eval()
    one_size = any(isinstance(part, SameConv2d) for part in network.modules())
    height, width = (SIDE, SIDE) if one_size else (97, 128)
    dynamic = dict.fromkeys((0,) if one_size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it names what torchvision would add
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                network,
                (torch.zeros(2, 3, height, width),),
                input_names=[IMAGES],
                output_names=[SCORES],
                dynamic_shapes={IMAGES: dynamic},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"{predictor.model.folder}: cannot be exported to ONNX ({reason}); export it as an MLflow model instead"
        ) from error
    finally:
        logger.setLevel(level)
    program = cast(torch.onnx.ONNXProgram, made)  # what dynamo=True makes
    for key, value in describe_network(predictor).items():
        program.model.metadata_props[key] = json.dumps(value)
    where = storage.make_absolute(str(to))
    data = program.model_proto.SerializeToString()
    storage.write_bytes(where, data)
    return f"{where}: ONNX model, {len(data) / 1e6:.1f} MB, opset {OPSET}, {len(predictor.names)} labels"
