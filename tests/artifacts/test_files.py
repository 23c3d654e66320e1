# SPDX-License-Identifier: Apache-2.0
"""Files of artifacts: whatever happens to one is found, before its values are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsss_ray.artifacts.files import MARK, RECORD, DamagedError, find_damage, parse_parquet, read_file, read_parquet
from wsss_ray.artifacts.network import encode_state, load_state
from wsss_ray.artifacts.store import Store, read_artifact
from wsss_ray.artifacts.tables import (
    COUNTS_SCHEMA,
    MAPS_SCHEMA,
    PREDICTIONS_SCHEMA,
    encode_table,
    read_table,
    write_table,
)
from wsss_ray.config import UserError
from wsss_ray.experiments.check import check_all

STAGE, UID = "localize", "0123456789abcdef"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished artifact: two parts, weights and a note."""
    out = tmp_path_factory.mktemp("whole")
    store = Store(str(out))
    folder = Path(store.folder(STAGE, UID))
    for part in range(2):
        rows = {"image_id": [f"{part}-{k}" for k in range(9)], "maps": [bytes(range(part, 200))] * 9}
        write_table(pa.table(rows), str(folder / f"shard-{part:05d}.parquet"))
    torch.manual_seed(0)
    (folder / "model.safetensors").write_bytes(encode_state(torch.nn.Linear(5, 4)))
    (folder / "network.json").write_text('{"kind": "localizer"}')
    store.finish(STAGE, UID, {"seconds": 1.5, "scores": {"miou": 0.431}, "history": [{"loss": 0.25}]})
    return out


def read_all(folder: Path) -> dict[str, object]:
    """Everything that steps read of the artifact."""
    linear = torch.nn.Linear(5, 4)
    load_state(linear, str(folder / "model.safetensors"))
    return {
        "parts": [read_table(str(folder / f"shard-{part:05d}.parquet")).to_pylist() for part in range(2)],
        "weights": [value.tolist() for value in linear.state_dict().values()],
        "note": read_file(str(folder), "network.json"),
        "record": {key: read_artifact(str(folder)).model_dump()[key] for key in ("seconds", "scores", "history")},
    }


def try_to_read(folder: Path) -> tuple[dict[str, object] | None, str]:
    """(what was read, "") or (None, the line a user reads)."""
    try:
        return read_all(folder), ""
    except UserError as error:
        return None, str(error)


@st.composite
def draw_damage(draw: st.DrawFn) -> tuple[str, str, float, int]:
    """(file, kind, place as a share of the file, bit)."""
    name = draw(st.sampled_from(["shard-00000.parquet", "model.safetensors", "network.json", RECORD]))
    kind = draw(st.sampled_from(["flip", "truncate", "empty", "remove", "swap", "append"]))
    return name, kind, draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))


def damage(folder: Path, name: str, kind: str, share: float, bit: int) -> None:
    """Do it."""
    path = folder / name
    data = bytearray(path.read_bytes())
    place = int(share * len(data))
    if kind == "flip":
        data[place] ^= 1 << bit
    elif kind == "truncate":
        data = data[:place]
    elif kind == "empty":
        data = bytearray()
    elif kind == "append":
        data += b"x"
    elif kind == "swap":
        data = bytearray((folder / "shard-00001.parquet").read_bytes())
    path.write_bytes(data)
    if kind == "remove":
        path.unlink()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=draw_damage())
def test_no_damage_is_read_as_if_it_were_whole(whole: Path, tmp_path: Path, what: tuple[str, str, float, int]) -> None:
    """Either everything is read as it was written, or a line says which file is wrong and how to go on."""
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    shutil.copytree(whole, tmp_path / "out")
    store = Store(str(tmp_path / "out"))
    folder = Path(store.folder(STAGE, UID))
    damage(folder, *what)
    if what[:2] != (RECORD, "remove"):  # Without its record a folder is an unfinished step.
        found, said = try_to_read(folder)
        assert found == read_all(Path(Store(str(whole)).folder(STAGE, UID))) or (
            what[0] in said and "\n" not in said and "computes it again" in said
        )
    damaged = store.reopen(STAGE, UID)
    if damaged:
        assert damaged == [what[0]]
        assert not (folder / what[0]).exists()
    if damaged or what[:2] == (RECORD, "remove"):
        assert store.find(STAGE, UID) is None
        assert store.reopen(STAGE, UID) == []
    else:
        assert store.find(STAGE, UID) is not None


def test_a_file_that_is_gone_or_shorter_makes_a_step_unfinished(whole: Path, tmp_path: Path) -> None:
    """Which is seen from the folder's listing, without reading a byte."""
    for kind in ("remove", "truncate"):
        shutil.copytree(whole, tmp_path / kind)
        store = Store(str(tmp_path / kind))
        folder = Path(store.folder(STAGE, UID))
        assert store.find(STAGE, UID) is not None
        damage(folder, "shard-00000.parquet", kind, 0.5, 0)
        assert store.find(STAGE, UID) is None
        assert find_damage(str(folder), read_artifact(str(folder)), whole=False) == ["shard-00000.parquet"]


def test_what_is_read_is_encoded_to_the_same_bytes() -> None:
    """By which parts of unfinished steps are known to be whole."""
    rows = [
        {
            "image_id": "a",
            "classes": [1, 3],
            "maps": bytes(40),
            "grid_height": 2,
            "grid_width": 5,
            "height": 9,
            "width": 9,
        },
        {"image_id": "b", "classes": [], "maps": b"", "grid_height": 2, "grid_width": 5, "height": 9, "width": 9},
    ]
    counts = [{"image_id": "a", "variant": "best", "labels": [0, 2], "counts": bytes(48)}]
    masks = [{"image_id": "a", "single_scale": b"x", "multi_scale": b"y", "crf": None}]
    for wanted, schema in (
        (rows, MAPS_SCHEMA),
        ([], MAPS_SCHEMA),
        (counts, COUNTS_SCHEMA),
        (masks, PREDICTIONS_SCHEMA),
    ):
        table = pa.Table.from_pylist(wanted, schema=schema).replace_schema_metadata({b"totals": bytes(range(256))})
        data = encode_table(table)
        read = parse_parquet(data, "part")
        assert read.to_pylist() == wanted
        assert read.schema.metadata == table.schema.metadata
        assert encode_table(read) == data


def test_records_without_sums_are_of_the_first_versions(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "old")
    store = Store(str(tmp_path / "old"))
    folder = Path(store.folder(STAGE, UID))
    (folder / RECORD).write_text(json.dumps({"seconds": 1.5, "scores": {"miou": 0.431}}))
    found = store.find(STAGE, UID)
    assert found is not None
    assert found.record["scores"] == {"miou": 0.431}
    assert read_parquet(str(folder), "shard-00000.parquet").num_rows == 9


def test_pages_of_unfinished_steps_have_checksums(whole: Path, tmp_path: Path) -> None:
    """Where no record says what a part held: a flipped value is found all the same."""
    shutil.copytree(whole, tmp_path / "out")
    folder = Path(Store(str(tmp_path / "out")).folder(STAGE, UID))
    (folder / RECORD).unlink()
    part = folder / "shard-00000.parquet"
    data = part.read_bytes()
    found = 0
    for place in range(4, 120):
        part.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            rows = read_table(str(part)).to_pylist()
        except DamagedError:
            found += 1
        else:
            part.write_bytes(data)
            assert rows == read_table(str(part)).to_pylist()
    assert found > 90


@pytest.mark.parametrize("found_by", ["read", "check"])
def test_the_next_run_makes_again_what_somebody_found_damaged(whole: Path, tmp_path: Path, found_by: str) -> None:
    """A flipped bit in a file that no step of a finished run reads: sizes alone do not show it."""
    shutil.copytree(whole, tmp_path / "out")
    store = Store(str(tmp_path / "out"))
    folder = Path(store.folder(STAGE, UID))
    part = folder / "shard-00001.parquet"
    before = part.read_bytes()
    part.write_bytes(before[:50] + bytes([before[50] ^ 1]) + before[51:])
    assert store.find(STAGE, UID) is not None
    if found_by == "read":
        with pytest.raises(DamagedError, match="checksum mismatch"):
            read_file(str(folder), part.name)
    else:
        assert check_all(str(tmp_path / "out")).problems == [f"{part}: damaged or gone"]
    assert store.find(STAGE, UID) is None
    part.write_bytes(before)
    assert store.find(STAGE, UID) is not None, "what was put back is whole again"
    assert not (folder / MARK).exists()
    part.write_bytes(before[:50] + bytes([before[50] ^ 1]) + before[51:])
    assert check_all(str(tmp_path / "out")).problems != []
    assert store.reopen(STAGE, UID) == [part.name]
    assert [path.name for path in folder.iterdir() if path.name in (MARK, RECORD, part.name)] == []
