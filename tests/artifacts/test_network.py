# SPDX-License-Identifier: Apache-2.0
"""Networks as the steps use them: what a refiner's network is told, gated prediction in one pass, warnings, fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_ray.artifacts.network import AffinitySpec
from wsss_ray.config import read_changes
from wsss_ray.contracts import Batch, Progress
from wsss_ray.data.augment import NormalizeConfig
from wsss_ray.engine.fusion import Pass, fuse_present
from wsss_ray.engine.gate import GateConfig
from wsss_ray.engine.localize import LabelledImage, LocalizeConfig, read_class_maps
from wsss_ray.engine.passes import Device, make_inputs
from wsss_ray.engine.predict import ImageScores, MaskPredictor, PredictConfig, read_masks
from wsss_ray.engine.train import TrainConfig
from wsss_ray.methods.esol.network import ESOLConfig
from wsss_ray.methods.ssss.config import SSSSConfig
from wsss_ray.nets import build_backbone
from wsss_ray.recipe import AffinityConfig, NetConfig
from wsss_ray.refine.irn import IRNConfig
from wsss_ray.refine.psa import PSAConfig

CPU = Device(NormalizeConfig(), torch.device("cpu"))
IMAGE = np.random.default_rng(0).integers(0, 256, (36, 44, 3), dtype=np.uint8)


@pytest.mark.parametrize("refiner", [IRNConfig(train_radius=2), PSAConfig(radius=2)])
def test_affinity_networks_normalise_as_they_were_trained(refiner: Any) -> None:
    net = NetConfig(backbone="toy", normalize=NormalizeConfig(preset="caffe_bgr"), options={"width": 8})
    spec = AffinitySpec(num_classes=3, refiner=refiner, affinity=AffinityConfig(net=net, train=TrainConfig()))
    network: Any = spec.build()
    assert torch.equal(network.normalize(IMAGE), NormalizeConfig(preset="caffe_bgr").apply(IMAGE))
    assert spec.needs == frozenset({"mask"})


def test_batches_hold_what_the_refiner_needs() -> None:
    class Curious(IRNConfig):
        needs = frozenset({"mask", "saliency"})  # type: ignore[assignment]

    spec = AffinitySpec.model_construct(num_classes=3, refiner=Curious())
    assert spec.needs == frozenset({"mask", "saliency"})


@pytest.mark.parametrize("refiner", [IRNConfig(train_radius=2), PSAConfig(radius=2)])
def test_what_only_masks_read_trains_no_other_network(refiner: Any) -> None:
    affinity = AffinityConfig(net=NetConfig(backbone="toy", options={"width": 8}), train=TrainConfig())
    mask = torch.randint(0, 3, (2, 48, 48), generator=torch.Generator().manual_seed(0))
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    batch = Batch(image, torch.ones(2, 2), torch.ones(2, 1, 48, 48), image, mask=mask)

    def found(own: Any) -> tuple[Any, list[float]]:
        spec = AffinitySpec(num_classes=2, refiner=own, affinity=affinity)
        torch.manual_seed(0)
        network: Any = spec.build()
        parts = network.loss(batch, Progress(0, 0, 1, 1))
        return spec.settings, [float(part.detach()) for part in parts.values()]

    plain = found(refiner)
    read_by_masks = [name for name in type(refiner).model_fields if read_changes(type(refiner), name) == "masks"]
    assert read_by_masks
    for field in read_by_masks:
        value = getattr(refiner, field)
        changed = {"keep": 0.5, "precision": "bf16"}.get(field) or (value or 0) + 1
        assert found(refiner.model_copy(update={field: changed})) == plain, field
    if isinstance(refiner, IRNConfig):
        assert found(refiner.model_copy(update={"train_radius": 3}))[0] != plain[0]
    else:
        assert found(refiner.model_copy(update={"radius": 3}))[0] != plain[0]


class Counted(nn.Module):
    """Answers with constants and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def _run(self, images: Tensor) -> Tensor:
        self.passes += 1
        return torch.stack([images.mean(dim=1), images[:, 0], images[:, 1]], dim=1).softmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        return self._run(images)

    def logits(self, images: Tensor) -> Tensor:
        return self._run(images).mean(dim=(2, 3))[:, 1:]


class InOnePass(Counted):
    """The same in one pass."""

    def predict_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores = self._run(images)
        return scores, scores.mean(dim=(2, 3))[:, 1:]


def score(network: nn.Module, images: list[np.ndarray], config: PredictConfig) -> list[ImageScores]:
    predictor = MaskPredictor(network, 3, config, CPU)  # type: ignore[arg-type]
    found = dict(predictor.score_images(images))
    return [found[index] for index in range(len(images))]


def test_gated_prediction_runs_a_network_once_where_it_can() -> None:
    config = PredictConfig(scales=(0.5, 1.0), flip=True, gate=GateConfig(classes="scores"))
    found = []
    for network, per_view in ((Counted(), 2), (InOnePass(), 1)):
        found.append(score(network, [IMAGE, IMAGE], config))
        assert network.passes == per_view * len(config.scales)
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one.single, other.single)
        assert np.array_equal(one.multi, other.multi)
        assert one.logits is not None
        assert other.logits is not None
        assert np.array_equal(one.logits, other.logits)
        assert one.logits.shape == (4, 2)


@pytest.mark.parametrize("scales", [(0.5, 1.0), (1.0, 0.5)])
def test_the_single_scale_mask_knows_nothing_of_other_views(scales: tuple[float, ...]) -> None:
    """A class whose score passes the gate in the small view alone is predicted in the multi-scale mask alone."""

    class Sized(Counted):
        def logits(self, images: Tensor) -> Tensor:
            return torch.tensor([[9.0, 9.0 if images.shape[3] < 44 else -9.0]]).repeat(len(images), 1)

        def scores(self, images: Tensor) -> Tensor:
            self._run(images)
            return torch.tensor([0.1, 0.2, 0.7])[:, None, None].expand(len(images), 3, *images.shape[2:]).contiguous()

    for flip in (False, True):
        config = PredictConfig(scales=scales, flip=flip, gate=GateConfig(classes="scores"))
        masks = read_masks(config, IMAGE, score(Sized(), [IMAGE], config)[0], np.ones(2, dtype=bool))
        assert masks.crf is None
        assert np.unique(masks.single_scale).tolist() == [1]
        assert np.unique(masks.multi_scale).tolist() == [2]


@pytest.mark.parametrize("max_scores", [1, 3 * 36 * 44, 10**9])
def test_how_many_images_share_a_pass_changes_no_bit(max_scores: int) -> None:
    images = [IMAGE, IMAGE[:, ::-1].copy(), IMAGE[:20], IMAGE[::-1].copy()]
    config = PredictConfig(scales=(1.0, 0.5))
    few = dict(MaskPredictor(Counted(), 3, config, CPU, max_scores).score_images(images))  # type: ignore[arg-type]
    for index, one in enumerate(score(Counted(), images, config)):
        assert np.array_equal(few[index].single, one.single)
        assert np.array_equal(few[index].multi, one.multi)


@torch.inference_mode()
@pytest.mark.parametrize("flip", [False, True])
def test_adding_a_pair_before_it_is_enlarged_changes_rounding_alone(flip: bool) -> None:
    """The protocol enlarges every view by itself; up-sampling is linear."""

    class Coarse(Counted):
        def scores(self, images: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(images, 8, ceil_mode=True).softmax(1)

    config, network = PredictConfig(scales=(0.5, 1.0, 1.25), flip=flip), Coarse()
    views = []
    for scale in config.scales:
        inputs = make_inputs([IMAGE], scale, CPU)
        for flipped in (False, True)[: 1 + flip]:
            small = network.scores(inputs.flip(3)).flip(3) if flipped else network.scores(inputs)
            views.append(nn.functional.interpolate(small, IMAGE.shape[:2], mode="bilinear")[0].numpy())
    found = score(network, [IMAGE], config)[0]
    np.testing.assert_allclose(found.multi, np.mean(views, axis=0), atol=2e-6)
    np.testing.assert_allclose(found.single, views[2 if flip else 1], atol=1e-6)


def test_predicted_scores_are_scores_and_logits() -> None:
    config = SSSSConfig(width=16, skip_channels=4, dilations=(1, 2), pamr_iterations=1, pamr_dilations=(1,))
    network: Any = config.build(build_backbone("toy", width=8), 3).eval()
    images = torch.randn(2, 3, 40, 48)
    with torch.no_grad():
        scores, logits = network.predict_scores(images)
        assert torch.equal(scores, network.scores(images))
        assert torch.equal(logits, network.logits(images))
    assert scores.shape == (2, 4, 40, 48)
    assert SSSSConfig.single_stage


def test_warnings_of_esol_depend_on_the_phase() -> None:
    def history(outside: float) -> list[dict[str, float]]:
        lengths, losses = (1.5, 2.0, 2.5), (0.9, 0.7, 0.5)
        return [
            {"monitor/offset": length, "monitor/present_bce": loss, "monitor/outside": outside}
            for length, loss in zip(lengths, losses, strict=True)
        ]

    expansion, shrinkage = ESOLConfig(phase="expansion"), ESOLConfig(phase="shrinkage")
    assert str(expansion.warning(history(0.0))).startswith("the expansion ran away: epoch 2")
    assert shrinkage.warning(history(0.0)) is None
    assert "left the map" in str(shrinkage.warning(history(0.5)))
    assert SSSSConfig().warning(history(0.5)) is None
    assert expansion.warning([]) is None


BOTH = LabelledImage("a", IMAGE, (0, 1))


class Maps(nn.Module):
    """Two class maps at stride 8 that depend on the image."""

    def maps(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images[:, :2].abs(), 8, ceil_mode=True)


def test_full_size_maps_are_cropped_from_whole_cells() -> None:
    rule = ESOLConfig().fusion()
    assert rule.multiple == 16
    raw = Maps().maps(NormalizeConfig().apply(IMAGE)[None])
    labels = torch.ones(1, 2)
    for stride, size, crop in ((1, (48, 48), (36, 44)), (4, (9, 11), (9, 11))):
        config = LocalizeConfig(scales=(1.0,), flip=False, stride=stride, fusion=rule)
        found = read_class_maps(Maps(), [BOTH], config, rule, CPU)[0]
        expected = fuse_present([Pass(raw)], rule, size, labels, crop=crop).numpy()
        assert found.maps.shape[1:] == crop
        np.testing.assert_allclose(found.maps, expected, atol=1e-6)


@pytest.mark.parametrize("long_side", [22, 88])
def test_long_side_is_what_scale_one_means(long_side: int) -> None:
    """The maps of scales times the factor, on the grid of the image itself."""
    rule = ESOLConfig().fusion()
    found = []
    for config in (
        LocalizeConfig(scales=(0.5, 1.0), long_side=long_side, fusion=rule),
        LocalizeConfig(scales=(0.5 * long_side / 44, long_side / 44), fusion=rule),
    ):
        found.append(read_class_maps(Maps(), [BOTH], config, rule, CPU)[0].maps)
    assert found[0].shape == (2, 9, 11)
    assert np.array_equal(*found)
    sides: list[int] = []

    class Seen(Counted):
        def scores(self, images: Tensor) -> Tensor:
            sides.append(images.shape[3])
            return super().scores(images)

    predict = PredictConfig(scales=(1.0, 0.5), flip=False, long_side=long_side)
    one = score(Seen(), [IMAGE], predict)[0]
    assert sides == [long_side, long_side // 2]
    assert one.single.shape == one.multi.shape == (3, 36, 44)
    assert not np.array_equal(one.single, one.multi)
