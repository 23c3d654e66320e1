# SPDX-License-Identifier: Apache-2.0
"""The typed, frozen settings every part of a recipe is made of, what each of them changes, and the one error a user
sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Result = Literal["weights", "maps", "masks", "scores", "nothing"]
"""What a step leaves behind: trained weights and their history, class maps, masks, scores; or no result at all."""

# Choices that commands offer stand here, since the code they choose imports torch.
Scale = Literal["toy", "small", "paper"]
"""How large a recipe is run."""
Precision = Literal["fp32", "bf16"]
"""``bf16`` is autocast where the device computes in it, and fp32 elsewhere."""
Profile = Literal["paper", "released"]
"""Which side is taken where a paper and its authors' code differ."""
Search = Literal["grid", "random", "tpe"]
"""How the points of a sweep are chosen."""
Exported = Literal["masks", "predictions"]
"""What of a run is exported: pseudo masks, or predictions on val."""
ExportForm = Literal["png", "coco", "polygons", "mlflow", "onnx"]
"""Palette PNGs, COCO's RLE, polygons of annotation tools, or the network as a model to serve."""
LabelSource = Literal["xml", "npy", "masks"]
"""Where the image labels of VOC come from."""
MaskView = Literal["shown", "stored"]
"""Whether masks lie on an image as viewers show it, turned by EXIF, or on its stored pixels."""


class UserError(Exception):
    """Bad input: one clear line that names the file or key and the fix; the CLI exits with code 2."""


@dataclass(frozen=True)
class Changes:
    """The first result that a setting changes: ``Annotated[float, Changes("maps")]``.

    Weights: it acts in training. Maps: it acts only where maps are read from trained weights. Masks: only where masks
    are made. Scores: only where these are scored. Nothing: no result depends on it.
    """

    what: Result


class Config(BaseModel):
    """Base of all settings: unknown keys and wrong types are refused, values never change after validation.

    Where text is wanted a number is its digits: a folder or a class may be called 2024.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


def read_changes(config: type[Config], name: str) -> Result | None:
    """What the field ``name`` of a settings class changes; None where the field itself does not say."""
    declared = [entry for entry in config.model_fields[name].metadata if isinstance(entry, Changes)]
    return declared[-1].what if declared else None


def select(config: Config, *results: Result) -> dict[str, Any]:
    """The settings that change one of ``results`` first, as plain values; nested settings give their own.

    Raises TypeError for a field that does not declare what it changes, naming it.
    """
    return dict(_selected(config, results))


def _selected(config: Config, results: tuple[Result, ...]) -> Iterator[tuple[str, Any]]:
    plain: dict[str, Any] | None = None
    for name in type(config).model_fields:
        declared, value = read_changes(type(config), name), getattr(config, name)
        if declared is None and isinstance(value, Config):
            inner = select(value, *results)
            if inner:
                yield name, inner
            continue
        if declared is None:
            raise TypeError(f"{type(config).__name__}.{name}: say what it changes, Annotated[..., Changes(...)]")
        if declared in results:
            plain = config.model_dump(mode="json") if plain is None else plain
            yield name, plain[name]


def list_keys(config: Config, prefix: str = "") -> Iterator[str]:
    """The keys of all settings, nested ones as ``a.b``."""
    for name in type(config).model_fields:
        yield f"{prefix}{name}"
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from list_keys(value, f"{prefix}{name}.")


def suggest(given: str, known: Iterable[str]) -> str:
    """A question, "did you mean NAME?", for the known name that is most like ``given``; empty where none is."""
    close = get_close_matches(given, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""
