# SPDX-License-Identifier: Apache-2.0
"""AffinityNet and its refiner against released PSA's numbers, and what must hold on any backbone and image size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.golden_rules import set_b
from tests.refine.test_random_walk import dense_affinity, dense_walk
from wsss_ray.config import UserError
from wsss_ray.contracts import Batch, ClassMaps, Progress, Trainable
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.grid import vote_mask
from wsss_ray.refine.pairs import compute_affinity_losses, label_pairs, list_search_offsets, take_pairs
from wsss_ray.refine.planes import add_power_background
from wsss_ray.refine.psa import AffinityNet, PSAConfig, compute_affinities, link_cells
from wsss_ray.refine.seeds import ConfidentPowerSeedsConfig, ConfidentSeedsConfig, average_blocks, pick_confident

PROGRESS = Progress(epoch=0, step=0, num_epochs=1, num_steps=1)
LABELS = RefinerConfig(name="labels")


class GivenTaps(Backbone):
    """A backbone that returns stored feature maps and remembers the images it saw."""

    def __init__(self, taps: dict[str, Tensor]) -> None:
        super().__init__()
        self.taps, self.seen = taps, torch.empty(0)
        self.channels = {name: tap.shape[1] for name, tap in taps.items()}
        self.strides = dict.fromkeys(taps, 8)
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen = images
        return self.taps


def released_net(arrays: dict[str, np.ndarray]) -> AffinityNet:
    """The golden file's head on its stored taps."""
    names = {"conv4": "feat_conv4", "conv5": "feat_conv5", "out": "feat_conv6"}
    net = AffinityNet(GivenTaps({k: torch.from_numpy(arrays[v]).requires_grad_() for k, v in names.items()}), 20)
    prefix, gains = str(arrays["rule_prefix"]), {"f8": float(arrays["gain_f8"]), "f9": float(arrays["gain_f9"])}
    ours = {"f8_3": net.reduce[0], "f8_4": net.reduce[1], "f8_5": net.reduce[2], "f9": net.mix}
    for key, shape in zip(arrays["rule_keys"].tolist(), arrays["rule_shapes"].tolist(), strict=True):
        weight = ours.pop(key.removesuffix(".weight")).weight
        assert str(list(weight.shape)) == shape
        weight.data.copy_(torch.from_numpy(set_b(key, weight.shape, prefix, gains[key[:2]])))
    assert not ours
    return net


def toy_net(**options) -> AffinityNet:
    torch.manual_seed(0)
    return AffinityNet(build_backbone("toy", width=16), num_classes=3, **{"radius": 3, **options})


def toy_batch(size: tuple[int, int] = (56, 72)) -> Batch:
    torch.manual_seed(5)
    mask = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, 5, 6))]
    mask = mask.repeat_interleave(13, 1).repeat_interleave(13, 2)[:, : size[0], : size[1]]
    inside = torch.ones(2, 1, *size)
    inside[:, :, :10] = 0
    mask[:, :10] = 255
    return Batch(torch.randn(2, 3, *size) * inside, torch.ones(2, 3), inside, torch.rand(2, 3, *size), mask=mask)


# pairs, labels, loss


def test_pairs_and_labels_match_released(golden):
    arrays = golden("b09_psa_pairs_labels.npz")
    assert list_search_offsets(5) == tuple(map(tuple, arrays["offsets"].tolist()))
    for shape in ("sq", "rect"):
        height, width = arrays[f"{shape}_size"].tolist()
        source, target = take_pairs(torch.arange(height * width).view(height, width), 5, list_search_offsets(5))
        assert np.array_equal(source[0].flatten().numpy(), arrays[f"{shape}_from"])
        assert np.array_equal(target.flatten(1).numpy(), arrays[f"{shape}_to"])
    for prefix in ("", "score_"):
        label = torch.from_numpy(arrays[prefix + "label"]).long()
        found = label_pairs(label[None], 5, list_search_offsets(5))
        for name, part in zip(("bg_pos", "fg_pos", "neg"), found, strict=True):
            assert np.array_equal(part[0].flatten(1).numpy(), arrays[prefix + name] > 0), prefix + name


def test_affinity_by_hand():
    features = torch.zeros(1, 2, 2, 3)
    features[0, :, 0, 2] = torch.tensor([1.0, -3.0])
    found = compute_affinities(features, 2)[0, :, 0]
    # one source, (0, 1); its neighbours right, below left, below, below right
    assert found.flatten().tolist() == pytest.approx([np.exp(-2), 1, 1, 1])


def test_head_and_gradients_match_released(golden):
    arrays = golden("b09_psa_affinity.npz")
    net = released_net(arrays)
    grid = arrays["feat_conv4"].shape[2:]
    found = compute_affinities(net.features(torch.zeros(1, 3, 8 * grid[0], 8 * grid[1])), 5)
    assert np.abs(found.detach().flatten(2).numpy() - arrays["aff"]).max() < 1e-6
    labels = label_pairs(torch.from_numpy(arrays["label"]).long()[None], 5, list_search_offsets(5))
    for name, part in zip(("bg", "fg", "neg"), labels, strict=True):
        assert int(part.sum()) == round(float(arrays[f"{name}_cnt"]))
        assert np.array_equal(part[0].flatten(1).numpy(), arrays["neg" if name == "neg" else f"{name}_pos"] > 0)
    parts = compute_affinity_losses(found, labels)
    shares = {"affinity_background": ("bg", 4), "affinity_foreground": ("fg", 4), "affinity_different": ("neg", 2)}
    for part, (name, share) in shares.items():
        assert share * parts[part].item() == pytest.approx(float(arrays[f"{name}_loss"]), abs=1e-6)
    total = torch.stack(list(parts.values())).sum()
    assert total.item() == pytest.approx(float(arrays["loss"]), abs=1e-6)
    total.backward()
    for tap, name in (("conv4", "conv4"), ("conv5", "conv5"), ("out", "conv6")):
        assert np.abs(net.backbone.taps[tap].grad.numpy() - arrays[f"grad_feat_{name}"]).max() < 1e-6
    assert np.abs(net.mix.weight.grad[::8, ::8, 0, 0].numpy() - arrays["grad_f9"]).max() < 1e-6
    assert np.abs(net.reduce[0].weight.grad[..., 0, 0].numpy() - arrays["grad_f8_3"]).max() < 1e-6


def test_votes_by_hand():
    mask = torch.tensor([[[1, 1, 2, 255, 9], [2, 255, 255, 255, 9], [0, 0, 4, 4, 9]]])
    inside = torch.ones(1, 1, 3, 5)
    assert vote_mask(mask, inside, 2).tolist() == [[[1, 255, 9], [0, 4, 9]]]
    inside[:, :, :, 1:4] = 0
    assert vote_mask(mask, inside, 2).tolist() == [[[1, 255, 9], [0, 255, 9]]]
    inside[:, :, 1, 0] = 0
    assert vote_mask(mask, inside, 2).tolist() == [[[1, 255, 9], [0, 255, 9]]]


def test_cells_of_one_label_match_released_labels(golden):
    """Where every pixel of a cell has the same label from the scores, voting and averaging scores agree."""
    arrays = golden("b09_psa_pairs_labels.npz")
    low, high = (arrays[f"score_{side}_f16"].astype(np.float32) for side in ("low", "high"))
    pixels = torch.from_numpy(pick_confident(low, high))
    side = pixels.shape[0] // arrays["score_label"].shape[0]
    cells = pixels.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2).flatten(2)
    whole = (cells == cells[..., :1]).all(dim=2).numpy()
    voted = vote_mask(pixels[None], torch.ones(1, 1, *pixels.shape), side)[0].numpy()
    assert whole.any()
    assert np.array_equal(voted[whole], arrays["score_label"][whole])


def test_votes_of_a_padded_crop_are_nearly_the_released_labels(golden):
    """Released PSA averages scores over the crop's cells, empty ones are unknown; we vote over each pixel's label."""
    arrays = golden("b09_psa_aff_padding.npz")
    side, (left, top) = int(arrays["crop_size"]), arrays["offset_left_top"].tolist()
    scores = {name: arrays[f"score_{name}"].astype(np.float32) for name in ("low", "high")}
    _, height, width = scores["low"].shape
    edges = ((0, 0), (top, side - top - height), (left, side - left - width))
    low, high = (np.pad(part, edges) for part in (scores["low"], scores["high"]))
    cell = side // arrays["label"].shape[0]
    pooled = [average_blocks(part, cell)[:, ::cell, ::cell] for part in (low, high)]
    assert np.array_equal(pick_confident(*pooled), arrays["label"])
    mask = torch.from_numpy(pick_confident(low, high))[None]
    inside = torch.zeros(1, 1, side, side)
    inside[:, :, top : top + height, left : left + width] = 1
    voted = vote_mask(mask, inside, cell)[0].numpy()
    assert (voted != arrays["label"]).mean() < 0.05
    empty = torch.nn.functional.max_pool2d(inside, cell)[0, 0].numpy() == 0
    assert (voted[empty] == 255).all()
    assert (arrays["label"][empty] == 255).all()


# the network


def test_training_images_are_padded_with_black(golden):
    arrays = golden("b09_psa_aff_padding.npz")
    side = int(arrays["crop_size"])
    left, top = arrays["offset_left_top"].tolist()
    height, width = arrays["img"].shape[:2]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image, inside = torch.zeros(1, 3, side, side), torch.zeros(1, 1, side, side)
    normal = ((torch.from_numpy(arrays["img"]).float() / 255 - mean) / std).permute(2, 0, 1)
    image[0, :, top : top + height, left : left + width] = normal
    inside[0, 0, top : top + height, left : left + width] = 1
    cells = side // 8
    mask = torch.zeros(1, side, side, dtype=torch.long)
    batch = Batch(image, torch.ones(1, 3), inside, image, mask=mask)
    for padding in ("black", "mean"):
        trunk = GivenTaps({name: torch.rand(1, 4, cells, cells) for name in ("conv4", "conv5", "out")})
        AffinityNet(trunk, 3, padding=padding).loss(batch, PROGRESS)
        same = np.abs(trunk.seen[0, :, ::8, ::8].numpy() - arrays["network_input_every8"]).max() < 1e-6
        assert same == (padding == "black")
        if padding == "black":
            assert np.abs(trunk.seen[0, :, 0].numpy() - arrays["network_input_row0"]).max() < 1e-6


def test_black_is_what_the_normalisation_makes_of_it():
    trunk = GivenTaps({name: torch.rand(1, 4, 12, 12) for name in ("conv4", "conv5", "out")})
    net = AffinityNet(trunk, 3)
    inside = torch.zeros(1, 1, 96, 96)
    inside[:, :, 8:] = 1
    batch = Batch(torch.ones(1, 3, 96, 96) * inside, torch.ones(1, 3), inside, inside, mask=inside[:, 0].long())
    net.loss(batch, PROGRESS)
    assert trunk.seen[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert (trunk.seen[:, :, 8:] == 1).all()
    net.normalize = lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() - 7
    net.loss(batch, PROGRESS)
    assert (trunk.seen[:, :, :8] == -7).all()


@pytest.mark.parametrize("backbone", ["toy", "resnet50", "squeezenet", "resnet38"])
def test_any_backbone_any_size(backbone):
    with torch.device("meta"):
        net = AffinityNet(build_backbone(backbone), num_classes=3).eval()
        for height, width in ((65, 74), (64, 96), (101, 47)):
            assert net.features(torch.empty(2, 3, height, width)).shape == (2, 448, -(-height // 8), -(-width // 8))


def test_learns_and_groups():
    net = toy_net().train()
    assert isinstance(net, Trainable)
    groups = net.param_groups()
    grouped = [id(p) for g in groups for p in g.params]
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    rates = {id(p): g.lr_multiplier for g in groups for p in g.params}
    assert {rates[id(p)] for p in net.reduce.parameters()} == {10.0}
    assert {rates[id(p)] for p in net.backbone.parameters()} == {1.0, 2.0}
    batch = toy_batch()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = torch.stack(list(net.loss(batch, PROGRESS).values())).sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_unknown_pixels_teach_nothing():
    net = toy_net()
    batch = toy_batch()
    batch.mask = torch.full_like(batch.mask, 255)
    loss = torch.stack(list(net.loss(batch, PROGRESS).values())).sum()
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in net.reduce.parameters())


def test_what_a_user_can_get_wrong():
    with pytest.raises(UserError, match="enlarge the training crop"):
        toy_net(radius=5).loss(toy_batch((32, 40)), PROGRESS)
    batch = toy_batch()
    batch.mask = None
    with pytest.raises(UserError, match="mask"):
        toy_net().loss(batch, PROGRESS)
    with pytest.raises(UserError, match="no tap 'conv9'"):
        toy_net(taps=["conv4", "conv5", "conv9"])
    maps = ClassMaps("a", np.array([0], np.int32), np.zeros((1, 4, 4), np.float32), (16, 16))
    with pytest.raises(UserError, match="trained AffinityNet"):
        PSAConfig(labels=LABELS).refine(np.zeros((16, 16, 3), np.uint8), maps)


# inference


def test_inference_matches_released(golden):
    arrays = golden("b09_psa_affinity.npz")
    net = released_net(arrays).eval()
    height, width = int(arrays["inf_H"]), int(arrays["inf_W"])
    image = np.zeros((height, width, 3), np.uint8)
    with torch.no_grad():
        features = net.features(torch.zeros(1, 3, *(8 * n for n in arrays["feat_conv4"].shape[2:])))[0]
    links = link_cells(features, 5)
    matrix = dense_affinity(links, list_search_offsets(5))
    assert np.abs(matrix[:, arrays["cols"]].numpy() - arrays["dense_cols"]).max() < 1e-6
    config = PSAConfig(labels=LABELS)
    maps = arrays["inf_cam_f16"].astype(np.float32)
    spread = config.spread_planes(torch.from_numpy(add_power_background(maps, config.alpha)), features)
    assert np.abs(spread.numpy() - arrays["inf_rw_present"]).max() < 1e-4
    mask = config.refine(image, ClassMaps("a", arrays["inf_keys"].astype(np.int32), maps, (height, width)), net)
    assert mask.dtype == np.uint8
    assert (mask != arrays["inf_pred"]).sum() <= 3


def test_walk_equals_the_dense_matrix():
    torch.manual_seed(0)
    features, planes = torch.randn(6, 7, 12), torch.rand(3, 53, 90)
    config = PSAConfig(labels=LABELS, radius=3, exp_times=5)
    scores = torch.nn.functional.pad(planes, (0, 6, 0, 3))
    cells = scores.unflatten(2, (12, 8)).unflatten(1, (7, 8)).mean(dim=(2, 4))
    expected = dense_walk(cells, dense_affinity(link_cells(features, 3), list_search_offsets(3)), 8, 5)
    assert (config.spread_planes(planes, features) - expected).abs().max() < 1e-5


def test_links_stop_before_the_border():
    links = link_cells(torch.zeros(4, 12, 13), 5)
    assert links.shape == (34, 12, 13)
    assert set(links.unique().tolist()) == {0.0, 1.0}
    assert (links[:, :8, 4:9] == 1).all()
    assert links.sum() == 34 * 8 * 5
    assert not link_cells(torch.zeros(4, 3, 20), 5).any()


def test_refining_has_no_dropout():
    class Dropping(GivenTaps):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {name: nn.functional.dropout(tap, 0.5, self.training) for name, tap in self.taps.items()}

    torch.manual_seed(0)
    net = AffinityNet(Dropping({name: torch.rand(1, 4, 12, 12) for name in ("conv4", "conv5", "out")}), 3)
    evidence = torch.rand(2, 96, 96).numpy()
    maps = ClassMaps("a", np.array([0, 1], np.int32), evidence, (96, 96))
    masks = [
        PSAConfig(labels=LABELS).refine(np.zeros((96, 96, 3), np.uint8), maps, part)
        for part in (net.eval(), net.train())
    ]
    assert len(np.unique(masks[0])) > 1
    assert np.array_equal(*masks)


def test_refine_any_size():
    net = toy_net().train()
    rng = np.random.default_rng(0)
    for height, width in ((37, 50), (16, 90), (5, 7)):
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        grid = (2, -(-height // 4), -(-width // 4))
        maps = ClassMaps("a", np.array([0, 2], np.int32), rng.random(grid, dtype=np.float32), (height, width))
        mask = PSAConfig(labels=LABELS).refine(image, maps, net)
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 1, 3}
        none = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, *grid[1:]), np.float32), (height, width))
        assert not PSAConfig(labels=LABELS).refine(image, none, net).any()
    strong = ClassMaps("a", np.array([4], np.int32), np.ones((1, 4, 6), np.float32), (32, 48))
    assert (PSAConfig(labels=LABELS).refine(np.zeros((32, 48, 3), np.uint8), strong, net) == 5).all()


def test_settings():
    config = PSAConfig(labels=LABELS)
    assert (config.radius, config.alpha, config.beta, config.exp_times, config.padding) == (5, 16, 8, 8, "black")
    net = PSAConfig(labels=LABELS, radius=4, padding="mean").build(build_backbone("toy", width=16), 3)
    assert (net.radius, net.padding, net.num_classes) == (4, "mean", 3)
    assert PSAConfig().labels == ConfidentPowerSeedsConfig()
    read = PSAConfig.model_validate({"name": "psa", "labels": {"name": "confident", "foreground": 0.4}})
    assert read.labels == ConfidentSeedsConfig(foreground=0.4)
    assert PSAConfig.model_validate(read.model_dump(mode="json")) == read
    for wrong in ({"alpha": 0}, {"padding": "white"}, {"bta": 1}, {"labels": 1}, {"labels": {"name": "no"}}):
        with pytest.raises(ValidationError):
            PSAConfig(**({"labels": LABELS} | wrong))


def test_images_of_one_size_together_or_alone():
    net = toy_net().eval()
    config = PSAConfig(exp_times=3)
    drawn = np.random.default_rng(0)
    images = [drawn.integers(0, 256, (69, 83, 3), dtype=np.uint8) for _ in range(4)]
    names = ([0, 2], [], [1], [0, 1, 3])
    maps = [
        ClassMaps(str(k), np.array(some, np.int32), drawn.random((len(some), 18, 21)).astype(np.float32), (69, 83))
        for k, some in enumerate(names)
    ]
    alone = [config.refine(image, one, net) for image, one in zip(images, maps, strict=True)]
    together = config.refine_many(images, maps, net)
    assert not together[1].any()
    assert len(np.unique(together[3])) > 2
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    fused = config.refine_many(images, maps, fuse_network(net))
    assert np.mean([np.mean(one == other) for one, other in zip(together, fused, strict=True)]) > 0.999
