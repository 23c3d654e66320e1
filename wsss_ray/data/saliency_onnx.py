# SPDX-License-Identifier: Apache-2.0
"""Saliency by a trained network as ONNX, run by onnxruntime on the CPU: ISNet, U2-Net, or one of the user's own.

What a network expects of an image is in ``PRESETS``. Its map is scaled up to the image and then from its smallest to
its largest value to [0, 1], as the code of both papers does: every image then has something salient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BeforeValidator, PositiveFloat, PositiveInt

from wsss_ray.config import Config, UserError
from wsss_ray.data.detector import Detector, stretch
from wsss_ray.data.options import FileOrName, read_options, split_list
from wsss_ray.data.source import read_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Types of inputs and outputs that are taken."""
CHECK_SIDE = 256
"""Side of the image a network is tried with where neither it nor a setting states one."""


@dataclass(frozen=True)
class Preset:
    """What a published network expects of an image."""

    weights: str
    """Name of its file in ``wsss weights``."""
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    white: Literal["255", "brightest"]


PRESETS = {
    "isnet": Preset("isnet_general_use", 1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "255"),
    "u2net": Preset("u2net", 320, IMAGENET_MEAN, IMAGENET_STD, "brightest"),
    "u2netp": Preset("u2netp", 320, IMAGENET_MEAN, IMAGENET_STD, "brightest"),
}
"""ISNet (Qin et al. 2022): ``Inference.py`` of xuebinqin/DIS. U2-Net (Qin et al. 2020): ``u2net_test.py`` and
``data_loader.py`` of xuebinqin/U-2-Net. The first output of each is its final map."""

Colour = tuple[float, float, float]
Deviation = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class OnnxSettings(Config):
    """What ``--set detector.KEY=VALUE`` takes; whatever is None is as the preset says."""

    network: Literal["isnet", "u2net", "u2netp"] = "isnet"
    """The preset, also for a file of one's own."""
    file: FileOrName | None = None
    """An ONNX file or URI, or a name of ``wsss weights list``."""
    side: PositiveInt | None = None
    """Side in pixels of the square the image is scaled to; where the network states its own, that one."""
    mean: Annotated[Colour | None, BeforeValidator(split_list)] = None
    """Of red, green and blue, subtracted from values in [0, 1]."""
    std: Annotated[Deviation | None, BeforeValidator(split_list)] = None
    white: Literal["255", "brightest"] | None = None
    """What becomes 1: the value 255, or the brightest value of each image."""
    output: str | None = None
    """Name of the output that is the map; default: the first."""


def load_onnxruntime() -> ModuleType:
    """onnxruntime; UserError says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("the saliency detector onnx needs onnxruntime: pip install 'wsss-ray[saliency]'") from error
    module: ModuleType = onnxruntime
    return module


def open_onnx(**options: Any) -> Detector:
    """A network that was tried on one image, ready to be sent to workers; UserError names what is wrong with it."""
    settings = read_options("onnx", OnnxSettings, options, "saliency detector")
    library = f"onnxruntime {load_onnxruntime().__version__}"
    given = settings.model_dump(include={"side", "mean", "std", "white"}, exclude_none=True)
    expects = replace(PRESETS[settings.network], **given)
    name, data = _read_network(settings.file or expects.weights)
    network = SalientNetwork(name, data, expects, settings.side is not None, settings.output)
    height, width = network.check()
    made = {
        "library": library,
        "network": Path(name).name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": [height, width],
        "mean": list(expects.mean),
        "std": list(expects.std),
        "white": expects.white,
        "output": network.output_name,
    }
    return Detector(replace(network), made)


def _read_network(where: str) -> tuple[str, bytes]:
    """Name and bytes of an ONNX file; one of ``wsss weights`` has to be the published one."""
    if "://" in where:
        return where, read_file(where, "network")
    from wsss_ray.nets.weight_registry import WEIGHTS
    from wsss_ray.nets.weight_store import check_weights, locate_weights

    path = locate_weights(where)
    if where in WEIGHTS and (state := check_weights(where)).verdict == "damaged":
        raise UserError(state.message)
    return str(path), read_file(str(path), "network")


@dataclass(frozen=True)
class SalientNetwork:
    """An ONNX network as a detector; its session is made once in every process that uses it."""

    name: str
    """The file, for messages."""
    data: bytes
    expects: Preset
    insists: bool
    """Whether ``expects.side`` is the user's own, so that a network of another one is refused."""
    output: str | None
    """Name of the output that is the map; None: the first."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key in self.__dataclass_fields__}

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1].

        Raises UserError where the network gives no map, or values that are no numbers.
        """
        height, width = self.size
        scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.float32)
        white = 255.0 if self.expects.white == "255" else max(1.0, float(scaled.max()))
        values = (scaled / white - np.array(self.expects.mean)) / np.array(self.expects.std)
        batch = np.ascontiguousarray(values.transpose(2, 0, 1)[None], FLOATS[self._input.type])
        try:
            (given,) = self._session.run([self.output_name], {self._input.name: batch})
        except Exception as error:  # whatever an operator of the network refuses
            raise UserError(f"{self.name}: cannot be run on 1 x 3 x {height} x {width} ({_say(error)})") from error
        found = self._take_map(np.asarray(given))
        full = Image.fromarray(found).resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)
        return stretch(np.asarray(full, np.float32))

    def check(self) -> tuple[int, int]:
        """Try the network on noise; returns the (height, width) it runs at. UserError says what is wrong."""
        self(np.random.default_rng(0).integers(0, 256, (CHECK_SIDE, CHECK_SIDE, 3), np.uint8))
        return self.size

    @cached_property
    def _session(self) -> Any:
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        # One thread: as many workers as cores run at once, and no map depends on their number.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            return runtime.InferenceSession(self.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has one class of error for each way to fail
            raise UserError(
                f"{self.name}: not an ONNX network that onnxruntime {runtime.__version__} can run ({_say(error)})"
            ) from error

    @cached_property
    def _input(self) -> Any:
        """The one input; UserError where it takes no (1, 3, H, W) of floats."""
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise UserError(f"{self.name}: has {len(inputs)} inputs ({names}); give a network of one image")
        (only,) = inputs
        shape = list(only.shape)
        # A length that is left open is None or a name.
        fits = len(shape) == 4 and shape[0] in (1, None, str(shape[0])) and shape[1] in (3, None, str(shape[1]))
        if only.type not in FLOATS or not fits:
            raise UserError(
                f"{self.name}: takes {only.type} of {_show(shape)}; give a network that takes floats of 1 x 3 x H x W"
            )
        return only

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) the image is scaled to."""
        side = self.expects.side
        height, width = (length if isinstance(length, int) else side for length in self._input.shape[2:])
        if self.insists and (height, width) != (side, side):
            raise UserError(f"{self.name}: takes images of {height} x {width} only; leave out detector.side={side}")
        return height, width

    @cached_property
    def output_name(self) -> str:
        """The output that is the map; UserError where there is none of floats."""
        outputs = self._session.get_outputs()
        floats = [one.name for one in outputs if one.type in FLOATS]
        if not floats:
            kinds = ", ".join(f"{one.name} {one.type}" for one in outputs)
            raise UserError(f"{self.name}: no output of floats ({kinds}); give a network whose output is a map")
        if self.output is not None and self.output not in floats:
            raise UserError(f"{self.name}: no output {self.output!r} of floats; known: {', '.join(floats)}")
        return self.output or str(floats[0])

    def _take_map(self, given: np.ndarray) -> np.ndarray:
        """(1, 1, h, w), (1, h, w) or (h, w) -> (h, w) float32."""
        if given.ndim < 2 or given.shape[:-2] != (1,) * (given.ndim - 2) or min(given.shape[-2:]) < 2:
            raise UserError(
                f"{self.name}: output {self.output_name!r} is {_show(given.shape)}, not one map; "
                "choose another by detector.output"
            )
        if not np.isfinite(given).all():
            raise UserError(f"{self.name}: output {self.output_name!r} holds values that are no numbers")
        found: np.ndarray = given.reshape(given.shape[-2:]).astype(np.float32)
        return found


def _show(shape: Sequence[Any]) -> str:
    return " x ".join("?" if length is None else str(length) for length in shape) or "no dimensions"


def _say(error: Exception) -> str:
    """The first line of an error, cut short."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
