# SPDX-License-Identifier: Apache-2.0
"""Shards, manifest and rows: whole or not there, equal whatever the packing, checked by digests."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.shards import (
    Manifest,
    Rows,
    check,
    load_manifest,
    make_manifest,
    plan_shards,
    read_shard,
    read_shard_table,
    write_dataset,
    write_shard,
)
from wsss_ray.data.source import SCHEMA, Item, Source
from wsss_ray.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy() -> Source:
    return open_source("toy", num_train=21, num_val=5, size=32)


@pytest.fixture
def data(toy, tmp_path) -> str:
    write_dataset(toy, str(tmp_path / "data"), rows_per_shard=8)
    return str(tmp_path / "data")


def test_manifest_says_what_is_there(data, toy):
    manifest = load_manifest(data)
    assert [(split, info.num_images) for split, info in manifest.splits.items()] == [("train", 21), ("val", 5)]
    assert (manifest.source, manifest.classes, manifest.ignore) == ("toy", tuple(toy.classes), 255)
    assert manifest.options["num_train"] == 21
    assert manifest.palette[1] == (128, 0, 0)
    assert manifest.num_images == 26
    assert manifest.has_masks
    assert manifest.has_saliency
    assert [info.num_rows for info in manifest.shards_of("train")] == [8, 8, 5]
    assert check(data) == []
    with pytest.raises(UserError, match="no split 'test' in this data; it has train, val"):
        manifest.shards_of("test")
    for info in manifest.shards:
        table = read_shard_table(data, info)
        assert table.schema.equals(SCHEMA)
        assert table.num_rows == info.num_rows
        ids = table["image_id"].to_pylist()
        assert ids == sorted(ids)
        assert len({name.split("_")[0] for name in ids}) == 1


def test_digests_do_not_depend_on_packing(toy, data, tmp_path):
    other = write_dataset(toy, str(tmp_path / "other"), rows_per_shard=5)
    same = load_manifest(data)
    assert other.splits == same.splits
    assert len(other.shards) != len(same.shards)
    changed = write_dataset(open_source("toy", num_train=21, num_val=5, size=32, seed=1), str(tmp_path / "changed"))
    assert all(changed.splits[split].digest != same.splits[split].digest for split in same.splits)


def test_preparing_twice_gives_the_same_bytes(toy, data, tmp_path):
    write_dataset(toy, str(tmp_path / "again"), rows_per_shard=8)
    for path in Path(data).iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert not list(Path(data).glob(".tmp-*"))


def test_columns(data):
    row = read_shard(data, load_manifest(data).shards[0], columns=["image_id", "labels"])[0]
    assert row == {"image_id": "train_000000", "labels": [0]}


def test_one_split_signature_a_shard():
    items = [Item(f"{place:02d}", None, (0,), splits=("a", "b") if place % 3 else ("a",)) for place in range(20)]
    items.append(Item("none", None, (0,)))
    plan = list(plan_shards(iter(items), rows_per_shard=6))
    assert sorted(len(group) for _, _, group in plan) == [1, 1, 6, 6, 6]
    assert all({item.splits for item in group} == {splits} for _, splits, group in plan)
    assert len({name for name, _, _ in plan}) == len(plan)
    assert "none" not in {item.image_id for _, _, group in plan for item in group}


def test_overlapping_splits_share_shards(tmp_path):
    rows = {name: {"image_id": name, "image": name.encode(), "labels": [0], "height": 1, "width": 1} for name in "abcd"}
    infos = [
        write_shard([rows["c"], rows["a"]], str(tmp_path / "0.parquet"), ("train", "all")),
        write_shard([rows["d"], rows["b"]], str(tmp_path / "1.parquet"), ("all",)),
    ]
    assert infos[0].splits == ("all", "train")
    assert infos[0].num_masks == 0
    assert infos[0].first_without_saliency == "a"
    source = Source("test", ["x"], (), load=None, splits=("train",))
    manifest = make_manifest(source, infos)
    assert {split: info.num_images for split, info in manifest.splits.items()} == {"train": 2, "all": 4}
    assert not manifest.has_masks
    assert not manifest.splits["train"].has_saliency
    assert manifest.first_without_saliency == "a"
    storage.write_json(str(tmp_path / "manifest.json"), manifest.model_dump(mode="json"))
    assert Rows(str(tmp_path), "all").ids == list("abcd")
    assert [row["image_id"] for row in Rows(str(tmp_path), "all")] == list("abcd")
    assert Rows(str(tmp_path), "train").ids == ["a", "c"]


def test_doubles_and_empty_splits_are_refused(tmp_path):
    row = {"image_id": "a", "image": b"", "labels": [], "height": 1, "width": 1}
    with pytest.raises(UserError, match="'a' comes twice"):
        write_shard([row, row], str(tmp_path / "x.parquet"))
    info = write_shard([row], str(tmp_path / "x.parquet"), ("train",))
    with pytest.raises(UserError, match="split 'val' has no images"):
        make_manifest(Source("test", ["x"], (), load=None, splits=("train", "val")), [info])
    with pytest.raises(UserError, match="no images in any split"):
        make_manifest(Source("test", ["x"], (), load=None), [])


@pytest.mark.parametrize("damage", ["flip", "gone", "short"])
def test_damaged_shard_is_found(data, damage):
    path = Path(data) / load_manifest(data).shards[1].path
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:100])
    (line,) = [str(problem) for problem in check(data)]
    assert path.name in line
    assert "prepare the data again" in line
    with pytest.raises(UserError, match=path.name):
        Rows(data, "train")
    if damage != "flip":
        with pytest.raises(UserError, match=path.name):
            read_shard(data, path.name)


def test_check_decodes_everything(toy, tmp_path):
    rows = [toy.load(item) for item in toy.items]
    rows[3]["image"] = rows[3]["image"][:200]
    rows[5]["mask"] = rows[6]["image"]
    rows[7]["width"] = 33
    info = write_shard(rows, str(tmp_path / "0.parquet"), ("train", "val"))
    storage.write_json(str(tmp_path / "manifest.json"), make_manifest(toy, [info]).model_dump(mode="json"))
    found = [str(problem) for problem in check(str(tmp_path))]
    assert len(found) == 3
    assert all(any(f"train_00000{index}" in line for line in found) for index in (3, 5, 7))


def test_wrong_counts_are_found(data):
    path = Path(data) / "manifest.json"
    value = json.loads(path.read_text())
    value["splits"]["val"]["num_images"] = 6
    value["shards"][0]["num_rows"] = 9
    path.write_text(json.dumps(value))
    found = " ".join(map(str, check(data)))
    assert "says 6 images, its shards hold 5" in found
    assert "holds 8 images, the manifest says 9" in found


def test_bad_manifests(tmp_path, data):
    with pytest.raises(UserError, match="wsss data prepare"):
        load_manifest(str(tmp_path / "nothing"))
    path = Path(data) / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "version": 2}))
    with pytest.raises(UserError, match="version 2 but this program reads 1"):
        load_manifest(data)
    path.write_text(json.dumps({**value, "classes": 3}))
    with pytest.raises(UserError, match=r"manifest\.json: classes"):
        load_manifest(data)
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_manifest(data)


def test_manifest_round_trip(data):
    manifest = load_manifest(data)
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest
    assert again.digest == manifest.digest


def test_rows_are_views_into_the_cached_file(data, cache):
    rows = Rows(data, "train")
    assert len(rows) == 21
    assert rows.ids == [f"train_{index:06d}" for index in range(21)]
    row = rows[10]
    assert isinstance(row["image"], memoryview)
    assert row["image_id"] == "train_000010"
    plain = read_shard(data, load_manifest(data).shards_of("train")[1])[2]
    assert {name: bytes(value) if isinstance(value, memoryview) else value for name, value in row.items()} == plain
    files = list(cache.rglob("*.arrow"))
    assert len(files) == 3
    assert files[0].parent.name == load_manifest(data).digest
    assert rows.labels()[10] == row["labels"]
    assert rows[-1]["image_id"] == "train_000020"
    with pytest.raises(IndexError):
        rows[21]


def test_cache_is_made_once_and_again_when_damaged(data, cache):
    Rows(data, "val")
    (path,) = cache.rglob("*.arrow")
    before = path.stat().st_mtime_ns
    Rows(data, "val")
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"junk")
    assert len(Rows(data, "val")[0]["image"]) > 100


def test_a_flipped_bit_of_a_copy_or_a_shard_is_found(data, cache):
    """A copy is made again, for the shard is whole; of a shard, whoever reads it learns what to do."""
    rows = [dict(row) for row in read_shard(data, load_manifest(data).shards_of("val")[0])]
    Rows(data, "val")
    (path,) = cache.rglob("*.arrow")
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert [bytes(row["image"]) for row in Rows(data, "val")] == [row["image"] for row in rows]
        assert path.read_bytes() == whole
    shard = Path(data) / load_manifest(data).shards_of("val")[0].path
    whole = shard.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            UserError, match=f"{shard.name}: (checksum mismatch|cannot be read).*prepare the data again"
        ):
            read_shard(data, shard.name)


def test_rows_without_some_columns_and_across_processes(data):
    rows = Rows(data, "val", columns=("image_id", "image", "labels"))
    assert set(rows[0]) == {"image_id", "image", "labels"}
    again = pickle.loads(pickle.dumps(rows))
    assert set(again[0]) == set(rows[0])
    assert bytes(again[3]["image"]) == bytes(rows[3]["image"])


def _count(data: str) -> int:
    return sum(len(Rows(data, "train")[index]["image"]) for index in range(21))


def test_processes_may_make_the_cache_at_once(data, cache):
    # Spawned, not forked: Arrow has threads. A worker that dies breaks the pool instead of hanging it.
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        counts = list(pool.map(_count, [data] * 6))
    assert len(set(counts)) == 1
    assert len(list(cache.rglob("*.arrow"))) == 3
    assert not list(cache.rglob(".tmp-*"))


def test_cache_is_renamed_into_place(data, cache, monkeypatch):
    """A process killed before the rename leaves no file that another one could take for whole."""

    def killed(*args):
        raise OSError("killed")

    monkeypatch.setattr("wsss_ray.data.shards.os.replace", killed)
    with pytest.raises(UserError, match="killed"):
        Rows(data, "val")
    assert not list(cache.rglob("*.arrow"))
    assert not list(cache.rglob(".tmp-*"))


def test_cache_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="WSSS_CACHE"):
        Rows(data, "val", cache=tmp_path / "file")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_other_file_systems(toy, tmp_path, monkeypatch, kind):
    uri = (tmp_path / "data").as_uri()
    if kind == "memory":
        memory = pafs._MockFileSystem()
        original = storage.open_fs
        monkeypatch.setattr(
            storage, "open_fs", lambda uri: (memory, uri[7:]) if uri.startswith("mock://") else original(uri)
        )
        uri = "mock://bucket/data"
    manifest = write_dataset(toy, uri, rows_per_shard=16)
    assert load_manifest(uri) == manifest
    assert check(uri) == []
    assert len(Rows(uri, "train")[20]["image"]) > 100
    assert read_shard(uri, manifest.shards[0].path)[0]["image_id"] == "train_000000"


def test_shards_are_plain_parquet(data):
    path = Path(data) / load_manifest(data).shards[0].path
    assert pq.read_table(path).column_names == SCHEMA.names
