# SPDX-License-Identifier: Apache-2.0
"""Tiny ONNX networks that find what is red, and some that are no salient-object networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

REDNESS = np.array([2.0, -1.0, -1.0], np.float32).reshape(1, 3, 1, 1)


def write_network(
    path: Path, shape: tuple[Any, ...] = (1, 3, "height", "width"), kind: str = "float32", **parts: Any
) -> Path:
    """A network whose first output is a 3 x 3 mean of 2 R - G - B; ``parts`` replace parts of it.

    ``inputs``: how many it has; ``weight``: of the convolution, (C, 3, 1, 1); ``output``: "float" or "index" (of the
    reddest channel, as integers); ``tail``: operators laid over the map, such as ("Sigmoid",).
    """
    pytest.importorskip("onnxruntime", reason="pip install 'wsss-ray[saliency]'")
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    element = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "uint8": onnx.TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info("image", element[kind], shape)]
    inputs += [
        helper.make_tensor_value_info(f"more_{n}", element[kind], shape) for n in range(1, parts.get("inputs", 1))
    ]
    weight = parts.get("weight", REDNESS).astype(kind if kind != "uint8" else "float32")
    if parts.get("output") == "index":
        nodes = [helper.make_node("ArgMax", ["image"], ["index"], axis=1, keepdims=1)]
        outputs = [helper.make_tensor_value_info("index", onnx.TensorProto.INT64, None)]
    else:
        first = "image"
        nodes = []
        if kind == "uint8":
            nodes, first = [helper.make_node("Cast", ["image"], ["cast"], to=onnx.TensorProto.FLOAT)], "cast"
        nodes += [
            helper.make_node("Conv", [first, "weight"], ["red"]),
            helper.make_node("AveragePool", ["red"], ["map_0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ]
        tail = parts.get("tail", ())
        nodes += [helper.make_node(name, [f"map_{n}"], [f"map_{n + 1}"]) for n, name in enumerate(tail)]
        nodes += [helper.make_node("Neg", [f"map_{len(tail)}"], ["inverse"])]
        real = element["float32" if kind == "uint8" else kind]
        outputs = [helper.make_tensor_value_info(name, real, None) for name in (f"map_{len(tail)}", "inverse")]
    graph = helper.make_graph(nodes, "redness", inputs, outputs, [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path
