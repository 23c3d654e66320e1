# SPDX-License-Identifier: Apache-2.0
"""The networks of the GPU kit: every method at ``paper`` scale, as the studies have it, built without them.

``gpu_methods.json`` holds the studies' settings as plain values, so that the kit needs neither Ray nor YAML;
``python -m benchmarks.gpu --write-settings`` makes it anew where the whole package is installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import nn

from wsss_ray.contracts import ClassMaps, FusionRule, Need
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.data.samples import Lookups
from wsss_ray.data.shards import Rows
from wsss_ray.engine.localize import LocalizeConfig
from wsss_ray.engine.predict import PredictConfig
from wsss_ray.engine.train import TrainConfig
from wsss_ray.methods import METHODS
from wsss_ray.methods.esol.network import Phase
from wsss_ray.nets import SEGMENTERS, build_backbone
from wsss_ray.registry import OWN

SETTINGS = Path(__file__).with_suffix(".json")
PLANS = ("paper", "toy")


@dataclass(frozen=True)
class Case:
    """One network, how it is trained, and how it is asked; localizers give maps, others masks, some both."""

    name: str
    settings: Mapping[str, Any]
    """``localization`` or ``segment``, and ``predict`` for what predicts masks."""

    @property
    def part(self) -> Mapping[str, Any]:
        """The settings with ``net`` and ``train``."""
        found: Mapping[str, Any] = self.settings.get("localization") or self.settings["segment"]
        return found

    @property
    def train(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig.model_validate(self.part["train"])

    @property
    def normalize(self) -> NormalizeConfig:
        """What its images go through."""
        return NormalizeConfig.model_validate(self.part["net"]["normalize"])

    @property
    def localize(self) -> LocalizeConfig | None:
        """How its maps are read; None for a segmenter."""
        return LocalizeConfig.model_validate(self.part["localize"]) if "localization" in self.settings else None

    @property
    def fusion(self) -> FusionRule:
        """How maps of several scales are fused."""
        return FusionRule.model_validate(self.part["localize"]["fusion"])

    @property
    def predict(self) -> PredictConfig | None:
        """How it predicts masks, without the CRF; None where it does not."""
        given = self.settings.get("predict")
        return None if given is None else PredictConfig.model_validate({**given, "crf": None})

    @property
    def needs(self) -> frozenset[Need]:
        """What its batches hold."""
        if "segment" in self.settings:
            return frozenset({"mask"})
        method = self.part["method"]
        return frozenset(METHODS[method["name"]].model_validate(method).needs)

    def build(self, num_classes: int) -> nn.Module:
        """The network, with random weights."""
        torch.manual_seed(0)
        if "segment" in self.settings:
            network = self.part["network"]
            config = SEGMENTERS[network["name"]].model_validate(network)
            return config.build(_build_backbone(self.part["net"]), num_classes + 1)
        return _build_localizer(self.part, num_classes)


def _build_backbone(net: Mapping[str, Any]) -> Any:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in net["options"].items()}
    return build_backbone(net["backbone"], net["output_stride"], **options)


def _build_localizer(part: Mapping[str, Any], num_classes: int) -> nn.Module:
    method = METHODS[part["method"]["name"]].model_validate(part["method"])
    backbone = _build_backbone(part["net"])
    if method.wants_base and part["base"] is not None:
        return method.build(backbone, num_classes, _build_localizer(part["base"], num_classes))
    return method.build(backbone, num_classes)


def read_cases(plan: str) -> list[Case]:
    """All networks at ``paper`` scale, or at ``toy`` scale."""
    found: dict[str, dict[str, Any]] = json.loads(SETTINGS.read_text(encoding="utf-8"))[plan]
    return [Case(name, settings) for name, settings in found.items()]


def collect_settings() -> dict[str, dict[str, Any]]:
    """What the studies say of every method, as plain values: plan -> name -> settings."""
    from wsss_ray.recipe import take_localizer
    from wsss_ray.studies import esol, resolve

    found: dict[str, dict[str, Any]] = {}
    for plan in PLANS:
        cases: dict[str, Any] = {}
        for name in sorted(METHODS):
            if METHODS.origin(name) != OWN:
                continue  # another package's
            recipe = resolve(name, scale=cast(Any, plan))
            predict = {"predict": recipe.predict.model_dump(mode="json")}
            parts = {name: take_localizer(recipe)}
            if name == "esol":
                parts = {f"esol, {phase}": esol.find_phase(recipe, phase) for phase in get_args(Phase)}
            for title, part in parts.items():
                single = predict if recipe.method.single_stage else {}
                cases[title] = {"localization": part.model_dump(mode="json"), **single}
            if recipe.segment is not None:
                title = f"{recipe.segment.network.name}, {recipe.segment.net.backbone}"
                cases.setdefault(title, {"segment": recipe.segment.model_dump(mode="json"), **predict})
        found[plan] = cases
    return found


def make_lookups(rows: Rows, num_classes: int) -> Lookups:
    """Class maps and pseudo masks as an earlier step would have left them: blocks of their images' labels."""
    found = {row["image_id"]: row for row in (rows[index] for index in range(len(rows)))}

    def draw_maps(image_id: str) -> ClassMaps:
        row = found[image_id]
        grid = (-(-row["height"] // 4), -(-row["width"] // 4))
        classes = np.asarray(row["labels"], np.int32)
        maps = np.random.default_rng(len(image_id)).random((len(classes), *grid), dtype=np.float32)
        return ClassMaps(image_id, classes, maps, (row["height"], row["width"]))

    def draw_mask(image_id: str) -> np.ndarray:
        row = found[image_id]
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        mask[row["height"] // 4 : row["height"] // 2] = min(row["labels"][0], num_classes - 1) + 1
        return mask

    return Lookups(mask=draw_mask, maps=draw_maps)
