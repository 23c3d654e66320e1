# SPDX-License-Identifier: Apache-2.0
"""MS COCO 2014 as downloaded (2017's names work too), or any data set exported in its format.

Image-level labels are the categories of an image's annotations, never what a rendered mask happens to show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsss_ray.config import UserError
from wsss_ray.data.checks import FileLoader, Reading
from wsss_ray.data.coco_categories import read_categories
from wsss_ray.data.coco_index import CocoImage, iterate_files, iterate_images, read_shapes
from wsss_ray.data.coco_layout import UNSPLIT, Part, find_parts
from wsss_ray.data.coco_masks import Crowd, DrawRules, Overlap, pycocotools_mask, reach_outside, render_shapes
from wsss_ray.data.files import SALIENCY_TAILS, Census, Companions, make_ids
from wsss_ray.data.grey import FileError
from wsss_ray.data.image import encode_mask
from wsss_ray.data.names import compose, contain_path, list_classes, path_key
from wsss_ray.data.options import FilePath, Words, describe_reading, make_reading, read_options
from wsss_ray.data.shards import cache_root
from wsss_ray.data.source import FACTS, Item, Row, Source
from wsss_ray.data.splits import SplitOptions, split_items

Empty = Literal["dropped", "kept"]
_REASONS = {
    "crowd": "a crowd is of its class, as its image label says; left out, a right answer there would count as wrong",
    "overlap": "what lies on or in something larger stays visible (coco2voc, recommended by AFA)",
    "empty": "82,081 and 40,137 images as in EPS, L2G, AFA and WS-FCN; 'kept' gives 82,783 and 40,504",
}


class CocoOptions(SplitOptions):
    """Options of the source ``coco``."""

    crowd: Crowd = "included"
    overlap: Overlap = "smallest"
    """How masks are drawn (``coco_masks.DrawRules``)."""
    empty: Empty = "dropped"
    """Whether images without any label are dropped."""
    crowd_labels: bool = True
    """Whether a crowd alone gives its image a label."""
    categories_from: Literal["auto", "coco", "file"] = "auto"
    """COCO's own, or those the annotation files list (other data in its format)."""
    masks: bool = True
    """False leaves masks out."""
    splits: Words = ()
    """Splits to read, by default all."""
    index: FilePath | None = None
    """Where the parsed annotations are kept, by default the cache; on several machines a folder that all of them
    see."""
    outside: Literal["refused", "cut"] = "refused"
    """What becomes of most images having shapes that reach far beyond them."""


def open_coco(root: str | Path | None, **options: Any) -> Source:
    """The images below ``root`` and their annotations, with ``CocoOptions``."""
    chosen = read_options("coco", CocoOptions, options)
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds train2014, val2014 and annotations")
    if chosen.saliency is not None and not Path(chosen.saliency).is_dir():
        raise UserError(f"{chosen.saliency}: no such folder; saliency is a folder of <image>.png")
    if chosen.masks:
        pycocotools_mask()
    parts = find_parts(Path(root), chosen.splits, _index_folder(chosen.index))
    origin, names, tables, notes = read_categories(parts, chosen.categories_from)
    reading = make_reading(chosen, len(names), list_classes(names, str(parts[0].file)).find)
    described: dict[str, Any] = {
        "labels_from": "annotations",
        "crowd": chosen.crowd,
        "overlap": chosen.overlap,
        "empty": chosen.empty,
        "crowd_labels": chosen.crowd_labels,
        "categories_from": origin,
        "masks": chosen.masks,
        "default_because": _REASONS,
        "annotation_files": {part.split: f"{part.file.name} {part.index.stem.split('-')[1]}" for part in parts},
    }
    saliency = Companions(Path(chosen.saliency), "saliency map", SALIENCY_TAILS, True) if chosen.saliency else None
    items: Any = CocoItems(tuple(parts), tables, chosen, _shared_ids(parts), saliency)
    notes += _take_census(items, parts, chosen)
    splits = tuple(part.split for part in parts)
    if splits == (UNSPLIT,):
        items, drawn = split_items(items, chosen)
        described |= drawn
        splits = ("train", "val") if any(item.splits == ("val",) for item in items) else ("train",)
    return Source(
        "coco",
        names,
        items,
        CocoLoader(
            tables, DrawRules(chosen.crowd, chosen.overlap), chosen.masks, chosen.outside == "cut", FileLoader(reading)
        ),
        splits=splits,
        options=described | describe_reading(chosen),
        notes=notes,
    )


@dataclass(frozen=True)
class CocoItems:
    """Every image of the parts once, part by part, by id; read from the index as it goes."""

    parts: tuple[Part, ...]
    tables: Mapping[str, Mapping[int, int]]
    """Split -> category id -> mask index."""
    options: CocoOptions
    ids: Mapping[str, str]
    """Split and file name -> image id, where short ids would not be unique."""
    saliency: Companions | None

    def __iter__(self) -> Iterator[Item]:
        for part in self.parts:
            for image in iterate_images(part.index):
                item = self._item(part, image)
                if item.labels or self.options.empty == "kept":
                    yield item

    def _item(self, part: Part, image: CocoImage) -> Item:
        table = self.tables[part.split]
        wanted = [number for number, crowd in image.categories if self.options.crowd_labels or not crowd]
        name = part.shorten(image.file)
        image_id = self.ids.get(f"{part.split}/{name}") or _short_id(name)
        saliency = self.saliency.find(name, image_id) if self.saliency is not None else None
        return Item(
            image_id,
            str(part.find_image(image.file)),
            tuple(sorted({table[number] - 1 for number in wanted})),
            saliency=str(saliency) if saliency is not None else None,
            splits=(part.split,),
            file=contain_path(image.file),
            extra={
                "index": str(part.index),
                "image": image.id,
                "size": (image.height, image.width),
                "labels_file": str(part.file),
                "part": part.split,
                **({"bare": True} if image.bare else {}),
            },
        )


def _short_id(name: str) -> str:
    return "__".join(compose(os.path.splitext(name)[0]).split("/"))


def _shared_ids(parts: Sequence[Part]) -> dict[str, str]:
    """Ids with the split in front where short ones would not be unique; empty where they are."""
    seen: set[int] = set()
    total = 0
    for part in parts:
        for file in iterate_files(part.index):
            seen.add(hash(path_key(_short_id(part.shorten(file)))))
            total += 1
    if len(seen) == total:
        return {}
    several = len(parts) > 1
    names = {
        f"{part.split}/{name}": f"{part.split}/{name}" if several else name
        for part in parts
        for name in map(part.shorten, iterate_files(part.index))
    }
    ids = make_ids(names.values())
    return {key: ids[name] for key, name in names.items()}


def _take_census(items: CocoItems, parts: Sequence[Part], options: CocoOptions) -> list[str]:
    """How many images are used and why others are not; images that nobody can draw a mask for."""
    num_used = num_bare = num_listed = 0
    for part in parts:
        for image in iterate_images(part.index):
            num_listed += 1
            labelled = any(options.crowd_labels or not crowd for _, crowd in image.categories)
            num_used += labelled or options.empty == "kept"
            num_bare += image.bare
    census = Census()
    census.leave_out("without a label (--set empty=kept keeps them)", num_listed - num_used)
    if not parts[0].official:
        table = parts[0].table
        named = [part.find_image(file) for part in parts for file in iterate_files(part.index)]
        table.count_unused(named, census, "not listed in the annotations")
    notes = census.notes(num_used)
    if num_bare and options.masks:
        notes.append(
            f"{num_bare} of {num_listed} images have annotations without a shape (boxes alone): their labels are used, "
            "and they have no mask"
        )
    if items.saliency is not None:
        for _ in items:
            pass
        notes += items.saliency.notes(num_used)
    return notes


@dataclass(frozen=True)
class CocoLoader:
    """The ``load`` of COCO's format: draws the mask, then reads the image; runs on workers."""

    tables: Mapping[str, Mapping[int, int]]
    rules: DrawRules
    masks: bool
    cut: bool
    """Shapes that reach far beyond their image are cut off without a word."""
    load: FileLoader

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return self.load.reading

    def settle(self, reading: Reading) -> CocoLoader:
        """The same with another reading."""
        return replace(self, load=self.load.settle(reading))

    def __call__(self, item: Item) -> Row:
        """The row of an item; UserError names file, annotation and fix."""
        size = item.extra["size"]
        where = f"{item.extra['labels_file']}: image {item.image_id}"
        outside = False
        if self.masks and not item.extra.get("bare"):
            shapes = read_shapes(item.extra["index"], item.extra["image"])
            try:
                drawn = render_shapes(shapes, self.tables[item.extra["part"]], size, self.rules, where)
            except UserError as error:
                # The same words without their numbers are the same trouble.
                raise FileError(str(error), re.sub(r"[\d.e+-]+", "", str(error).removeprefix(where))) from error
            outside = not self.cut and reach_outside(shapes, size)
            item = replace(item, mask=encode_mask(drawn))
        try:
            row = self.load(item)
        except UserError as error:
            if str(error).startswith(f"{item.image_id}: {size[0]}x{size[1]} "):
                stated = f"{size[0]}x{size[1]} (height x width)"
                text = f"{where} is {stated} there, but {item.image!r} is not; correct one of the two"
                raise FileError(text, "size of an image") from error
            raise
        return {**row, FACTS: replace(row[FACTS], outside=outside)}


def _index_folder(index: str | None) -> Path:
    return Path(index).expanduser().absolute() if index is not None else cache_root() / "coco"
