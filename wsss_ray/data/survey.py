# SPDX-License-Identifier: Apache-2.0
"""One look at the headers of a whole data set before it is read, which settles what one file alone cannot tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from wsss_ray.config import MaskView, UserError
from wsss_ray.data import image as pic
from wsss_ray.data.checks import Inspection, Problem, Reading, ReadsFiles, Tally, inspect_item
from wsss_ray.data.deep import has_deep_channels, is_deep
from wsss_ray.data.files import short_list
from wsss_ray.data.grey import GREY, Range, dump_grey, grey_kind, join_ranges, read_range
from wsss_ray.data.source import Item, Source, read_file

_TWELVE_BITS = 4095
_TOPS = (1.0, 255.0, 65535.0)
"""Values that may mean 1 in saliency maps."""


@dataclass
class _Turned:
    """How masks lie on images that EXIF turns."""

    stored: int = 0
    shown: int = 0
    open: list[str] = field(default_factory=list)
    """Images whose mask has one size both ways."""

    def count(self, image_id: str, found: tuple[int, int], size: tuple[int, int], turn: int) -> None:
        if turn == 1:
            return
        stored = (size[1], size[0]) if turn in (5, 6, 7, 8) else size
        if stored == size:
            self.open.append(image_id)
        elif found == stored:
            self.stored += 1
        elif found == size:
            self.shown += 1

    def settle(self, kind: str, option: str | None) -> tuple[MaskView | None, list[str]]:
        """How all of them are read, and what a person should know."""
        if not self.open:
            return None, []
        example = short_list(self.open)
        fix = f"; give --set {option}=stored or --set {option}=shown" if option else ""
        if self.stored and self.shown:
            raise UserError(
                f"{self.stored} {kind}s lie on the stored pixels of images that EXIF turns, {self.shown} on the shown "
                f"ones, and the size of {len(self.open)} others does not tell ({example}){fix or '; make them again'}"
            )
        if self.stored:
            count = self.stored + len(self.open)
            return "stored", [
                f"{count} {kind}s were drawn on the stored pixels of images that EXIF turns, and are turned"
            ]
        if not self.shown and option:
            return None, [
                f"{len(self.open)} images are turned by EXIF and the size of their {kind} does not tell how it lies "
                f"({example}): read as shown by viewers; if a tool that ignores EXIF drew them, give "
                f"--set {option}=stored"
            ]
        return None, []


@dataclass
class Survey:
    """What the headers of a data set show."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks: _Turned = field(default_factory=_Turned)
    saliency: _Turned = field(default_factory=_Turned)
    ranges: dict[str, Range] = field(default_factory=dict)
    num_deep: Counter[str] = field(default_factory=Counter)


def survey_source(source: Source) -> tuple[Source, list[Problem]]:
    """The source with its reading settled and its notes complete, and everything its headers show to be wrong.

    A source that draws its images, or reads them in its own way, is returned as it is.
    """
    if not isinstance(source.load, ReadsFiles):
        return source, []
    reading = source.load.reading
    survey, tally = Survey(), Tally()
    for item in source.items:
        survey.problems += tally.count(item)
        seen = inspect_item(item, reading, fast=True)
        survey.problems += seen.problems
        _look_at(item, seen, survey)
    survey.problems += tally.finish(source)
    settled = _settle(reading, survey, source)
    made = replace(source, load=source.load.settle(settled), notes=[*source.notes, *survey.notes])
    if survey.num_deep or settled.grey.given is not None:
        made.options = {**made.options, GREY: dump_grey(settled.grey)}
    return made, survey.problems


def _look_at(item: Item, seen: Inspection, survey: Survey) -> None:
    data = seen.row["image"]
    if data is None or seen.row["height"] is None:
        return
    header = pic.open_image(data, item.image_id)
    turn, size = pic.orientation(header), pic.shown_size(header)
    if is_deep(header) or has_deep_channels(header, data):
        kind, stated = grey_kind(header), read_range(header, data)
        survey.num_deep[kind] += 1
        joined = join_ranges(survey.ranges.get(kind), stated)
        if joined is not None:
            survey.ranges[kind] = joined
    if turn == 1:
        return
    mask = seen.row["mask"]
    if mask is not None:
        survey.masks.count(item.image_id, pic.shown_size(pic.open_image(mask, item.image_id)), size, turn)
    elif "size" in item.extra:
        survey.masks.count(item.image_id, item.extra["size"], size, turn)
    if seen.row["saliency"] is not None:
        found = pic.shown_size(pic.open_image(seen.row["saliency"], item.image_id))
        survey.saliency.count(item.image_id, found, size, turn)


def _settle(reading: Reading, survey: Survey, source: Source) -> Reading:
    masks_as, notes = (reading.masks_as, []) if reading.masks_as else survey.masks.settle("mask", "masks_as")
    survey.notes += notes
    saliency_as, notes = survey.saliency.settle("saliency map", None)
    survey.notes += notes
    top, note = find_saliency_top(source)
    survey.notes += [note] if note else []
    grey = replace(reading.grey, found=dict(survey.ranges))
    if survey.num_deep:
        survey.notes.append(_describe_grey(reading, survey))
    return replace(reading, masks_as=masks_as, saliency_as=saliency_as, saliency_top=top, grey=grey)


def _describe_grey(reading: Reading, survey: Survey) -> str:
    count = sum(survey.num_deep.values())
    if reading.grey.given is not None:
        low, high = reading.grey.given
        return f"{count} images of more than 8 bits: {low:g}..{high:g} became black to white (grey_range)"
    default = {"F": (0.0, 1.0)}
    ranges = [survey.ranges.get(kind) or default.get(kind) for kind in survey.num_deep]
    words = " and ".join(f"{found[0]:g}..{found[1]:g}" for found in ranges if found is not None)
    return f"{count} images of more than 8 bits: {words or 'values'} became black to white, as their files say"


def find_saliency_top(source: Source) -> tuple[float | None, str | None]:
    """The value that means 1 in all saliency maps of a source (1, 255 or 65535; None without maps), and a note where
    they hold little of it. UserError for 12 bits in 16.

    Maps are decoded only until one is bright, which the first one mostly is.
    """
    largest, deep, first = 0.0, False, ""
    for item in source.items:
        if item.saliency is None:
            continue
        name = item.saliency if isinstance(item.saliency, str) else item.image_id
        try:
            image = pic.load_image(read_file(item.saliency, "saliency map"), name, pic.MAX_PIXELS)
        except UserError:
            continue  # said where the file is read
        if image.mode not in ("L", "LA", "1") and not is_deep(image):
            return 255.0, None
        deep, first = deep or is_deep(image), first or name
        extrema = image.getextrema()
        largest = max(
            largest, *(float(np.max(pair)) for pair in (extrema if isinstance(extrema[0], tuple) else [extrema]))
        )
        if largest > (255 if not deep else 65535) / 2:
            break
    if largest == 0:
        return None, None
    if 255 < largest <= _TWELVE_BITS:
        raise UserError(
            f"{first}: no saliency map holds more than {largest:g} of 65535; save them in 8 bits, or scale them to the "
            "whole range of 16 bits"
        )
    top = next((top for top in _TOPS if largest <= top), _TOPS[-1])
    if top == 1:
        return top, "no saliency map holds more than 1: 1 was read as surely salient"
    if largest <= top / 2 and not (deep and top == 255):
        return top, f"no saliency map holds more than {largest:g} of {top:g}: nothing is read as surely salient"
    return top, None
