# SPDX-License-Identifier: Apache-2.0
"""A prepared data set is opened into one value that answers what runs ask."""

from __future__ import annotations

import pytest

from wsss_ray.config import UserError
from wsss_ray.data.manifest import load_manifest, open_data
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig


def test_opened_data_names_classes_and_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(open_source("toy", config=ToyConfig(num_train=5, num_val=2, size=32)), "shards", rows_per_shard=3)
    data = open_data("shards")
    assert data.uri == str(tmp_path / "shards")
    assert data.manifest == load_manifest("shards")
    assert data.num_classes == 5
    assert data.labels == ("background", *data.manifest.classes)
    assert sum(count for _, count in data.shards("train")) == 5
    assert {name for name, _ in data.shards("val")} == {shard.path for shard in data.manifest.shards_of("val")}
    with pytest.raises(UserError, match="no split 'test'"):
        data.shards("test")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        open_data(str(tmp_path))
