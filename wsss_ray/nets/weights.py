# SPDX-License-Identifier: Apache-2.0
"""Published weights: the one loader, which counts what matched and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.weight_files import read_weights
from wsss_ray.nets.weight_names import check_stride_style, is_counter, translate_names
from wsss_ray.nets.weight_store import check_weights, digest_weights, locate_weights

NUM_NAMED = 3
"""How many offending tensors an error names."""


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` did."""

    source: str
    path: Path
    digest: str
    """sha256 of the file, for the run's record."""
    num_matched: int
    leftovers: tuple[str, ...]
    """Names in the file that the backbone has no place for: classifiers and other heads."""

    def __str__(self) -> str:
        left = f"; not used: {', '.join(self.leftovers)}" if self.leftovers else ""
        return f"{self.source}: {self.num_matched} tensors matched{left}"


def load_weights(backbone: Backbone, source: str, folder: Path | None = None) -> LoadReport:
    """Fill every tensor of ``backbone`` from ``source``, a registry name (see ``WEIGHTS``) or a path.

    ``folder`` is where registry files lie (default: ``find_weights_folder()``). Errors: ``UserError`` where the file is
    absent or damaged, a tensor of the backbone is missing or of another shape, or the stride sits elsewhere
    (torchvision's ResNet in the Caffe variant); the backbone is unchanged then.
    """
    path = locate_weights(source, folder)
    state = check_weights(source, folder)
    if state.verdict == "damaged":
        raise UserError(state.message)
    wanted = {key: value for key, value in backbone.state_dict().items() if not is_counter(key)}
    found = translate_names(read_weights(path), wanted)
    check_stride_style(found, wanted, source)
    _check_fit(found, wanted, source, type(backbone).__name__)
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(found[key])
    leftovers = tuple(key for key in found if key not in wanted and not is_counter(key))
    return LoadReport(source, path, digest_weights(path), len(wanted), leftovers)


def _check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, kind: str) -> None:
    """Raise UserError where a tensor of the backbone, a ``kind``, is missing or of another shape."""
    missing = [key for key in wanted if key not in found]
    if missing:
        named = ", ".join(missing[:NUM_NAMED])
        raise UserError(
            f"{source}: lacks {len(missing)} of the {len(wanted)} tensors of {kind}, first {named}; "
            "use weights made for this backbone"
        )
    for key in wanted:
        if found[key].is_complex() or not _can_become(found[key], wanted[key].dtype):
            raise UserError(
                f"{source}: tensor {key!r} is of {_name_kind(found[key])}, which is no weight of {kind}; "
                "save it as float32"
            )
    wrong = [key for key in wanted if found[key].shape != wanted[key].shape]
    if wrong:
        named = ", ".join(f"{k} {tuple(found[k].shape)} not {tuple(wanted[k].shape)}" for k in wrong[:NUM_NAMED])
        raise UserError(f"{source}: {len(wrong)} tensors do not fit {kind}, first {named}; use weights made for it")


def _can_become(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch turns a tensor's values into those of another type: not those of packed or sparse ones."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return False
    try:
        tensor.flatten()[:1].to(dtype)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _name_kind(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind if tensor.layout == torch.strided else f"{kind}, {str(tensor.layout).removeprefix('torch.')}"
