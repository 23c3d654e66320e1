# SPDX-License-Identifier: Apache-2.0
"""IRNet and its refiner against released IRN's numbers, and what must hold on any backbone and image size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tests.golden_rules import fill_set_b, set_b, set_b_input
from wsss_ray.config import UserError
from wsss_ray.contracts import Batch, ClassMaps, Progress, Trainable
from wsss_ray.engine.fuse import fuse_network
from wsss_ray.nets import build_backbone
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.grid import sample_mask
from wsss_ray.refine.irn import IRNConfig, IRNet, compute_displacement_losses, select_confident
from wsss_ray.refine.pairs import (
    PairLabels,
    compute_affinity_losses,
    compute_source_grid,
    find_path_maximum,
    label_pairs,
    list_path_cells,
    list_path_offsets,
    take_pairs,
)
from wsss_ray.refine.seeds import ConfidentPowerSeedsConfig, ConfidentSeedsConfig

PROGRESS = Progress(epoch=0, step=0, num_epochs=1, num_steps=1)
LABELS = RefinerConfig(name="labels")


def toy_net(seed: int = 0, **options) -> IRNet:
    torch.manual_seed(seed)
    return IRNet(build_backbone("toy", width=16), num_classes=3, **{"radius": 3, **options})


def toy_batch(size: tuple[int, int] = (40, 52), num: int = 2) -> Batch:
    torch.manual_seed(5)
    mask = torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (num, 1 + size[0] // 12, 1 + size[1] // 12))]
    mask = mask.repeat_interleave(12, 1).repeat_interleave(12, 2)[:, : size[0], : size[1]]
    ones = torch.ones(num, 1, *size)
    return Batch(torch.randn(num, 3, *size), torch.ones(num, 3), ones, torch.rand(num, 3, *size), mask=mask)


class GivenEdges(IRNet):
    """An IRNet that returns a stored boundary map and remembers what it was asked."""

    def __init__(self, logits: torch.Tensor, **options) -> None:
        super().__init__(build_backbone("toy", width=16), num_classes=3, **options)
        self.logits, self.seen = logits, torch.empty(0)

    def edge_logits(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.logits


# pairs and paths


def test_paths_by_hand():
    assert set(list_path_cells((1, 1))) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(list_path_cells((0, 2))) == {(0, 0), (0, 1), (0, 2)}
    assert len(list_path_cells((2, 1))) == 6
    assert len(list_path_cells((3, 4))) == 10
    lengths = [len(list_path_cells(offset)) for offset in list_path_offsets(10)]
    assert len(lengths) == 152
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (2, 22)


def test_sources_of_a_training_crop():
    assert compute_source_grid((512 // 4, 512 // 4), 10) == (119, 110)
    source, target = take_pairs(torch.zeros(128, 128), 10, list_path_offsets(10))
    assert source.numel() == 13_090
    assert target.shape == (152, 119, 110)


def test_any_edge_on_the_path_closes_the_pair():
    for number, offset in enumerate(list_path_offsets(4)):
        for y, x in list_path_cells(offset):
            edge = torch.zeros(1, 8, 9)
            edge[0, 2 + y, 4 + x] = 1
            assert find_path_maximum(edge, 4)[0, number, 2, 4 - 3] == 1
        edge = torch.ones(1, 8, 9)
        for y, x in list_path_cells(offset):
            edge[0, 2 + y, 4 + x] = 0.25
        assert find_path_maximum(edge, 4)[0, number, 2, 4 - 3] == 0.25


def test_gradient_goes_to_the_largest_cell():
    torch.manual_seed(0)
    edge = torch.rand(2, 7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: find_path_maximum(e, 3), edge)
    with torch.no_grad():
        plain = find_path_maximum(edge.detach(), 3)
    assert torch.equal(find_path_maximum(edge, 3).detach(), plain)


def test_pair_labels_by_hand():
    mask = torch.tensor([[[0, 0, 7, 255], [0, 7, 7, 2]]])
    labels = label_pairs(mask, 2, ((0, 1), (1, 0), (1, 1), (1, -1)))
    # sources: row 0, columns 1 and 2
    assert labels.background[0, :, 0].tolist() == [[False, False], [False, False], [False, False], [True, False]]
    assert labels.foreground[0, :, 0].tolist() == [[False, False], [False, True], [False, False], [False, True]]
    assert labels.different[0, :, 0].tolist() == [[True, False], [True, False], [True, True], [False, False]]


def test_any_number_of_classes_is_valid():
    """The released validity test is a literal 21: classes above it must teach here."""
    mask = torch.full((1, 3, 5), 200)
    assert label_pairs(mask, 2, list_path_offsets(2)).foreground.all()
    assert not any(part.any() for part in label_pairs(torch.full((1, 3, 5), 255), 2, list_path_offsets(2)))


def test_loss_without_edges():
    """Affinity 1 everywhere: nothing to say on equal pairs, -ln(1e-5) = 11.51 on different ones."""
    labels = PairLabels(*(torch.zeros(1, 4, 3, 3, dtype=torch.bool) for _ in range(3)))
    labels.background[:, 0] = labels.foreground[:, 1] = labels.different[:, 2] = True
    parts = compute_affinity_losses(torch.ones(1, 4, 3, 3), labels)
    assert parts["affinity_background"].abs() < 1e-4
    assert parts["affinity_foreground"].abs() < 1e-4
    assert float(2 * parts["affinity_different"]) == pytest.approx(11.51, abs=0.02)
    half = compute_affinity_losses(torch.full((1, 4, 3, 3), 0.5), labels)
    assert [float(v) for v in half.values()] == pytest.approx([np.log(2) / 4, np.log(2) / 4, np.log(2) / 2], abs=1e-4)


def test_displacement_loss_by_hand():
    """Displacements towards one centroid differ by the pair's offset: no foreground loss, its size on background."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    towards = torch.stack([2 - rows, 3 - columns])[None]
    everywhere = torch.ones(1, len(list_path_offsets(3)), 4, 4, dtype=torch.bool)
    labels = PairLabels(everywhere, everywhere, ~everywhere)
    parts = compute_displacement_losses(towards, labels, 3)
    assert float(parts["displacement_foreground"]) == pytest.approx(0, abs=1e-6)
    size = np.abs(np.array(list_path_offsets(3))).mean()
    assert float(parts["displacement_background"]) == pytest.approx(size / 2, rel=1e-5)


def test_paths_match_released(golden):
    arrays = golden("b06_irn_paths.npz")
    for radius in (int(name[1:-5]) for name in arrays if name.endswith("_size")):
        offsets, lengths = arrays[f"r{radius}_dst"], arrays[f"r{radius}_path_len"]
        assert list_path_offsets(radius) == tuple(map(tuple, offsets.tolist()))
        for offset, length, cells in zip(offsets, lengths, arrays[f"r{radius}_path_cells"], strict=True):
            assert list_path_cells(tuple(offset.tolist())) == tuple(map(tuple, cells[:length].tolist()))
        height, width = arrays[f"r{radius}_size"].tolist()
        flat = torch.arange(height * width).view(1, height, width)
        source, target = take_pairs(flat, radius, list_path_offsets(radius))
        assert np.array_equal(source[0, 0].flatten().numpy(), arrays[f"r{radius}_src_index"])
        assert np.array_equal(target[0].flatten(1).numpy(), arrays[f"r{radius}_dst_index"])


def test_loss_and_gradients_match_released(golden):
    arrays = golden("b06_irn_affinity_loss.npz")
    radius = 1 + int(arrays["dst"].max())
    labels = label_pairs(torch.from_numpy(arrays["label"]).long(), radius, list_path_offsets(radius))
    for name, found in zip(("bg_pos", "fg_pos", "neg"), labels, strict=True):
        assert np.array_equal(found.flatten(2).numpy(), arrays[name] > 0), name
    logit = torch.from_numpy(arrays["edge_logit"]).requires_grad_()
    vectors = torch.from_numpy(arrays["disp"]).requires_grad_()
    affinity = 1 - find_path_maximum(logit[:, 0].sigmoid(), radius)
    assert np.abs(affinity.detach().flatten(2).numpy() - arrays["affinity"]).max() < 1e-6
    parts = compute_affinity_losses(affinity, labels) | compute_displacement_losses(vectors, labels, radius)
    expected = {
        "L_pos": 2 * (parts["affinity_background"] + parts["affinity_foreground"]),
        "L_neg": 2 * parts["affinity_different"],
        "L_dp_fg": 2 * parts["displacement_foreground"],
        "L_dp_bg": 2 * parts["displacement_background"],
        "L_total": torch.stack(list(parts.values())).sum(),
    }
    for name, value in expected.items():
        assert float(value.detach()) == pytest.approx(float(arrays[name]), rel=1e-6), name
    expected["L_total"].backward()
    assert np.abs(logit.grad.numpy() - arrays["grad_edge"]).max() < 1e-7
    assert np.abs(vectors.grad.numpy() - arrays["grad_disp"]).max() < 1e-7


# the network


def released_names(net: IRNet) -> dict[str, str]:
    """Released IRNet's head tensor names -> ours, for five taps; the mean shift of its instances is not ours."""
    names = {}
    for number in range(5):
        for part in ("0.weight", "1.weight", "1.bias"):
            names[f"fc_edge{number + 1}.{part}"] = f"edge.reduce.{number}.{part}"
            names[f"fc_dp{number + 1}.{part}"] = f"displacement.reduce.{number}.{part}"
    for part in ("0.weight", "1.weight", "1.bias"):
        names[f"fc_dp6.{part}"] = f"displacement.coarse.{part}"
        names[f"fc_dp7.{part}"] = f"displacement.fuse.{part}"
    names |= {"fc_edge6.weight": "edge.fuse.weight", "fc_edge6.bias": "edge.fuse.bias"}
    return names | {"fc_dp7.3.weight": "displacement.fuse.3.weight"}


def test_resnet50_heads_match_released(golden):
    arrays = golden("b07_irn_resnet50_rule.npz")
    prefix, gain = str(arrays["rule_prefix"]), float(arrays["gain"])
    net = IRNet(build_backbone("resnet50"), num_classes=20, displacement=True).eval()
    fill_set_b(net.backbone, prefix, gain, under="resnet50.")
    state, names = net.state_dict(), released_names(net)
    for key, shape in zip(arrays["irn_head_keys"].tolist(), arrays["irn_head_shapes"].tolist(), strict=True):
        if key == "fc_dp7.4.running_mean":
            mean = set_b("mean_shift.running_mean", arrays["mean_shift"].shape, prefix, gain)
            assert np.array_equal(mean, arrays["mean_shift"])
            continue
        own = names.pop(key)
        assert str(list(state[own].shape)) == shape, key
        state[own].copy_(torch.from_numpy(set_b(key, state[own].shape, prefix, gain)))
    assert not names
    images = torch.from_numpy(set_b_input("image", arrays["input_shape"], prefix))
    with torch.no_grad():
        taps, grid = net.features(images)
        edge, displacement = net.edge(taps, grid), net.displacement(taps, grid)
        assert torch.equal(net.edge_logits(images), edge[:, 0])
    assert (edge - torch.from_numpy(arrays["irn_edge_logits"])).abs().max() < 2e-5
    found = displacement - torch.from_numpy(arrays["mean_shift"])[:, None, None]
    assert (found - torch.from_numpy(arrays["irn_displacement_eval"])).abs().max() < 2e-5


@pytest.mark.parametrize("backbone", ["toy", "squeezenet", "resnet38"])
def test_any_backbone_any_size(backbone):
    with torch.device("meta"):
        net = IRNet(build_backbone(backbone), num_classes=3, displacement=True).eval()
        for height, width in ((65, 74), (64, 96), (101, 47)):
            images = torch.empty(2, 3, height, width)
            assert net.edge_logits(images).shape == (2, -(-height // 4), -(-width // 4))
            assert net.displacement(*net.features(images)).shape == (2, 2, -(-height // 4), -(-width // 4))


def test_maps_smaller_than_the_grid_are_stretched():
    net = IRNet(build_backbone("squeezenet", padded=False), num_classes=3, displacement=True)
    assert net.edge_logits(torch.randn(1, 3, 67, 90)).shape == (1, 17, 23)
    assert net.displacement(*net.features(torch.randn(1, 3, 67, 90))).shape == (1, 2, 17, 23)


def test_only_the_branches_learn():
    net = toy_net(displacement=True).train()
    assert isinstance(net, Trainable)
    assert not any(part.training for part in net.backbone.modules())
    assert net.edge.training
    groups = net.param_groups()
    assert [(g.name, g.lr_multiplier) for g in groups] == [("edge", 1.0), ("displacement", 10.0)]
    grouped = [id(p) for g in groups for p in g.params]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in net.backbone.parameters())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.SGD([{"params": g.params, "lr": g.lr_multiplier * 0.1} for g in groups])
    first = sum(net.loss(toy_batch(), PROGRESS).values())
    first.backward()
    optimiser.step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"edge", "displacement"}
    assert {id(p) for p in net.parameters() if p.grad is not None} == set(grouped)


def test_displacement_branch_leaves_the_edges_alone():
    gradients = []
    for displacement in (False, True):
        net = toy_net(seed=3, displacement=displacement)
        parts = net.loss(toy_batch(), PROGRESS)
        assert len(parts) == (5 if displacement else 3)
        sum(parts.values()).backward()
        gradients.append([p.grad for p in net.edge.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_learns_a_boundary():
    """Two halves of different classes: a few steps lower the loss and put the highest edges on the border."""
    net = toy_net(seed=1)
    mask = torch.ones(1, 64, 64, dtype=torch.long)
    mask[:, :, 32:] = 2
    image = (mask[:, None].float() * 2 - 3).expand(1, 3, 64, 64).contiguous()
    ones = torch.ones(1, 1, 64, 64)
    batch = Batch(image, torch.ones(1, 3), ones, image, mask=mask)
    optimiser = torch.optim.Adam(net.edge.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = sum(net.loss(batch, PROGRESS).values())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    column = net.eval().edges(image)[0].mean(dim=0)
    assert column[7:9].max() > 5 * column[:4].mean()
    assert column[7:9].max() > 5 * column[12:].mean()


def test_batch_without_known_pixels_is_finite():
    net = toy_net(displacement=True)
    batch = toy_batch()
    batch.mask = torch.full_like(batch.mask, 255)
    loss = sum(net.loss(batch, PROGRESS).values())
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in net.edge.parameters())


def test_what_a_user_can_get_wrong():
    with pytest.raises(UserError, match="lower the refiner's training radius"):
        toy_net(radius=10).loss(toy_batch(), PROGRESS)
    batch = toy_batch()
    batch.mask = None
    with pytest.raises(UserError, match="mask"):
        toy_net().loss(batch, PROGRESS)
    maps = ClassMaps("a", np.array([0], np.int32), np.zeros((1, 4, 4), np.float32), (16, 16))
    with pytest.raises(UserError, match="trained IRNet"):
        IRNConfig(labels=LABELS).refine(np.zeros((16, 16, 3), np.uint8), maps)


def test_labels_are_sampled_like_pil():
    mask = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 32, 48), dtype=np.uint8))
    for one, small in zip(mask, sample_mask(mask.long(), 4), strict=True):
        resized = Image.fromarray(one.numpy()).resize((12, 8), Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(resized), small.numpy())
    assert sample_mask(torch.arange(9).view(1, 1, 9), 4).tolist() == [[[2, 6, 8]]]


# inference


def test_edges_of_a_flipped_image_are_flipped():
    net = toy_net().eval()
    image = torch.randn(2, 3, 36, 52)
    assert (net.edges(image.flip(3)).flip(2) - net.edges(image)).abs().max() < 1e-6
    together = net.edges(image)
    assert (torch.cat([net.edges(p[None]) for p in image]) - together).abs().max() < 1e-6


def test_edge_rule_matches_released(golden):
    arrays = golden("b06_irn_edge_tta.npz")
    height, width, side = (int(arrays[name]) for name in ("H", "W", "crop_size"))
    net = GivenEdges(torch.from_numpy(arrays["edge_logits_padded"])[:, 0], canvas=side)
    image = torch.rand(1, 3, height, width) + 1
    found = net.edges(image)
    assert np.abs(found.numpy() - arrays["edge_out"]).max() < 1e-6
    assert list(net.seen.shape) == arrays["padded_shape"].tolist()
    assert torch.equal(net.seen[:, :, :height, :width], torch.cat([image, image.flip(3)]))
    zero = bool((net.seen[:, :, height:] == 0).all() and (net.seen[:, :, :, width:] == 0).all())
    assert zero == bool(arrays["pad_is_zero_right_bottom"])


def test_canvas_never_cuts():
    net = toy_net(canvas=32).eval()
    assert net.edges(torch.randn(1, 3, 40, 20)).shape == (1, 10, 5)


def test_mask_matches_released(golden):
    arrays = golden("b06_irn_random_walk.npz")
    height, width = int(arrays["H"]), int(arrays["W"])
    edge = torch.from_numpy(arrays["edge"])
    logit = torch.logit(edge)
    net = GivenEdges(torch.cat([logit, logit.flip(2)]))
    maps = ClassMaps("a", arrays["keys"].astype(np.int32), arrays["cams"], (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    config = IRNConfig(labels=LABELS)
    planes = config.compute_scores(image, maps, net)
    assert np.abs(planes.numpy() - arrays["score_with_bg"]).max() < 2e-4
    mask = config.refine(image, maps, net)
    assert mask.dtype == np.uint8
    assert (mask != arrays["pred"]).sum() <= 3


def test_confidence_matches_released(golden):
    arrays = golden("b05_ktse_irn_extras.npz")
    planes = torch.from_numpy(arrays["conf_score"])
    assert np.array_equal(arrays["conf_keys"][planes.argmax(dim=0).numpy()], arrays["conf_pred"])
    assert np.array_equal(select_confident(planes, 0.5).numpy(), arrays["conf_mask"] > 0)


def test_confidence_by_hand():
    planes = torch.tensor([[[0.9, 0.5, 0.6, 0.1, 0.1]], [[0.1, 0.4, 0.1, 0.2, 0.9]]])
    assert select_confident(planes, 0.5).tolist() == [[True, False, False, False, True]]
    assert select_confident(planes, 0.99).tolist() == [[True, False, True, False, True]]
    assert select_confident(planes, 1).all()


def test_refine_by_hand():
    """Two halves and a wall between: each takes its own class, and a class of little evidence becomes background."""
    logit = torch.full((1, 8, 12), -20.0)
    logit[:, :, 6] = 20
    net = GivenEdges(torch.cat([logit, logit.flip(2)]))
    evidence = np.zeros((2, 8, 12), np.float32)
    evidence[0, 3, 2] = 1
    evidence[1, 4, 9] = 0.9
    maps = ClassMaps("a", np.array([1, 6], np.int32), evidence, (30, 46))
    image = np.zeros((30, 46, 3), np.uint8)
    mask = IRNConfig(labels=LABELS).refine(image, maps, net)
    assert mask.shape == (30, 46)
    assert set(np.unique(mask)) == {0, 2, 7}
    assert (mask[:, :20] == 2).all()
    assert (mask[:, 32:] == 7).all()
    weak = ClassMaps("a", maps.classes, evidence * np.array([1, 0.2], np.float32)[:, None, None], (30, 46))
    assert set(np.unique(IRNConfig(labels=LABELS).refine(image, weak, net))) == {0, 2}
    assert (IRNConfig(labels=LABELS, background=2).refine(image, maps, net) == 0).all()
    half = IRNConfig(labels=LABELS, keep=0.5).refine(image, maps, net)
    assert 0.45 < (half != 255).mean() < 0.51


def test_refine_on_stored_grids_of_any_size():
    net = toy_net().eval()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (37, 50, 3), dtype=np.uint8)
    for grid in ((10, 13), (37, 50), (5, 7)):
        maps = ClassMaps("a", np.array([0, 2], np.int32), rng.random((2, *grid), dtype=np.float32), (37, 50))
        mask = IRNConfig(labels=LABELS).refine(image, maps, net)
        assert mask.shape == (37, 50)
        assert set(np.unique(mask)) <= {0, 1, 3}
        assert np.array_equal(mask, IRNConfig(labels=LABELS).refine(image, maps, net))
    none = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, 10, 13), np.float32), (37, 50))
    assert not IRNConfig(labels=LABELS).refine(image, none, net).any()
    nothing = ClassMaps("a", np.array([0], np.int32), np.zeros((1, 10, 13), np.float32), (37, 50))
    assert not IRNConfig(labels=LABELS).refine(image, nothing, net).any()


def test_settings():
    config = IRNConfig(labels=LABELS)
    assert (config.train_radius, config.radius, config.beta, config.exp_times) == (10, 5, 10, 8)
    assert (config.background, config.displacement, config.keep, config.trainable) == (0.25, False, 1.0, True)
    net = IRNConfig(labels=LABELS, train_radius=4, displacement=True, canvas=64).build(
        build_backbone("toy", width=16), 3
    )
    assert (net.radius, net.canvas, net.displacement is None, net.num_classes) == (4, 64, False, 3)
    assert IRNConfig().labels == ConfidentSeedsConfig()
    read = IRNConfig.model_validate({"name": "irn", "labels": {"name": "confident_power", "alpha_low": 2}})
    assert read.labels == ConfidentPowerSeedsConfig(alpha_low=2)
    assert IRNConfig.model_validate(read.model_dump(mode="json")) == read
    for wrong in (
        {"keep": 0},
        {"radius": 0},
        {"beat": 3},
        {"labels": 3},
        {"labels": {"name": "no"}},
        {"exp_times": -1},
    ):
        with pytest.raises(ValidationError):
            IRNConfig(**({"labels": LABELS} | wrong))


def test_the_network_says_how_images_are_normalised():
    net = GivenEdges(torch.zeros(2, 2, 2))
    maps = ClassMaps("a", np.array([0], np.int32), np.ones((1, 2, 2), np.float32), (8, 8))
    image = np.full((8, 8, 3), 51, np.uint8)
    IRNConfig(labels=LABELS).refine(image, maps, net)
    expected = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert (net.seen[0, :, 0, 0] - expected).abs().max() < 1e-6
    net.normalize = lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() - 50
    IRNConfig(labels=LABELS).refine(image, maps, net)
    assert (net.seen == 1).all()


def test_images_of_one_size_together_or_alone():
    net = toy_net().eval()
    config = IRNConfig(labels=LABELS, exp_times=3, keep=0.6)
    drawn = np.random.default_rng(0)
    images = [drawn.integers(0, 256, (37, 50, 3), dtype=np.uint8) for _ in range(4)]
    names = ([0, 2], [], [1], [0, 1, 3])
    maps = [
        ClassMaps(str(k), np.array(some, np.int32), drawn.random((len(some), 10, 13)).astype(np.float32), (37, 50))
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
