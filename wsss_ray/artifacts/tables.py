# SPDX-License-Identifier: Apache-2.0
"""What lies in artifacts: Parquet parts of class maps, masks and predictions, and random access to them by image
id.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsss_ray import storage
from wsss_ray.artifacts.files import read_parquet
from wsss_ray.contracts import ClassMaps
from wsss_ray.data.image import decode_mask

MAPS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("classes", pa.list_(pa.int32())),
        ("maps", pa.binary()),
        ("grid_height", pa.int32()),
        ("grid_width", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
MASKS_SCHEMA = pa.schema([("image_id", pa.string()), ("mask", pa.binary())])
PREDICTIONS_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("single_scale", pa.binary()), ("multi_scale", pa.binary()), ("crf", pa.binary())]
)
"""Three masks of an image; ``crf`` is null where the recipe has no CRF."""
COUNTS_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("variant", pa.string()), ("labels", pa.list_(pa.int32())), ("counts", pa.binary())]
)
"""Per image and variant the labels that occur and their (3, n) int64 intersection, truth and predicted pixels."""


def name_part(shard: str) -> str:
    """The output file of a shard: same stem, so that any part finds its input."""
    return os.path.splitext(os.path.basename(shard))[0] + ".parquet"


def write_table(table: pa.Table, uri: str) -> None:
    """A Parquet file, atomically, with bytes that depend on its rows alone."""
    storage.write_bytes(uri, encode_table(table))


def encode_table(table: pa.Table) -> bytes:
    """A table as Parquet: what is read of it is encoded to the same bytes again."""
    sink = pa.BufferOutputStream()
    pq.write_table(_name_elements(table), sink, compression="zstd", write_page_checksum=True)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _name_elements(table: pa.Table) -> pa.Table:
    """The values of lists are called ``element`` in Parquet, and so when they are read again; ``item`` in Arrow."""
    for place, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            named = pa.field(field.name, pa.list_(pa.field("element", field.type.value_type)), field.nullable)
            table = table.set_column(place, named, table.column(place).cast(named.type))
    return table


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file of an artifact, verified (``artifacts.files.read_file``)."""
    folder, _, name = uri.rpartition("/")
    return read_parquet(folder, name, columns)


def encode_maps(maps: ClassMaps) -> dict[str, object]:
    """A row of a maps part: present classes only, float16."""
    _, grid_height, grid_width = maps.maps.shape
    return {
        "image_id": maps.image_id,
        "classes": maps.classes.tolist(),
        "maps": np.ascontiguousarray(maps.maps, dtype=np.float16).tobytes(),
        "grid_height": grid_height,
        "grid_width": grid_width,
        "height": maps.size[0],
        "width": maps.size[1],
    }


def decode_maps(row: dict[str, object]) -> ClassMaps:
    """The inverse of ``encode_maps`` (values rounded to float16)."""
    classes = np.asarray(row["classes"], dtype=np.int32)
    grid = (len(classes), int(row["grid_height"]), int(row["grid_width"]))  # type: ignore[call-overload]
    values = np.frombuffer(row["maps"], dtype=np.float16).reshape(grid).astype(np.float32)  # type: ignore[call-overload]
    return ClassMaps(str(row["image_id"]), classes, values, (int(row["height"]), int(row["width"])))  # type: ignore[call-overload]


def read_counts(folder: str, num_labels: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """A score artifact's variants -> (sorted image ids, (N, 3, K) int64 intersection, truth and predicted pixels)."""
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name in storage.list_names(folder):
        if name.endswith(".parquet"):
            for row in read_table(storage.join(folder, name)).to_pylist():
                counts = np.zeros((3, num_labels), dtype=np.int64)
                counts[:, row["labels"]] = np.frombuffer(row["counts"], dtype=np.int64).reshape(3, -1)
                rows.setdefault(row["variant"], {})[row["image_id"]] = counts
    return {
        variant: (sorted(found), np.stack([found[image_id] for image_id in sorted(found)]))
        for variant, found in rows.items()
    }


def read_row(folder: str, image_id: str) -> dict[str, object] | None:
    """The row of one image in a folder of parts, None where the stage left it out; reads the ids and one part."""
    for name in storage.list_names(folder):
        if not name.endswith(".parquet"):
            continue
        where = storage.join(folder, name)
        if image_id in read_table(where, columns=["image_id"])["image_id"].to_pylist():
            filesystem, path = storage.open_fs(where)
            found = pq.read_table(path, filesystem=filesystem, filters=[("image_id", "=", image_id)])
            row: dict[str, object] = found.to_pylist()[0]
            return row
    return None


def list_ids(folder: str) -> list[str]:
    """The ids of all images in a folder of parts, sorted."""
    parts = [storage.join(folder, name) for name in storage.list_names(folder) if name.endswith(".parquet")]
    return sorted(name for part in parts for name in read_table(part, columns=["image_id"])["image_id"].to_pylist())


class Lookup:
    """Random access by image id to the rows of a folder of parts."""

    def __init__(self, folder: str) -> None:
        names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
        self._table = pa.concat_tables([read_table(storage.join(folder, name)) for name in names])
        self._index = {name: row for row, name in enumerate(self._table["image_id"].to_pylist())}

    def row(self, image_id: str) -> dict[str, object]:
        """The row of an image; KeyError where the stage left it out."""
        row: dict[str, object] = self._table.slice(self._index[image_id], 1).to_pylist()[0]
        return row

    def maps(self, image_id: str) -> ClassMaps:
        """The class maps of an image."""
        return decode_maps(self.row(image_id))

    def mask(self, image_id: str) -> np.ndarray:
        """(H, W) uint8 pseudo mask of an image."""
        return decode_mask(self.row(image_id)["mask"])  # type: ignore[arg-type]
