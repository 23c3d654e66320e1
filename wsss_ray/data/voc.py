"""PASCAL VOC 2012 as its devkit unpacks, with the 10,582-image ``train_aug`` list where somebody added it."""

from __future__ import annotations

import pickle
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data import image as pic
from wsss_ray.data.checks import file_loader
from wsss_ray.data.source import Item, Source

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS = ("train", "val", "trainval", "train_aug", "trainaug", "test")
LabelSource = Literal["xml", "npy", "masks"]


def open_voc(
    root: str | Path | None,
    *,
    labels_from: LabelSource = "xml",
    npy: str | Path | None = None,
    masks_from: Literal["official", "aug"] = "official",
    saliency: str | Path | None = None,
    splits: tuple[str, ...] | None = None,
) -> Source:
    """The devkit at ``root`` (``VOCdevkit`` or ``VOCdevkit/VOC2012``).

    Image-level labels are the object names of the XML files, difficult ones included (PSA, IRN), PSA's
    ``cls_labels.npy``, or what the masks show (SSSS). Masks of ``official``: SegmentationClass where it has the
    image, else SegmentationClassAug; ``aug``: the other way round, as EPS, L2G and SMAF score. ``saliency``: a folder
    of ``<id>.png``, used where it has the image. Images of ``test`` have no labels and no masks.
    """
    if root is None:
        raise UserError("voc: give the folder of the devkit (VOCdevkit or VOCdevkit/VOC2012)")
    folder = _devkit(Path(root))
    lists = _read_lists(folder, splits)
    if labels_from not in ("xml", "npy", "masks"):
        raise UserError(f"voc: labels_from {labels_from!r}; known: xml, npy, masks")
    if (labels_from == "npy") != (npy is not None):
        raise UserError("voc: labels_from='npy' and npy=FILE go together (PSA's cls_labels.npy); give both or neither")
    vectors = load_label_vectors(Path(npy)) if npy is not None else None
    if saliency is not None and not Path(saliency).is_dir():
        raise UserError(f"{saliency}: no such folder; saliency is a folder of <id>.png")
    order = ("SegmentationClass", "SegmentationClassAug")
    mask_folders = tuple(folder / name for name in (order if masks_from == "official" else order[::-1]))
    counts = {name: len(ids) for name, ids in lists.items()}
    options: dict[str, Any] = {"labels_from": labels_from, "masks_from": masks_from, "list_sizes": counts}
    options["mask_folders"] = [path.name for path in mask_folders if path.is_dir()]
    if labels_from == "xml":
        options["labels_rule"] = "all object names, difficult included, parts ignored"
    return Source(
        name="voc",
        classes=list(CLASSES),
        items=VocItems(folder, lists, labels_from, vectors, mask_folders, Path(saliency) if saliency else None),
        load=file_loader(len(CLASSES)),
        splits=tuple(lists),
        options=options,
    )


@dataclass(frozen=True)
class VocItems:
    """Every image of the lists once, by id."""

    folder: Path
    lists: dict[str, tuple[str, ...]]
    labels_from: LabelSource
    vectors: dict[str, tuple[int, ...]] | None
    mask_folders: tuple[Path, ...]
    saliency: Path | None

    def __iter__(self) -> Iterator[Item]:
        members: dict[str, list[str]] = {}
        for split, ids in self.lists.items():
            for name in ids:
                members.setdefault(name, []).append(split)
        for name in sorted(members):
            yield self._item(name, tuple(members[name]))

    def _item(self, name: str, splits: tuple[str, ...]) -> Item:
        test = splits == ("test",)
        mask = None if test else next((p for f in self.mask_folders if (p := f / f"{name}.png").is_file()), None)
        labels, extra = self._labels(name, mask, test)
        saliency = self.saliency / f"{name}.png" if self.saliency is not None else None
        return Item(
            name,
            str(self.folder / "JPEGImages" / f"{name}.jpg"),
            labels,
            mask=str(mask) if mask is not None else None,
            saliency=str(saliency) if saliency is not None and saliency.is_file() else None,
            splits=splits,
            extra=extra,
        )

    def _labels(self, name: str, mask: Path | None, test: bool) -> tuple[tuple[int, ...] | None, dict[str, Any]]:
        if test:
            return None, {}
        if self.labels_from == "npy":
            assert self.vectors is not None
            return self.vectors.get(name), {}
        if self.labels_from == "masks":
            if mask is None:
                return None, {}
            values = np.unique(pic.decode_mask(mask.read_bytes(), str(mask))).tolist()
            return tuple(int(value) - 1 for value in values if value not in (0, pic.IGNORE)), {}
        annotation = self.folder / "Annotations" / f"{name}.xml"
        if not annotation.is_file():
            return None, {}
        names = xml_names(annotation.read_bytes(), str(annotation))
        unknown = tuple(sorted(set(names) - set(CLASSES)))
        extra = {"unknown_classes": unknown, "labels_file": str(annotation)} if unknown else {}
        return tuple(sorted({CLASSES.index(label) for label in names if label in CLASSES})), extra


def xml_names(data: bytes | str, name: str = "annotation") -> list[str]:
    """The ``name`` of every object of an annotation, in order; names of body parts are not objects."""
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise UserError(f"{name}: not valid XML ({error}); copy it again") from error
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


def _devkit(root: Path) -> Path:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise UserError(f"{root}: no JPEGImages folder; give VOCdevkit or VOCdevkit/VOC2012")


def _read_lists(folder: Path, wanted: tuple[str, ...] | None) -> dict[str, tuple[str, ...]]:
    lists_folder = folder / "ImageSets" / "Segmentation"
    lists = {}
    for name in wanted or _LISTS:
        path = lists_folder / f"{name}.txt"
        if path.is_file():
            ids = tuple(line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            doubles = len(ids) - len(set(ids))
            if doubles:
                raise UserError(f"{path}: {doubles} ids come twice; remove the second lines")
            lists[name] = tuple(Path(line).stem for line in ids)
        elif wanted:
            raise UserError(f"{path}: no such list; remove split {name!r} or add the file")
    if not lists:
        raise UserError(f"{lists_folder}: no list there; expected one of {', '.join(f'{name}.txt' for name in _LISTS)}")
    return lists
