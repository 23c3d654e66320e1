# SPDX-License-Identifier: Apache-2.0
"""``wsss.load``: the trained network of a run, asked about any image."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from wsss_ray.api.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from wsss_ray.serve.model import ClassArea, Predictor
    from wsss_ray.serve.reading import AnyImage


@dataclass(frozen=True, repr=False)
class Answer:
    """What a model says of one image."""

    image: np.ndarray
    """(H, W, 3) uint8, as the model was given it."""
    mask: np.ndarray
    """(H, W) uint8, the image's own size; 0 is background, 1 the first class."""
    classes: tuple[ClassArea, ...]
    """The classes in the mask, background included: index, name, area fraction, confidence."""
    palette: np.ndarray
    """(colours, 3) uint8."""

    def plot(self) -> Image:
        """The image beside its mask in class colours, under a line that names the classes."""
        from wsss_ray.reports.drawing import Panel, draw_sheet, overlay_mask

        tiles = [("image", self.image), ("prediction", overlay_mask(self.image, self.mask, self.palette))]
        return draw_sheet([Panel(self._found, tiles)], height=240)

    @property
    def _found(self) -> str:
        found = [f"{one.name} {100 * one.area_fraction:.0f} %" for one in self.classes if one.index]
        return ", ".join(found) or "background alone"

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Answer for {width} x {height}: {self._found}"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()


class TrainedModel:
    """A network with the test-time protocol of its run. ``wsss.load`` makes one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes; mask value 1 is the first."""
        return self._predictor.model.classes

    @property
    def protocol(self) -> dict[str, Any]:
        """Scales, flips, class gate and CRF of its predictions."""
        return self._predictor.model.predict.model_dump(mode="json")

    @overload
    def predict(self, images: AnyImage) -> Answer: ...

    @overload
    def predict(self, images: list[AnyImage] | tuple[AnyImage, ...]) -> list[Answer]: ...

    @overload
    def predict(self, images: Iterator[AnyImage]) -> Iterator[Answer]: ...

    def predict(self, images: Any) -> Answer | list[Answer] | Iterator[Answer]:
        """The answer for one image, a list of answers for a list, and for a generator a generator, which reads on as it
        is asked.

        An image is a path or URI, the bytes of a file, a PIL image, or an array (H, W, 3) or (H, W) uint8. Raises
        UserError for one that cannot be read, naming it by its path or its place.

            model.predict("dog.jpg").classes
            for answer in model.predict(path for path in Path("photos").glob("*.jpg")): ...
        """
        from wsss_ray.serve.reading import is_image

        if is_image(images):
            return next(self._predict_all([images], "image"))
        answers = self._predict_all(images)
        return list(answers) if isinstance(images, (list, tuple)) else answers

    def _predict_all(self, images: Iterable[Any], name: str | None = None) -> Iterator[Answer]:
        """Answers in order, a batch at a time; ``name`` stands in errors for the place of an image."""
        from wsss_ray.serve.reading import read_image

        numbered = enumerate(images)
        while batch := list(itertools.islice(numbered, self._predictor.batch_size)):
            pixels = [read_image(one, name or f"image {number}", self._predictor.grey) for number, one in batch]
            for image, found in zip(pixels, self._predictor.predict_images(pixels), strict=True):
                yield Answer(image, found.mask, found.classes, self._predictor.palette)

    def export(self, to: str | os.PathLike[str]) -> str:
        """Write the network as an ONNX model: normalised images (N, 3, H, W) in, probabilities (N, K, H, W) out. Says
        what was written.

        Classes, normalisation and the test-time protocol, which is not inside, stand in its metadata
        (``serve/onnx_model.py``). Needs the extra ``onnx``; UserError without it.
        """
        from wsss_ray.serve.onnx_model import export_onnx

        return export_onnx(self._predictor, os.fspath(to))

    def __repr__(self) -> str:
        spec = self._predictor.spec
        names = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
        return f"Model on {spec.net.backbone}: {len(self.classes)} classes ({names})"


def load(where: Run | str | os.PathLike[str], **settings: Any) -> TrainedModel:
    """The trained network of a run: a ``Run``, its folder, a ``train`` artifact, or a folder with ``model_card.json``.

    It predicts by the run's own test-time protocol, changed by ``settings``: ``crf=None``, ``scales=[1.0]``,
    ``flip=False``. Raises UserError where nothing there predicts masks, and for unknown settings.

        model = wsss.load("results/runs/cam-1a2b3c4d", crf=None)
    """
    from wsss_ray.serve.model import Predictor, open_model

    place = where.folder if isinstance(where, Run) else os.fspath(where)
    return TrainedModel(Predictor(open_model(place, [f"{key}={json.dumps(one)}" for key, one in settings.items()])))
