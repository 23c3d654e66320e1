# SPDX-License-Identifier: Apache-2.0
"""``wsss.prepare``: images of one's own, checked and prepared, and a look at them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_ray.api.messages import show_in_cell
from wsss_ray.config import UserError

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class Data:
    """Prepared data: ``Data("data/mine")`` opens what was prepared before."""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        """Raises UserError where no prepared data lies at ``where``, a folder or URI."""
        from wsss_ray.data.manifest import open_data

        self._opened = open_data(os.fspath(where))

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._opened.uri

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground classes; mask value 1 is the first."""
        return self._opened.manifest.classes

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of its images."""
        return {name: split.num_images for name, split in self._opened.manifest.splits.items()}

    @property
    def notes(self) -> list[str]:
        """What was noted when it was prepared."""
        return self._opened.notes

    @property
    def counts(self) -> pd.DataFrame:
        """Images by class and split; an image of two classes counts for both."""
        import pandas as pd

        from wsss_ray.data.shards import read_shard_table

        seen: dict[str, Counter[int]] = {split: Counter() for split in self.splits}
        for shard in self._opened.manifest.shards:
            lists = read_shard_table(self.uri, shard, columns=["labels"])["labels"].to_pylist()
            for split in shard.splits:
                seen[split].update(label for labels in lists for label in labels or ())
        index = pd.Index(self.classes, name="class")
        places = range(len(self.classes))
        return pd.DataFrame({split: [found[place] for place in places] for split, found in seen.items()}, index=index)

    def image(self, image_id: str) -> Image:
        """One image by its id; UserError for an id that is not there."""
        from PIL import Image

        from wsss_ray.artifacts.tables import read_row
        from wsss_ray.data.image import decode_image

        row = read_row(self.uri, image_id)
        if row is None:
            raise UserError(f"{self.uri}: no image {image_id!r}; ids() lists those there are")
        return Image.fromarray(decode_image(row["image"], image_id))  # type: ignore[arg-type]

    def ids(self, split: str | None = None) -> list[str]:
        """The ids of the images of a split, or of all, sorted."""
        from wsss_ray.data.shards import read_shard_table

        manifest = self._opened.manifest
        shards = manifest.shards if split is None else manifest.shards_of(split)
        return sorted(
            name
            for shard in shards
            for name in read_shard_table(self.uri, shard, columns=["image_id"])["image_id"].to_pylist()
        )

    def show(self, count: int = 4, split: str | None = None) -> Image:
        """Some images of a split (default: the first), each beside its ground truth, as one image."""
        from wsss_ray.reports.panels import choose_rows, draw_rows

        rows = choose_rows(self._opened.shards(split or next(iter(self.splits))), count)
        return draw_rows(self._opened, rows, {})

    @property
    def _head(self) -> str:
        splits = ", ".join(f"{count} {name}" for name, count in self.splits.items())
        return f"Data in {Path(self.uri).name}: {splits} images, {len(self.classes)} classes"

    def __repr__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([f"{self._head}: {', '.join(self.classes[:20])}", *notes])

    def _repr_html_(self) -> str:
        from wsss_ray.reports.frames import write_html

        return write_html(self._head, self.counts, [f"note: {note}" for note in self.notes])


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str = "auto",
    skip_bad: bool = False,
    address: str | None = None,
    **options: Any,
) -> Data:
    """Check the images of a folder and write them as Parquet shards into ``out``, once.

    ``kind`` is voc, coco, folder, yolo, label_studio or datumaro; ``auto`` recognises the layout of the folder
    ``source``. The source ``toy`` has no folder: it generates images. ``options`` are those of the source:
    ``prepare("images", "data/mine", val_fraction=0.1)``. The same call of the same files takes what lies in ``out``;
    ``skip_bad`` leaves out images that cannot be used; ``address`` is a Ray cluster to join.

    Raises UserError for a folder whose layout is not known, for images or labels that cannot be used (the line says
    which and what to do), and where ``out`` holds data of other files or options.

        data = wsss.prepare("images", out="data/mine")
        data.classes, data.splits, data.notes
    """
    from wsss_ray.data.layouts import detect_layout
    from wsss_ray.stages.prepare import Asked, prepare_once

    root: Path | None = Path(source)
    if "toy" in (kind, os.fspath(source)):
        kind, root = "toy", None
    elif kind == "auto":
        if not Path(source).is_dir():
            raise UserError(f"{os.fspath(source)}: no such folder; give the folder of the images")
        layout = detect_layout(Path(source))
        kind, options = layout.source, {**layout.options, **options}
    with show_in_cell():
        return Data(prepare_once(Asked(kind, root, options, skip_bad), os.fspath(out), address))
