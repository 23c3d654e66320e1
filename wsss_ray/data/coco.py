"""MS COCO 2014 as downloaded (2017's names work too), or any data set exported in its layout.

``train2014/ val2014/ annotations/instances_train2014.json instances_val2014.json``; image-level labels are the
categories of an image's annotations, never what a rendered mask happens to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from wsss_ray.config import UserError
from wsss_ray.data.checks import file_loader
from wsss_ray.data.coco_index import CocoImage, build_index, categories, first_of_unknown, iterate, shapes_of
from wsss_ray.data.coco_masks import Crowd, Overlap, pycocotools_mask, render
from wsss_ray.data.image import encode_mask
from wsss_ray.data.source import Item, Row, Source

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
_YEARS = ("2014", "2017")
_SPLITS = ("train", "val")
Empty = Literal["dropped", "kept"]
_REASONS = {
    "crowd": "a crowd is of its class, as its image label says; left out, a right answer there would count as wrong",
    "overlap": "what lies on or in something larger stays visible (coco2voc, recommended by AFA)",
    "empty": "82,081 and 40,137 images as in EPS, L2G, AFA and WS-FCN; 'kept' gives 82,783 and 40,504",
}


def open_coco(
    root: str | Path | None,
    *,
    crowd: Crowd = "included",
    overlap: Overlap = "smallest",
    empty: Empty = "dropped",
    crowd_labels: bool = True,
    categories_from: Literal["coco", "file"] = "coco",
    masks: bool = True,
    splits: tuple[str, ...] | list[str] | None = None,
    saliency: str | Path | None = None,
    index: str | Path | None = None,
) -> Source:
    """The images below ``root`` and their annotations.

    ``crowd`` and ``overlap``: how masks are drawn (``coco_masks.render``). ``empty``: whether images without any
    label are dropped. ``crowd_labels``: whether a crowd alone gives its image a label. ``categories_from``: COCO's
    own, or those the annotation files list (other data in its layout). ``masks=False`` leaves masks out.
    ``saliency``: a folder of ``<image>.png``. ``index``: where the parsed annotations are kept, by default the cache;
    on several machines a folder that all of them see.
    """
    _check("crowd", crowd, ("included", "excluded", "ignore"))
    _check("overlap", overlap, ("smallest", "last", "first"))
    _check("empty", empty, ("dropped", "kept"))
    _check("categories_from", categories_from, ("coco", "file"))
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds train2014, val2014 and annotations")
    if saliency is not None and not Path(saliency).is_dir():
        raise UserError(f"{saliency}: no such folder; saliency is a folder of <image>.png")
    if masks:
        pycocotools_mask()
    parts = _parts(Path(root), tuple(splits) if splits is not None else None, _index_folder(index))
    table = _table(parts, categories_from)
    names = list(CLASSES) if categories_from == "coco" else _names(parts[0])
    rules = {"crowd": crowd, "overlap": overlap, "empty": empty}
    options: dict[str, Any] = {
        "labels_from": "annotations",
        **rules,
        "crowd_labels": crowd_labels,
        "categories_from": categories_from,
        "masks": masks,
        "default_because": _REASONS,
        "annotation_files": {part.split: f"{part.file.name} {part.index.stem.split('-')[1]}" for part in parts},
    }
    loader = partial(
        load_coco,
        table=table,
        crowd=crowd,
        overlap=overlap,
        masks=masks,
        load=file_loader(len(names)),
    )
    items = CocoItems(tuple(parts), table, empty, crowd_labels, Path(saliency) if saliency is not None else None)
    return Source("coco", names, items, loader, splits=tuple(part.split for part in parts), options=options)


@dataclass(frozen=True)
class Part:
    """One split on disk."""

    split: str
    images: Path
    file: Path
    index: Path


@dataclass(frozen=True)
class CocoItems:
    """Every image of the splits once, split by split, by id; read from the index as it goes."""

    parts: tuple[Part, ...]
    table: Mapping[int, int]
    empty: Empty
    crowd_labels: bool
    saliency: Path | None

    def __iter__(self) -> Iterator[Item]:
        for part in self.parts:
            for image in iterate(part.index):
                item = self._item(part, image)
                if item.labels or self.empty == "kept":
                    yield item

    def _item(self, part: Part, image: CocoImage) -> Item:
        labels = {self.table[number] - 1 for number, crowd in image.categories if self.crowd_labels or not crowd}
        stem = Path(image.file).stem
        saliency = self.saliency / f"{stem}.png" if self.saliency is not None else None
        return Item(
            stem,
            str(part.images / image.file),
            tuple(sorted(labels)),
            saliency=str(saliency) if saliency is not None and saliency.is_file() else None,
            splits=(part.split,),
            extra={
                "index": str(part.index),
                "image": image.id,
                "size": (image.height, image.width),
                "labels_file": str(part.file),
            },
        )


def load_coco(item: Item, table: Mapping[int, int], crowd: Crowd, overlap: Overlap, masks: bool, load: Any) -> Row:
    """The row of an image with its mask rendered; runs on workers. UserError names file, annotation and fix."""
    height, width = item.extra["size"]
    where = f"{item.extra['labels_file']}: image {item.image_id}"
    if masks:
        shapes = shapes_of(item.extra["index"], item.extra["image"])
        item = replace(item, mask=encode_mask(render(shapes, table, height, width, crowd, overlap, where)))
    try:
        made: Row = load(item)
    except UserError as error:
        if str(error).startswith(f"{item.image_id}: {height}x{width} "):
            stated = f"{height}x{width} (height x width)"
            raise UserError(f"{where} is {stated} there, but {item.image!r} is not; correct one of the two") from error
        raise
    return made


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"coco: {name} {value!r}; known: {', '.join(known)}")


def _index_folder(index: str | Path | None) -> Path:
    from wsss_ray.data.shards import cache_root

    return Path(index).expanduser().absolute() if index is not None else cache_root() / "coco"


def _parts(root: Path, wanted: tuple[str, ...] | None, folder: Path) -> list[Part]:
    found = []
    for split in wanted or _SPLITS:
        files = [(root / "annotations" / f"instances_{split}{year}.json", root / f"{split}{year}") for year in _YEARS]
        there = next(((file, images) for file, images in files if file.is_file()), None)
        if there is None:
            if wanted:
                raise UserError(f"{files[0][0]}: no such file; remove split {split!r} or add the file")
            continue
        file, images = there
        if not images.is_dir():
            raise UserError(f"{images}: no such folder, but {file} lists its images; add it or remove the file")
        found.append(Part(split, images, file, build_index(file, folder)))
    if not found:
        raise UserError(f"{root}: no annotations/instances_train2014.json or instances_val2014.json; add them")
    return found


def _names(part: Part) -> list[str]:
    return list(categories(part.index).values())


def _table(parts: list[Part], source: Literal["coco", "file"]) -> dict[int, int]:
    """Category id -> mask index 1..C, after every annotation file was checked against it."""
    own = dict(zip(CATEGORY_IDS, CLASSES, strict=True))
    names = own if source == "coco" else categories(parts[0].index)
    for part in parts:
        for number, name in categories(part.index).items():
            if names.get(number) != name:
                expected = repr(names[number]) if number in names else "unknown"
                hint = (
                    "give COCO's own file, or --set categories_from=file for other data in its layout"
                    if source == "coco"
                    else f"list the same categories as {parts[0].file}"
                )
                raise UserError(f"{part.file}: category {number} is {name!r}, expected {expected}; {hint}")
        unknown = first_of_unknown(part.index, set(names))
        if unknown is not None:
            raise UserError(
                f"{part.file}: annotation {unknown[0]} has category {unknown[1]}, which is none of the {len(names)}; "
                "correct it or remove the annotation"
            )
    return {number: rank for rank, number in enumerate(sorted(names), start=1)}
