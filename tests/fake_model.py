# SPDX-License-Identifier: Apache-2.0
"""A store with one run whose segmenter has random weights, without Ray, and the data it was made of."""

from __future__ import annotations

from pathlib import Path

import torch

from wsss_ray import storage
from wsss_ray.artifacts.network import LocalizerSpec, SegmenterSpec, encode_state
from wsss_ray.data.shards import write_dataset
from wsss_ray.data.sources import open_source
from wsss_ray.data.toy import ToyConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.nets.deeplab import DeepLabV2Config
from wsss_ray.recipe import NetConfig, Recipe, SegmentConfig, dump, validate


def fake_model(root: Path) -> Path:
    """Write it below ``root``: ``runs/cam-1``, ``data/d1`` and the artifacts ``train/seg`` and ``train/cam``."""
    source = open_source("toy", config=ToyConfig(num_classes=2, num_train=3, num_val=2, size=48))
    write_dataset(source, str(root / "data" / "d1"))
    segment = SegmentConfig(
        network=DeepLabV2Config(rates=(1, 2), multi_scale_input=False), net=NetConfig(), train=TrainConfig()
    )
    spec = SegmenterSpec(num_classes=2, segment=segment)
    torch.manual_seed(0)
    folder = root / "train" / "seg"
    storage.write_json(str(folder / "network.json"), spec.model_dump(mode="json"))
    network = spec.build()
    (folder / "model.safetensors").write_bytes(encode_state(network))
    method = {"name": "cam"}
    recipe: Recipe = validate(
        {"method": method, "refine": None, "predict": {"scales": [1.0, 1.5], "flip": False}}, "test"
    )
    run = root / "runs" / "cam-1"
    storage.write_bytes(str(run / "recipe.yaml"), dump(recipe).encode())
    made = {"segmenter": {"stage": "train", "digest": "seg"}, "network": {"stage": "train", "digest": "cam"}}
    storage.write_json(str(run / "run.json"), {"artifacts": made, "data": str(root / "data" / "d1"), "scores": {}})
    cam = LocalizerSpec(num_classes=2, localization={"method": method})
    storage.write_json(str(root / "train" / "cam" / "network.json"), cam.model_dump(mode="json"))
    return root
