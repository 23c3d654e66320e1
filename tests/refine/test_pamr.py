# SPDX-License-Identifier: Apache-2.0
"""PAMR and PAR against the released modules, and the behaviour their papers promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsss_ray.config import UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine import pamr as module
from wsss_ray.refine.pamr import (
    PAMRConfig,
    PARConfig,
    compute_pamr_weights,
    compute_par_weights,
    compute_position_weights,
    list_neighbours,
    refine_with_pamr,
    refine_with_par,
)

Golden = Callable[[str], dict[str, np.ndarray]]
FUNCTIONS = {"par": refine_with_par, "pamr": refine_with_pamr}
TOLERANCE = 5e-6


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_released_module(golden: Golden, name: str) -> None:
    data = golden(f"b01_{name}.npz")
    for k in range(int(data["n_cases"])):
        guide, mask = torch.from_numpy(data[f"c{k}_guide"]), torch.from_numpy(data[f"c{k}_mask"])
        refined = FUNCTIONS[name](guide, mask, int(data[f"c{k}_iters"]), data[f"c{k}_dilations"].tolist())
        np.testing.assert_allclose(refined.numpy(), data[f"c{k}_out"], atol=TOLERANCE)
    ones = torch.ones_like(torch.from_numpy(data["c0_guide"]))[:, :1]
    constant = FUNCTIONS[name](torch.from_numpy(data["c0_guide"]), ones)
    np.testing.assert_allclose(constant[:, :, ::6, ::6].numpy(), data["const_out"], atol=TOLERANCE)


def test_order_and_distance_of_neighbours(golden: Golden) -> None:
    distances = [float(np.hypot(dy, dx)) for dy, dx in list_neighbours((1, 2, 4, 8, 12, 24))]
    np.testing.assert_allclose(distances, golden("b01_par.npz")["pos_dist_full"], atol=1e-5)


def test_share_of_the_near_rings() -> None:
    rings = compute_position_weights().view(6, 8).sum(dim=1)
    assert rings[:2].tolist() == pytest.approx([0.579, 0.356], abs=5e-4)


@pytest.mark.parametrize(("name", "grown"), [("par", 1.01**10), ("pamr", 1.0)])
def test_a_constant_mask(name: str, grown: float) -> None:
    refined = FUNCTIONS[name](noise(2, 3, 33, 29), torch.ones(2, 1, 33, 29))
    torch.testing.assert_close(refined, torch.full_like(refined, grown), atol=1e-5, rtol=0)


def test_a_constant_image_spreads_evenly_and_leaves_out_the_centre() -> None:
    weights = compute_pamr_weights(torch.full((1, 3, 60, 60), 0.3))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 48))
    mask = torch.zeros(1, 1, 60, 60)
    mask[0, 0, 30, 30] = 1
    spread = refine_with_pamr(torch.full((1, 3, 60, 60), 0.3), mask, num_iterations=1)[0, 0]
    assert spread[30, 30] == 0
    expected = torch.zeros(60, 60)
    for dy, dx in list_neighbours((1, 2, 4, 8, 12, 24)):
        expected[30 - dy, 30 - dx] = 1 / 48
    torch.testing.assert_close(spread, expected)


def test_pamr_keeps_the_sum_over_masks() -> None:
    masks = noise(2, 5, 24, 31, seed=1).softmax(dim=1)
    refined = refine_with_pamr(noise(2, 3, 24, 31), masks)
    torch.testing.assert_close(refined.sum(dim=1), torch.ones(2, 24, 31))


def test_pamr_by_hand() -> None:
    """5 x 5, columns 0-1 black and 2-4 white, one marked pixel at (2, 2)."""
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, :, 2:] = 1
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2, 2] = 1
    once = refine_with_pamr(image, mask, 1, (1,))[0, 0]
    expected = torch.zeros(5, 5)
    expected[1] = expected[3] = torch.tensor([0, 0, 0.2, 0.125, 0])
    expected[2] = torch.tensor([0, 0, 0, 0.125, 0])
    torch.testing.assert_close(once, expected, atol=1e-4, rtol=0)
    two = refine_with_pamr(image, mask, 1, (1, 2))[0, 0]
    marked = {(0, 2): 0.1, (0, 4): 0.0625, (1, 2): 0.1, (1, 3): 0.07692, (2, 3): 0.07692, (2, 4): 0.0625}
    for (y, x), value in marked.items():
        assert two[y, x].item() == pytest.approx(value, abs=2e-5)
        assert two[4 - y, x].item() == pytest.approx(value, abs=2e-5)
    many = refine_with_pamr(image, mask, 10, (1,))[0, 0]
    assert many[:, 2:].min() > 0.0474
    assert many[:, 2:].max() < 0.0479
    assert many[:, :2].max() < 1e-6


def by_loops(image: np.ndarray, mask: np.ndarray, dilations: tuple[int, ...], colour_only: bool) -> np.ndarray:
    """One round of PAMR (``colour_only``) or PAR, pixel by pixel in float64."""
    _, height, width = image.shape
    steps = [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    distance = np.array([np.hypot(*step) for step in steps])
    near = np.exp(-((distance / (0.3 * distance.std(ddof=1))) ** 2))
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            there = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
            values = np.stack([image[:, v, u] for v, u in there])
            gap = np.abs(values - image[:, y, x])
            if colour_only:
                counted = np.concatenate([values, np.repeat(image[None, :, y, x], len(dilations), axis=0)])
                weights = np.exp(-(gap / (0.1 * counted.std(axis=0, ddof=1))).mean(axis=1))
                weights /= weights.sum()
            else:
                weights = np.exp(-((gap / (0.3 * values.std(axis=0, ddof=1))) ** 2).mean(axis=1))
                weights = weights / weights.sum() + 0.01 * near / near.sum()
            result[y, x] = sum(weight * mask[v, u] for weight, (v, u) in zip(weights, there, strict=True))
    return result


@pytest.mark.parametrize(("function", "colour_only"), [(refine_with_pamr, True), (refine_with_par, False)])
def test_against_loops(function: Callable[..., torch.Tensor], colour_only: bool) -> None:
    image, mask = noise(1, 3, 7, 9).double(), noise(1, 1, 7, 9, seed=1).double()
    expected = by_loops(image[0].numpy(), mask[0, 0].numpy(), (1, 3), colour_only)
    np.testing.assert_allclose(function(image, mask, 1, (1, 3))[0, 0].numpy(), expected, atol=1e-6)


def test_masks_are_resized_corner_to_corner() -> None:
    image = noise(1, 3, 5, 5)
    small = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    ramp = torch.linspace(0, 1, 5).expand(1, 1, 5, 5)
    torch.testing.assert_close(refine_with_pamr(image, small, 2, (1,)), refine_with_pamr(image, ramp, 2, (1,)))


def test_par_stops_a_leak_at_an_edge() -> None:
    image = torch.full((1, 3, 64, 64), 0.2)
    image[..., 32:] = 0.8
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :36] = 1
    refined = refine_with_par(image, mask)[0, 0] / 1.01**10
    assert refined[:, 32:].max() <= 0.11
    assert refined[:, :32].min() >= 0.99


@pytest.mark.parametrize("weights", [compute_par_weights, compute_pamr_weights])
def test_brightness_and_contrast_of_a_channel_do_not_matter(weights: Callable[[torch.Tensor], torch.Tensor]) -> None:
    image = noise(1, 3, 20, 22)
    scale, shift = torch.tensor([255.0, 3, 0.5]).view(3, 1, 1), torch.tensor([7.0, -1, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(weights(image), weights(image * scale + shift), atol=1e-5, rtol=1e-3)
    assert not torch.allclose(weights(image), weights(image.square()), atol=1e-3)


def test_par_does_not_see_the_guides_units() -> None:
    torch.manual_seed(6)
    image, masks = torch.rand(1, 3, 20, 24), torch.rand(1, 3, 20, 24)
    torch.testing.assert_close(
        refine_with_par(255 * image + 7, masks), refine_with_par(image, masks), rtol=0, atol=1e-5
    )


def test_planes_of_any_layout_give_the_same_bits() -> None:
    torch.manual_seed(7)
    image, masks = torch.rand(2, 3, 20, 24), torch.rand(2, 5, 20, 24)
    other = refine_with_par(image.to(memory_format=torch.channels_last), masks.to(memory_format=torch.channels_last))
    assert torch.equal(other, refine_with_par(image, masks))


def test_a_batch_in_parts_is_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = noise(3, 3, 12, 15), noise(3, 2, 6, 8, seed=2)
    whole = refine_with_pamr(image, masks, 2)
    monkeypatch.setattr(module, "WEIGHTS_LIMIT", 1)
    alone = torch.cat([refine_with_pamr(image[k : k + 1], masks[k : k + 1], 2) for k in range(3)])
    # Not to the bit: with several threads the softmax of a larger block is summed in another order.
    torch.testing.assert_close(refine_with_pamr(image, masks, 2), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)


def test_dilations_larger_than_the_image() -> None:
    assert torch.isfinite(refine_with_par(noise(1, 3, 1, 3), noise(1, 2, 1, 3))).all()


def test_no_gradient_and_no_half_precision_sums() -> None:
    masks = noise(1, 2, 9, 9).requires_grad_()
    assert not refine_with_pamr(noise(1, 3, 9, 9), masks).requires_grad
    assert refine_with_pamr(noise(1, 3, 9, 9), masks.detach().bfloat16()).dtype == torch.float32


def test_one_image_per_mask_stack() -> None:
    with pytest.raises(UserError, match="one image per mask"):
        refine_with_pamr(noise(2, 3, 9, 9), noise(1, 2, 9, 9))


@pytest.mark.parametrize("refiner", [PAMRConfig(), PARConfig(), PARConfig(grid="maps", softmax=True)])
def test_refiner_moves_a_leak_back_to_the_edge(refiner: PAMRConfig | PARConfig) -> None:
    image = np.full((64, 64, 3), 50, np.uint8)
    image[:, 32:] = 200
    values = np.zeros((1, 32, 32), np.float32)
    values[:, :, :18] = 0.9
    maps = ClassMaps("a", np.array([6], np.int32), values, (64, 64))
    mask = refiner.refine(image, maps)
    assert mask.dtype == np.uint8
    assert mask.shape == (64, 64)
    expected = np.zeros((64, 64), np.uint8)
    expected[:, :32] = 7
    assert (mask != expected).mean() < 0.02
    nothing = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, 2, 2), np.float32), (5, 7))
    assert not refiner.refine(np.zeros((5, 7, 3), np.uint8), nothing).any()
    assert type(refiner).model_validate(refiner.model_dump(mode="json")) == refiner
