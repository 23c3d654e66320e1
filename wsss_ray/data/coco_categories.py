# SPDX-License-Identifier: Apache-2.0
"""Categories of COCO's format as classes: COCO's own 80, or those that other data lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from wsss_ray.config import UserError
from wsss_ray.data.coco_index import Category, first_of_unknown, list_categories
from wsss_ray.data.coco_layout import Part
from wsss_ray.data.names import BACKGROUND, list_classes, name_key

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
UNUSED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""Category ids below 90 that COCO never used."""
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in UNUSED)
"""COCO's id of every class: the mask index is the rank among them, 1-based."""


def read_categories(
    parts: list[Part], origin: Literal["auto", "coco", "file"]
) -> tuple[str, list[str], dict[str, dict[int, int]], list[str]]:
    """(coco or file, class names, split -> category id -> mask index 1..C, notes)."""
    listed = {part.split: list_categories(part.index) for part in parts}
    own = dict(zip(CATEGORY_IDS, CLASSES, strict=True))
    if origin == "auto":
        same = sum(own.get(one.id) == one.name for found in listed.values() for one in found)
        origin = "coco" if same * 2 > sum(map(len, listed.values())) else "file"
    for part in parts:
        known = {one.id for one in listed[part.split]} | (set(own) if origin == "coco" else set())
        unknown = first_of_unknown(part.index, known)
        if unknown is not None:
            count = len(own) if origin == "coco" else len(listed[part.split])
            raise UserError(
                f"{part.file}: annotation {unknown[0]} has category {unknown[1]}, which is none of the {count}; "
                "correct it or remove the annotation"
            )
    if origin == "coco":
        for part in parts:
            _check_own(part, listed[part.split], own)
        ranks = {number: rank for rank, number in enumerate(CATEGORY_IDS, start=1)}
        return origin, list(CLASSES), dict.fromkeys(listed, ranks), []
    return origin, *_number_categories(parts, listed)


def _check_own(part: Part, found: list[Category], own: Mapping[int, str]) -> None:
    for one in found:
        if own.get(one.id) != one.name:
            expected = repr(own[one.id]) if one.id in own else "unknown"
            raise UserError(
                f"{part.file}: category {one.id} is {one.name!r}, expected {expected}; give COCO's own file, "
                "or --set categories_from=file for other data in its layout"
            )


def _number_categories(
    parts: list[Part], listed: Mapping[str, list[Category]]
) -> tuple[list[str], dict[str, dict[int, int]], list[str]]:
    """Names and numbers of the categories that the files list, by name over all parts."""
    every = [one for found in listed.values() for one in found]
    used = Counter({name_key(one.name): 0 for one in every})
    for one in every:
        used[name_key(one.name)] += one.num_annotations
    notes = []
    dropped = set()
    for key in (key for key, count in used.items() if not count):
        others = [one for one in every if name_key(one.name) != key]
        is_root = bool(others) and all(name_key(one.parent) == key for one in others)
        if is_root or key in BACKGROUND:
            dropped.add(key)
            name = next(one.name for one in every if name_key(one.name) == key)
            notes.append(f"category {name!r} has no annotation and was left out: it is no class")
    named = [key for key, count in used.items() if count and key in BACKGROUND]
    if named:
        raise UserError(
            f"{parts[0].file}: category {named[0]!r} has annotations; remove them, background is what is left"
        )
    names: dict[str, str] = {}
    tables = {}
    for part in parts:
        own = [one for one in listed[part.split] if name_key(one.name) not in dropped]
        keys = Counter(name_key(one.name) for one in own)
        parents = {name_key(one.parent) for one in own}
        twins = [one for one in own if keys[name_key(one.name)] > 1 and not one.num_annotations]
        twins = [one for one in twins if name_key(one.name) in parents]
        own = [one for one in own if one not in twins]
        notes += [
            f"category {one.name!r} (id {one.id}) has no annotation and was left out: it is the root of another one"
            for one in twins
        ]
        list_classes([one.name for one in own], str(part.file))
        for one in own:
            names.setdefault(name_key(one.name), one.name)
        order = {key: rank for rank, key in enumerate(names, start=1)}
        tables[part.split] = {one.id: order[name_key(one.name)] for one in own}
    return list(list_classes(list(names.values()), str(parts[0].file)).names), tables, notes
