# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution: ordinary at zero offsets, right slopes, right channel order, right border."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.nets.deform import DeformConv2d, Geometry, deform_conv2d, find_torchvision_operator, sample_places

SAME = Geometry(padding=(1, 1))
"""Of a 3x3 kernel."""
KERNELS = [
    ((3, 3), SAME),
    ((1, 1), Geometry()),
    ((3, 3), Geometry((2, 2), (1, 1))),
    ((3, 3), Geometry((1, 1), (2, 2), (2, 2))),
    ((3, 1), Geometry((2, 1), (1, 0))),
    ((2, 3), Geometry((1, 2), (0, 2), (1, 2))),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation)


def grid_of(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, int]:
    height, width = convolve(x, weight, None, geometry).shape[2:]
    return height, width


@pytest.mark.parametrize(("kernel", "geometry"), KERNELS)
def test_zero_offsets_are_the_ordinary_convolution(kernel: tuple[int, int], geometry: Geometry) -> None:
    x, weight, bias = draw(2, 3, 9, 7), draw(4, 3, *kernel, seed=1), draw(4, seed=2)
    offset = x.new_zeros(2, 2 * kernel[0] * kernel[1], *grid_of(x, weight, geometry))
    ours = deform_conv2d(x, offset, weight, bias, geometry, backend="torch")
    assert (ours - convolve(x, weight, bias, geometry)).abs().max() < 1e-12


def test_single_cell_map() -> None:
    x, weight = draw(1, 2, 1, 1), draw(3, 2, 3, 3, seed=1)
    ours = deform_conv2d(x, x.new_zeros(1, 18, 1, 1), weight, None, SAME, backend="torch")
    assert torch.allclose(ours, F.conv2d(x, weight, None, 1, 1), atol=1e-12)


@pytest.mark.parametrize(("kernel", "geometry"), KERNELS[:4])
def test_slopes_are_those_of_finite_differences(kernel: tuple[int, int], geometry: Geometry) -> None:
    x, weight, bias = draw(2, 2, 4, 3), draw(1, 2, *kernel, seed=1), draw(1, seed=2)
    # Places kept 0.1 away from whole numbers, where the interpolation has a kink; some lie outside the map.
    shape = (2, 2 * kernel[0] * kernel[1], *grid_of(x, weight, geometry))
    random = torch.Generator().manual_seed(3)
    offset = 0.1 + 0.8 * torch.rand(shape, generator=random, dtype=torch.float64)
    offset += torch.randint(-3, 3, shape, generator=random)
    inputs: Any = [value.requires_grad_() for value in (x, offset, weight, bias)]
    function: Any = deform_conv2d
    assert torch.autograd.gradcheck(lambda *given: function(*given, geometry, "torch"), inputs)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 2), (-2, 3)])
def test_whole_offsets_shift_the_image(dy: int, dx: int) -> None:
    x, weight = draw(2, 3, 8, 9), draw(4, 3, 3, 3, seed=1)
    offset = x.new_zeros(2, 9, 2, 8, 9)
    offset[:, :, 0], offset[:, :, 1] = dy, dx
    # Reading (dy, dx) further on = convolving the map moved by (-dy, -dx), with margins so that zeros move in.
    wide = F.pad(x, (5, 5, 5, 5))
    moved = wide.roll((-dy, -dx), (2, 3))
    expected = F.conv2d(moved, weight, None, 1, 1)[..., 5:-5, 5:-5]
    ours = deform_conv2d(x, offset.flatten(1, 2), weight, None, SAME, backend="torch")
    assert (ours - expected).abs().max() < 1e-12


def test_one_tap_by_hand() -> None:
    # One 2 x 2 map, a 1 x 1 kernel of weight 10, the sample of the first cell moved to (0.25, 0.5):
    # 0.75 * (1 + 2) / 2 + 0.25 * (3 + 4) / 2 = 2. Moved to (-0.5, 0): half of 1. Moved to (1, 1.75): a quarter of 4.
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    for place, value in (((0.25, 0.5), 2.0), ((-0.5, 0.0), 0.5), ((1.0, 1.75), 1.0), ((-1.0, 0.0), 0.0)):
        offset = torch.zeros(1, 2, 2, 2)
        offset[0, :, 0, 0] = torch.tensor(place)
        ours = deform_conv2d(x, offset, torch.full((1, 1, 1, 1), 10.0), backend="torch")
        assert ours[0, 0, 0, 0].item() == pytest.approx(10 * value)
        assert ours.flatten()[1:].tolist() == pytest.approx([20.0, 30.0, 40.0])


def test_channel_order_is_row_then_column_per_kernel_point() -> None:
    # Kernel point 5 of a 3 x 3 kernel is (row 1, column 2); only it is moved, by (dy, dx) = (2, -1).
    offset = torch.zeros(1, 18, 4, 4)
    offset[:, 10], offset[:, 11] = 2.0, -1.0
    down, across = sample_places(offset, (3, 3), SAME)
    assert (down[0, 5, 1, 1].item(), across[0, 5, 1, 1].item()) == (1 + 0 + 2, 1 + 1 - 1)
    assert (down[0, 4, 1, 1].item(), across[0, 4, 1, 1].item()) == (1, 1)
    assert (down[0, 2, 0, 0].item(), across[0, 2, 0, 0].item()) == (-1, 1)


@pytest.mark.parametrize("side", [7, 28, 31, 32])
def test_slope_on_a_cell_is_towards_larger_coordinates(side: int) -> None:
    # Zero-initialised offsets learn from these slopes alone; in single precision too they are all of one side.
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    offset = torch.zeros(1, 2, side, side, requires_grad=True)
    deform_conv2d(x, offset, torch.ones(1, 1, 1, 1), backend="torch").sum().backward()
    assert offset.grad is not None
    beyond = F.pad(x, (0, 1, 0, 1))
    assert torch.allclose(offset.grad[:, :1], beyond[..., 1:, :-1] - x, atol=1e-6)
    assert torch.allclose(offset.grad[:, 1:], beyond[..., :-1, 1:] - x, atol=1e-6)


def test_images_of_a_batch_do_not_mix() -> None:
    x, weight, offset = draw(3, 2, 6, 5), draw(2, 2, 3, 3, seed=1), 2 * draw(3, 18, 6, 5, seed=2)
    together = deform_conv2d(x, offset, weight, None, SAME, backend="torch")
    for i in range(3):
        alone = deform_conv2d(x[i : i + 1], offset[i : i + 1], weight, None, SAME, backend="torch")
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)


def test_far_and_broken_offsets() -> None:
    x, weight = draw(1, 2, 4, 4).float(), draw(2, 2, 1, 1).float()
    far = deform_conv2d(x, torch.full((1, 2, 4, 4), 1e9), weight, backend="torch")
    assert torch.equal(far, torch.zeros_like(far))
    broken = deform_conv2d(x, torch.full((1, 2, 4, 4), float("nan")), weight, backend="torch")
    assert broken.isnan().all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="offset"):
        deform_conv2d(draw(1, 2, 4, 4), draw(1, 9, 4, 4), draw(2, 2, 3, 3), None, SAME, backend="torch")
    with pytest.raises(ValueError, match="channels"):
        deform_conv2d(draw(1, 3, 4, 4), draw(1, 18, 4, 4), draw(2, 2, 3, 3), None, SAME, backend="torch")


def test_module_starts_as_the_convolution_it_took_over() -> None:
    torch.manual_seed(0)
    for regular in (
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(4, 6, 3, 2, 2, dilation=2),
    ):
        module = DeformConv2d(regular)
        x = torch.randn(2, 4, 9, 8)
        assert torch.allclose(module(x), regular(x), atol=1e-5)
        assert module.regular.weight is regular.weight
        assert all(not value.any() for value in module.offset.parameters())
        module(x).square().sum().backward()
        assert module.offset.weight.grad is not None
        assert module.offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("regular", [nn.Conv2d(4, 6, 3), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 6, 2)])
def test_module_refuses_what_it_cannot_deform(regular: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="cannot deform"):
        DeformConv2d(regular)


def test_wander_by_hand() -> None:
    # A 4 x 5 map and a 3 x 3 kernel: every tap moved by (3, -4), length 5. Of the taps with ordinary places on the map
    # (10 rows of (row, tap) pairs, 13 columns) those that stay are the rows 0 (2 pairs) and the column 4 (2 pairs).
    module = DeformConv2d(nn.Conv2d(1, 1, 3, padding=1))
    nn.init.ones_(module.regular.weight)
    offset = torch.tensor([3.0, -4.0]).repeat(9).view(1, 18, 1, 1).expand(2, 18, 4, 5)
    length, left = module.measure_offsets(offset, (4, 5))
    assert length.item() == pytest.approx(5)
    assert left.item() == pytest.approx(1 - (2 * 2) / (10 * 13))
    length, left = module.measure_offsets(torch.zeros(1, 18, 4, 5), (4, 5))
    assert (length.item(), left.item()) == (0, 0)
    # With an identity kernel the centre alone counts: 20 places on the map, of which a step of 1 down loses 5.
    nn.init.dirac_(module.regular.weight)
    offset = torch.zeros(1, 9, 2, 4, 5)
    offset[:, 4, 0], offset[:, 0] = 1.0, 100.0
    length, left = module.measure_offsets(offset.flatten(1, 2), (4, 5))
    assert (length.item(), left.item()) == (pytest.approx(1), pytest.approx(0.25))


def test_half_precision_keeps_places_exact() -> None:
    # 100.5 cells cannot be told from 100 or 101 in bfloat16: the gather must not be done in it.
    x = torch.arange(200.0).view(1, 1, 1, 200).repeat(1, 1, 2, 1)
    offset = torch.zeros(1, 2, 2, 200)
    offset[:, 1] = 0.5
    with torch.autocast("cpu", torch.bfloat16):
        down, across = sample_places(offset, (1, 1), Geometry())
        ours = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1), backend="torch")
    assert across[0, 0, 0, 100].item() == 100.5
    assert ours[0, 0, 0, :100].float().tolist() == pytest.approx([k + 0.5 for k in range(100)], rel=2**-8)


def test_torchvision_is_refused_by_name_where_missing() -> None:
    if find_torchvision_operator() is not None:
        pytest.skip("torchvision can be imported here")
    arguments = (draw(1, 2, 4, 4), draw(1, 18, 4, 4), draw(2, 2, 3, 3), None, SAME)
    with pytest.raises(UserError, match="torchvision"):
        deform_conv2d(*arguments, backend="torchvision")
    assert torch.equal(deform_conv2d(*arguments), deform_conv2d(*arguments, backend="torch"))


@pytest.mark.parametrize(("kernel", "geometry"), KERNELS)
def test_parity_with_torchvision(kernel: tuple[int, int], geometry: Geometry) -> None:
    if find_torchvision_operator() is None:
        pytest.skip("torchvision cannot be imported beside this torch: no parity to test")
    x, weight, bias = draw(2, 3, 9, 7), draw(4, 3, *kernel, seed=1), draw(4, seed=2)
    offset = 2 * draw(2, 2 * kernel[0] * kernel[1], *grid_of(x, weight, geometry), seed=3)
    results: list[Any] = []
    for backend in ("torch", "torchvision"):
        given: Any = [value.clone().requires_grad_() for value in (x, offset, weight, bias)]
        out = deform_conv2d(*given, geometry, backend)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), given)])
    assert all(torch.allclose(ours, theirs, atol=1e-9) for ours, theirs in zip(*results, strict=True))


def test_frozen_weights_keep_one_tap_of_features() -> None:
    # What autograd keeps may not grow with the nine taps: no (B * h * w, C) samples while the weights are frozen.
    x, weight = draw(1, 64, 6, 6), draw(4, 64, 3, 3, seed=1)
    offset = draw(1, 18, 6, 6, seed=2).requires_grad_()
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        deform_conv2d(x, offset, weight, None, SAME, backend="torch")
    assert sum(size == x.numel() for size in kept.values()) == 1
