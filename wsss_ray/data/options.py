# SPDX-License-Identifier: Apache-2.0
"""Options of sources: what a person types is checked and converted once, by the type of each option."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BeforeValidator, PositiveInt, TypeAdapter, ValidationError, model_validator

from wsss_ray import storage
from wsss_ray.config import Config, MaskView, UserError
from wsss_ray.data.checks import Reading
from wsss_ray.data.grey import Grey
from wsss_ray.data.image import MAX_PIXELS
from wsss_ray.data.masks import Find, MaskTable, find_colour_list, name_index, parse_values, read_colour_list

Settings = TypeVar("Settings", bound=Config)


def split_list(value: Any) -> Any:
    """``[a, b]`` or ``a,b`` as typed -> a list of texts; anything else as it is."""
    if isinstance(value, str):
        inner = value.strip()
        if inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        return [part.strip().strip("\"'") for part in inner.split(",") if part.strip()]
    return value


def _split_range(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = re.split(r"[:,]", value.strip("[]() ")) if ":" not in value else value.strip("[]() ").split(":")
    if len(parts) != 2:
        raise ValueError("write LOW:HIGH, the values that are black and white, for example 0:4095")
    return [part.strip() for part in parts]


def _split_pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = [part.partition(":") for part in value.split(",") if part.strip()]
    bad = next((key for key, colon, name in pairs if not colon or not name.strip()), None)
    if bad is not None:
        raise ValueError(f"{bad!r} has no meaning; write VALUE:CLASS,VALUE:CLASS")
    return {key.strip(): name.strip() for key, _, name in pairs}


NO_FOLDER = "none"
"""What is given in place of a folder to say that there is none."""


def _make_absolute(value: Any) -> Any:
    if not isinstance(value, (str, Path)):
        return value
    return NO_FOLDER if str(value).lower() == NO_FOLDER else storage.make_absolute(str(value))


FilePath = Annotated[str, BeforeValidator(_make_absolute)]
"""Of a file or folder; made absolute, since workers have another working folder."""
FileOrName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""Of a file that the driver reads, or the name of one; as it is given."""
Words = Annotated[tuple[str, ...], BeforeValidator(split_list)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(split_list)]
Pair = Annotated[tuple[float, float], BeforeValidator(_split_range)]
Meanings = Annotated[dict[str, str], BeforeValidator(_split_pairs)]


class FileOptions(Config):
    """How the files of a data set are read; every source of files takes these."""

    model_config = {"allow_inf_nan": True}

    saliency: FilePath | None = None
    """Folder of saliency maps named like the images."""
    classes: Words = ()
    """The classes, in the order of the indices of masks."""
    mask_values: Meanings = {}
    """What values 0..255 or colours #rrggbb of masks mean: 255:cat or 1:dog,2:cat,3:ignore."""
    masks_by: Literal["colour", "index"] = "colour"
    """Whether the colours of palette masks decide, or the stored indices."""
    masks_as: MaskView | None = None
    """How masks lie on images that EXIF turns, where their size does not tell."""
    grey_range: Pair | None = None
    """Values that are black and white in images of more than 8 bits."""
    nodata: Numbers = ()
    """Values (nan, inf, -9999) that mark missing pixels; they become black."""
    encoding: str | None = None
    """Encoding of text files without a byte order mark."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Images of more are refused."""

    @model_validator(mode="after")
    def _check_range(self) -> FileOptions:
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise ValueError("grey_range goes from black to white, LOW:HIGH with LOW below HIGH, for example 0:4095")
        return self


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, as typed, into {key: value}; nothing is converted here."""
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {setting}: write KEY=VALUE")
        options[key.strip()] = value
    return options


def take_part(settings: Mapping[str, str], part: str) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of a part, ``part.key`` without its prefix, and all the others."""
    inner = {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
    return inner, {key: value for key, value in settings.items() if not key.startswith(f"{part}.")}


def read_options(source: str, kind: type[Settings], options: Mapping[str, Any], part: str = "source") -> Settings:
    """Options of a source, or of another ``part``, as its settings.

    UserError names the first one that is unknown or of a wrong type.
    """
    unknown = sorted(options.keys() - kind.model_fields.keys())
    if unknown:
        raise UserError(_refuse(part, source, unknown[0], kind.model_fields))
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(f"{source}: {_describe(error)}") from None


def _refuse(part: str, name: str, option: str, known: Iterable[str]) -> str:
    return f"{part} {name!r} has no option {option!r}; known: {', '.join(sorted(known)) or 'none'}"


def convert_options(
    source: str, opener: Callable[..., Any], options: Mapping[str, Any], part: str = "source"
) -> dict[str, Any]:
    """Options for an opener of keyword-only parameters, converted by their types where they were typed as text.

    An opener that takes ``**options`` gets them as they are.
    """
    parameters = inspect.signature(opener).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return dict(options)
    known = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise UserError(_refuse(part, source, unknown[0], known))
    hints = get_type_hints(opener)
    converted = {}
    for name, value in options.items():
        try:
            converted[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{source}: {_describe(error, name)}") from None
    return converted


def _describe(error: ValidationError, name: str = "") -> str:
    first = error.errors()[0]
    key = name or (str(first["loc"][0]) if first["loc"] else "")
    what = first["msg"].removeprefix("Value error, ")
    if first["type"].startswith("literal_error"):
        what = "known: " + first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    value = first["input"]
    typed = f" {value!r}" if isinstance(value, (str, int, float)) else ""
    comma = ""
    if first["type"] == "float_parsing" and isinstance(value, str) and "," in value:
        comma = f"; write {value.replace(',', '.')}"
    return f"{key}{typed}: {what}{comma}" if key else what


def make_reading(
    options: FileOptions, num_classes: int, find: Find, folders: Sequence[Path | None] = (), ordered: bool = True
) -> Reading:
    """The reading that options and a list of colours beside the masks state."""
    values, colours = parse_values(options.mask_values, find, MaskTable(num_classes).ignore)
    listed = None if values or colours or options.masks_by == "index" else find_colour_list(*folders)
    if listed is not None:
        colours = {
            colour: name_index(name, find, MaskTable(num_classes).ignore, str(listed))
            for name, colour in read_colour_list(listed, options.encoding)
        }
    table = MaskTable(
        num_classes, values=values, colours=colours, by_index=options.masks_by == "index", ordered=ordered
    )
    grey = Grey(options.grey_range, {}, options.nodata)
    return Reading(table, options.masks_as, None, grey, max_pixels=options.max_pixels)


def describe_reading(options: FileOptions) -> dict[str, Any]:
    """What the user stated about how files are read, for the manifest."""
    given = options.model_dump(mode="json", exclude_defaults=True)
    stated = {
        key: given[key] for key in FileOptions.model_fields if key in given and key not in ("saliency", "max_pixels")
    }
    return {"reading": stated} if stated else {}
