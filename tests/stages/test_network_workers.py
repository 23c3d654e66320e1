# SPDX-License-Identifier: Apache-2.0
"""The workers of localize, refine and predict, without Ray: what they write is what the networks say unfused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss_ray.artifacts.network import (
    MODEL,
    NETWORK,
    AffinitySpec,
    LocalizerSpec,
    NetworkSpec,
    encode_state,
    open_affinity,
    open_localizer,
    open_predictor,
)
from wsss_ray.artifacts.tables import decode_maps, name_part, write_table
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.shards import read_shard, write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.predict import MaskPredictor, PredictConfig, read_masks
from wsss_ray.engine.train import TrainConfig
from wsss_ray.methods.cam import CAMConfig
from wsss_ray.methods.ssss.config import SSSSConfig
from wsss_ray.recipe import AffinityConfig, Localization, NetConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.psa import PSAConfig
from wsss_ray.stages.localize import LocalizeWorker
from wsss_ray.stages.predict import PredictFinisher, PredictReader
from wsss_ray.stages.refine import RefineWorker

NET = NetConfig(backbone="toy", options={"width": 8})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Toy images and the name of their first shard."""
    folder = str(tmp_path_factory.mktemp("data") / "toy")
    manifest = write_dataset(open_source("toy", num_train=7, num_val=2, size=48, num_classes=3), folder)
    return folder, manifest.shards[0].path


def save(spec: NetworkSpec, folder: Path) -> str:
    """A network of random weights as a training leaves it."""
    torch.manual_seed(0)
    network = spec.build()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d) and part.running_var is not None:
            part.running_var.uniform_(0.5, 2)
    folder.mkdir()
    (folder / MODEL).write_bytes(encode_state(network))
    (folder / NETWORK).write_text(spec.model_dump_json())
    return str(folder)


def read_rows(data: tuple[str, str]) -> list[Any]:
    return read_shard(*data)


def test_maps_of_a_shard_are_those_of_the_network(data: tuple[str, str], tmp_path: Path) -> None:
    localization = Localization(method=CAMConfig(), net=NET, localize=LocalizeConfig(scales=(0.5, 1.0)))
    network = save(LocalizerSpec(num_classes=3, localization=localization), tmp_path / "net")
    table = LocalizeWorker(data[0], network, localization, 3).make_table(data[1])
    trained = open_localizer(network)
    images = [LabelledImage(r["image_id"], decode_image(r["image"]), tuple(r["labels"])) for r in read_rows(data)]
    expected = read_class_maps(
        trained.localizer, images, localization.localize, localization.fusion, trained.on(batch_size=1)
    )
    found = [decode_maps(row) for row in table.to_pylist()]
    assert [one.image_id for one in found] == [image.image_id for image in images]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.classes, other.classes)
        assert other.maps.max() > 0.9
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-3)  # stored as float16


@pytest.mark.parametrize("refiner", [IRNConfig(train_radius=2, exp_times=2), PSAConfig(radius=2, exp_times=2)])
def test_masks_of_a_shard_are_those_of_one_image_at_a_time(data: Any, refiner: Any, tmp_path: Path) -> None:
    localization = Localization(method=CAMConfig(), net=NET, localize=LocalizeConfig(scales=(1.0,)))
    network = save(LocalizerSpec(num_classes=3, localization=localization), tmp_path / "net")
    maps = LocalizeWorker(data[0], network, localization, 3).make_table(data[1])
    (tmp_path / "maps").mkdir()
    write_table(maps, str(tmp_path / "maps" / name_part(data[1])))
    spec = AffinitySpec(num_classes=3, refiner=refiner, affinity=AffinityConfig(net=NET, train=TrainConfig()))
    affinity = save(spec, tmp_path / "affinity")
    table = RefineWorker(data[0], str(tmp_path / "maps"), refiner, affinity, 3).make_table(data[1])
    unfused, images = open_affinity(affinity).network, {row["image_id"]: row["image"] for row in read_rows(data)}
    equal = []
    for row, stored in zip(table.to_pylist(), maps.to_pylist(), strict=True):
        one = decode_maps(stored)
        assert row["image_id"] == one.image_id
        expected = refiner.refine(decode_image(images[one.image_id]), one, unfused)
        equal.append(np.mean(decode_mask(row["mask"]) == expected))
    assert np.mean(equal) > 0.999


def test_predictions_of_a_shard_are_those_of_the_network(data: tuple[str, str], tmp_path: Path) -> None:
    method = SSSSConfig(width=16, skip_channels=4, dilations=(1, 2), pamr_iterations=1, pamr_dilations=(1,))
    network = save(LocalizerSpec(num_classes=3, localization=Localization(method=method, net=NET)), tmp_path / "net")
    config = PredictConfig(scales=(0.5, 1.0))
    finisher = PredictFinisher(data[0], config)
    parts = dict(PredictReader(data[0], network, config, 3).read_parts(data[1]))
    rows = read_rows(data)
    assert sorted(parts) == list(range(len(rows)))
    trained = open_predictor(network)
    predictor = MaskPredictor(trained.segments, 4, config, trained.on(batch_size=1))
    equal = []
    for place, scores in predictor.score_images([decode_image(row["image"]) for row in rows]):
        assert parts[place].image_id == rows[place]["image_id"]
        labels = np.isin(np.arange(3), rows[place]["labels"])
        expected = read_masks(config, parts[place].image, scores, labels)
        mask = decode_mask(finisher.make_row(parts[place])["multi_scale"])
        equal.append(np.mean(mask == expected.multi_scale))
    assert np.mean(equal) > 0.999
