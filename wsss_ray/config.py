# SPDX-License-Identifier: Apache-2.0
"""The typed, frozen settings every part of a recipe is made of, what each of them changes, and the one error a user
sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

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


MOST = {
    "seed": 2**63 - 1,
    "epochs": 100_000,
    "max_steps": 10**9,
    "batch_size": 100_000,
    "crop": 20_000,
    "size": 20_000,
    "long_side": 20_000,
    "walk_side": 20_000,
    "canvas": 20_000,
    "iterations": 10_000,
    "num_iterations": 10_000,
    "exp_times": 64,
    "thresholds": 10_000,
    "stride": 1024,
    "num_train": 10**7,
    "num_val": 10**7,
    "train_workers": 10_000,
    "inference_workers": 100_000,
    "loader_threads": 1000,
    "count": 1000,
    "checkpoint_minutes": 100_000,
    "scales": 16,
    "nodata": math.inf,
    "grey_range": math.inf,
}
"""The largest value of settings by their names, whatever part of a recipe they stand in."""
MOST_OTHERS = 10**9
"""The largest absolute value of any other number."""
LONGEST_NAME = 100
"""Characters of the name of a recipe, which is part of a folder's name."""


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

    @model_validator(mode="before")
    @classmethod
    def _refuse_words_as_numbers(cls, value: Any) -> Any:
        """``crop=true`` is no number, though Python counts with it."""
        for name, given in value.items() if isinstance(value, dict) else ():
            ones = (
                given.values() if isinstance(given, dict) else given if isinstance(given, (list, tuple)) else (given,)
            )
            if name in cls.model_fields and any(isinstance(one, bool) for one in ones) and _is_numeric(cls, name):
                raise ValueError(f"{name}: true and false are no numbers; give a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _limit_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """No number is larger than makes sense, in tuples neither."""
        most = MOST.get(str(info.field_name), MOST_OTHERS)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, (int, float)) and most < abs(one) != math.inf:  # who takes infinity says so
                raise ValueError(f"too large; give at most {most:,}".replace(",", "_"))
        return value


@cache
def _is_numeric(config: type[Config], name: str) -> bool:
    """Whether a setting takes numbers, alone or in lists, and neither words of logic nor anything at all."""
    waiting, found = [config.model_fields[name].annotation], set[Any]()
    while waiting:
        part = waiting.pop()
        inner = get_args(part)
        waiting += inner
        found.add(type(None) if inner else part)
    return bool(found & {int, float}) and not found & {bool, Any, object}


def check_name(name: str) -> str:
    """A name that can be part of a folder's name, as it is; ValueError for another one."""
    if not name.strip() or len(name) > LONGEST_NAME:
        raise ValueError(f"give a name of 1 to {LONGEST_NAME} characters")
    if name.startswith(".") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ValueError("a name begins with no dot and holds no slash and no control character")
    return name


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
