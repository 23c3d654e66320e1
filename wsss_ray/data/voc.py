# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC 2012 as its devkit unpacks, with the 10,582-image ``train_aug`` list where somebody added it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from wsss_ray.config import LabelSource, UserError
from wsss_ray.data import image as pic
from wsss_ray.data.checks import FileLoader
from wsss_ray.data.files import Census, image_endings, is_image, is_system, short_list
from wsss_ray.data.masks import MaskTable, find_colour_list, read_colour_list, read_mask
from wsss_ray.data.names import BACKGROUND, VOID, ClassNames, compose, list_classes, name_key
from wsss_ray.data.options import FilePath, Words, describe_reading, make_reading, read_options
from wsss_ray.data.source import Item, Source, read_file
from wsss_ray.data.splits import SplitOptions, order_splits, split_items
from wsss_ray.data.text import parse_xml, read_text, strip_invisible

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS = ("train", "val", "trainval", "train_aug", "trainaug", "test")
UNSPLIT = "default"
"""The list of labelling tools, which is no split."""


class VocOptions(SplitOptions):
    """Options of the source ``voc``."""

    labels_from: LabelSource = "xml"
    """The object names of the XML files, difficult ones included (PSA, IRN), PSA's ``cls_labels.npy``, or what the
    masks show (SSSS)."""
    npy: FilePath | None = None
    """PSA's ``cls_labels.npy``."""
    masks_from: Literal["official", "aug"] = "official"
    """SegmentationClass where it has the image, else SegmentationClassAug; or the other way round (EPS, L2G, SMAF)."""
    splits: Words = ()
    """Lists to read, by default every one that is known."""

    @model_validator(mode="after")
    def _check_vectors(self) -> VocOptions:
        if (self.labels_from == "npy") != (self.npy is not None):
            raise ValueError("labels_from='npy' and npy=FILE go together (PSA's cls_labels.npy); give both or neither")
        return self


def open_voc(root: str | Path | None, **options: Any) -> Source:
    """The devkit at ``root`` (``VOCdevkit`` or ``VOCdevkit/VOC2012``), with ``VocOptions``.

    A labelling tool's export in this layout brings its own classes in labelmap.txt. Images of ``test`` have no labels
    and no masks.
    """
    if root is None:
        raise UserError("voc: give the folder of the devkit (VOCdevkit or VOCdevkit/VOC2012)")
    chosen = read_options("voc", VocOptions, options)
    folder = find_devkit(Path(root))
    classes = _read_classes(folder, chosen)
    images = VocNames(folder / "JPEGImages")
    lists, notes = _read_lists(folder, chosen, images)
    vectors = load_label_vectors(Path(chosen.npy)) if chosen.npy is not None else None
    saliency = None
    if chosen.saliency is not None:
        if not Path(chosen.saliency).is_dir():
            raise UserError(f"{chosen.saliency}: no such folder; saliency is a folder of <id>.png")
        saliency = VocNames(Path(chosen.saliency))
    order = ("SegmentationClass", "SegmentationClassAug")
    folders = tuple(folder / name for name in (order if chosen.masks_from == "official" else order[::-1]))
    reading = make_reading(chosen, len(classes.names), classes.find, (*folders, folder))
    counts = {name: len(ids) for name, ids in lists.items()}
    described: dict[str, Any] = {
        "labels_from": chosen.labels_from,
        "masks_from": chosen.masks_from,
        "list_sizes": counts,
        "mask_folders": [path.name for path in folders if path.is_dir()],
    }
    if chosen.labels_from == "xml":
        described["labels_rule"] = "all object names, difficult included, parts ignored"
    items: Any = VocItems(
        lists,
        images,
        VocNames(folder / "Annotations", (".xml",)),
        tuple(VocNames(path) for path in folders if path.is_dir()),
        saliency,
        VocLabels(chosen.labels_from, vectors, classes, reading.masks),
    )
    if UNSPLIT in lists:
        items, drawn = split_items(items, chosen)
        described |= drawn
    notes += _note_matches(images, items, saliency)
    return Source(
        name="voc",
        classes=list(classes.names),
        items=items,
        load=FileLoader(reading),
        splits=order_splits(items) if UNSPLIT in lists else tuple(lists),
        options=described | describe_reading(chosen),
        notes=notes,
    )


def _note_matches(images: VocNames, items: Iterable[Item], saliency: VocNames | None) -> list[str]:
    """Which images have no mask or map, and which are on no list."""
    num_items = num_masks = num_maps = 0
    lacking: list[str] = []
    for item in items:
        num_items += 1
        num_masks += item.mask is not None
        num_maps += item.saliency is not None
        if item.mask is None and item.splits != ("test",):
            lacking.append(item.image_id)
    if saliency is not None and not num_maps:
        example = next((item.image_id for item in items), "<id>")
        raise UserError(f"{saliency.folder}: no saliency map of any image there; expected {example}.png")
    census = Census()
    census.leave_out("on no list", max(0, images.num_files - num_items))
    notes = census.notes(num_items)
    if num_masks and lacking:
        notes.append(f"{num_masks} of {num_items} images have a mask; none for {short_list(lacking)}")
    return notes


class VocNames:
    """The files of one folder of a devkit, by the name of the image they belong to."""

    def __init__(self, folder: Path, endings: tuple[str, ...] | None = None) -> None:
        self.folder = folder
        self._files: dict[str, list[str]] = {}
        self.num_files = 0
        if not folder.is_dir():
            return
        for name in sorted(os.listdir(folder)):
            stem, ending = os.path.splitext(name)
            wanted = ending.lower() in endings if endings else is_image(name)
            if wanted and not is_system(name):
                self.num_files += 1
                self._files.setdefault(compose(stem), []).append(name)
        for stem, names in list(self._files.items()):
            self._files.setdefault(stem.casefold() + "/", []).extend(names)

    def find(self, name: str) -> Path | None:
        """The file of this image; UserError where two fit."""
        composed = compose(name)
        found = self._files.get(composed) or self._files.get(composed.casefold() + "/") or []
        if len(found) > 1:
            raise UserError(
                f"{self.folder}: {found[0]} and {found[1]} both fit {name}; remove or rename one of the two"
            )
        return self.folder / found[0] if found else None


@dataclass(frozen=True)
class VocLabels:
    """Where the image-level labels of a devkit come from."""

    source: LabelSource
    vectors: dict[str, tuple[int, ...]] | None
    classes: ClassNames
    masks: MaskTable

    def read(
        self, name: str, annotation: Path | None, mask: Path | None
    ) -> tuple[tuple[int, ...] | None, dict[str, Any]]:
        """(classes of an image, ``extra`` of its item); None where nothing says them."""
        if self.source == "npy":
            return (self.vectors or {}).get(name), {}
        if self.source == "masks":
            if mask is None:
                return None, {}
            read = read_mask(read_file(str(mask), "mask"), str(mask), self.masks)
            values = pic.list_values(read.mask)
            return tuple(int(value) - 1 for value in values if value not in (0, pic.IGNORE)), {}
        if annotation is None:
            return None, {}
        found = {
            label: self.classes.find(label)
            for label in xml_names(read_file(str(annotation), "annotation"), str(annotation))
        }
        unknown = tuple(sorted(label for label, index in found.items() if index is None))
        extra = {"unknown_classes": self.classes.guess(unknown), "labels_file": str(annotation)} if unknown else {}
        return tuple(sorted({index for index in found.values() if index is not None})), extra


@dataclass(frozen=True)
class VocItems:
    """Every image of the lists once, by id."""

    lists: dict[str, tuple[str, ...]]
    images: VocNames
    annotations: VocNames
    masks: tuple[VocNames, ...]
    saliency: VocNames | None
    labels: VocLabels

    def __iter__(self) -> Iterator[Item]:
        members: dict[str, list[str]] = {}
        for split, ids in self.lists.items():
            for name in ids:
                members.setdefault(name, []).append(split)
        for name in sorted(members):
            yield self._item(name, tuple(members[name]))

    def _item(self, name: str, splits: tuple[str, ...]) -> Item:
        test = splits == ("test",)
        mask = None if test else next((path for names in self.masks if (path := names.find(name))), None)
        labels, extra = (None, {}) if test else self.labels.read(name, self.annotations.find(name), mask)
        saliency = self.saliency.find(name) if self.saliency is not None else None
        image = self.images.find(name) or self.images.folder / f"{name}.jpg"
        return Item(
            name,
            str(image),
            labels,
            mask=str(mask) if mask is not None else None,
            saliency=str(saliency) if saliency is not None else None,
            splits=() if splits == (UNSPLIT,) else splits,
            file=f"JPEGImages/{image.name}",
            extra=extra,
        )


def xml_names(data: bytes | str, name: str = "annotation") -> list[str]:
    """The ``name`` of every object of an annotation, in order; names of body parts are not objects."""
    tree = parse_xml(data if isinstance(data, bytes) else data.encode(), name)
    return [(found.findtext("name") or "").strip() for found in tree.iter("object")]


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays and plain containers, and refuses anything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in {"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def load_label_vectors(path: Path) -> dict[str, tuple[int, ...]]:
    """PSA's ``cls_labels.npy``, a pickled {id: (C,) 0/1 vector} -> {id: classes}; arrays only, so that a file cannot
    run code.
    """
    try:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            value = _ArraysOnly(stream).load()
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not a label file ({error}); expected numpy.save of {{id: 0/1 vector}}") from error
    table = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(table, dict):
        raise UserError(f"{path}: holds a {type(table).__name__}; expected numpy.save of {{id: 0/1 vector}}")
    for name, vector in table.items():
        if np.shape(vector) != (len(CLASSES),):
            raise UserError(f"{path}: vector of {name} has shape {np.shape(vector)}; expected ({len(CLASSES)},)")
    return {str(name): tuple(np.flatnonzero(vector).tolist()) for name, vector in table.items()}


def find_devkit(root: Path) -> Path:
    """The folder that holds JPEGImages, at the root or where devkits and exports put it; VOC2012 before other years."""
    found = list_devkits(root)
    if not found:
        raise UserError(f"{root}: no JPEGImages folder; give VOCdevkit or VOCdevkit/VOC2012")
    if len(found) > 1 and found[0].name != "VOC2012":
        raise UserError(f"{root}: {found[0].name} and {found[1].name} both hold JPEGImages; give one of them")
    return found[0]


def list_devkits(root: Path) -> list[Path]:
    """The folders with JPEGImages at the places where devkits and exports have them, the likeliest first."""
    places = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    places += [place for base in (root, root / "VOCdevkit") for place in sorted(base.glob("VOC20??"))]
    return [place for place in dict.fromkeys(places) if (place / "JPEGImages").is_dir()]


def _read_classes(folder: Path, options: VocOptions) -> ClassNames:
    """VOC's own classes, those that are given, or those of a labelling tool's labelmap.txt."""
    if options.classes:
        return list_classes(options.classes, "--classes")
    colours = find_colour_list(folder)
    if colours is None:
        return list_classes(CLASSES, "voc")
    names = [name for name, _ in read_colour_list(colours, options.encoding)]
    own = [name for name in names if name_key(name) not in BACKGROUND | VOID]
    known = list_classes(CLASSES, "voc")
    return known if all(known.find(name) is not None for name in own) else list_classes(own, str(colours))


def _read_lists(folder: Path, options: VocOptions, images: VocNames) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The ids of every list, and notes; without any list of VOC, those of an export (default.txt), unsplit."""
    places = (folder / "ImageSets" / "Segmentation", folder / "ImageSets" / "Main")
    lists: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for name in options.splits or (*_LISTS, UNSPLIT):
        path = next((place / f"{name}.txt" for place in places if (place / f"{name}.txt").is_file()), None)
        if path is not None and (name != UNSPLIT or not lists):
            lists[name], found = _read_list(path, options, images)
            notes += found
        elif path is None and options.splits:
            raise UserError(f"{places[0] / name}.txt: no such list; remove split {name!r} or add the file")
    if not lists:
        raise UserError(f"{places[0]}: no list there; expected one of {', '.join(f'{name}.txt' for name in _LISTS)}")
    return lists, notes


def _read_list(path: Path, options: VocOptions, images: VocNames) -> tuple[tuple[str, ...], list[str]]:
    file = read_text(path, options.encoding)
    ids = tuple(read_id(line, images, f"{path}:{number}") for number, line in file.lines())
    doubles = len(ids) - len(set(ids))
    if doubles:
        raise UserError(f"{path}: {doubles} ids come twice; remove the second lines")
    return ids, [file.note] if file.note else []


def read_id(line: str, images: VocNames, where: str) -> str:
    """The image a line of a list means.

    The whole line, with or without quotes, else its first word (lists of pairs and of -1/1), each as the name of an
    image with or without its ending and folders. A name that fits no image is taken as it is and missed later.
    """
    whole = compose(strip_invisible(line))
    unquoted = whole[1:-1] if len(whole) > 2 and whole[0] == whole[-1] and whole[0] in "'\"" else whole
    words = [unquoted] if unquoted != whole else [whole, whole.split()[0]]
    for word in words:
        base = word.replace("\\", "/").rpartition("/")[2]
        stem, ending = os.path.splitext(base)
        for name in (base, stem) if ending.lower() in image_endings() else (base,):
            if images.find(name) is not None:
                return name
    last = words[-1].replace("\\", "/").rpartition("/")[2]
    if not last:
        raise UserError(f"{where}: names no image; correct the line")
    stem, ending = os.path.splitext(last)
    return stem if ending.lower() in image_endings() else last
