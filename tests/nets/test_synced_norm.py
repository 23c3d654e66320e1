# SPDX-License-Identifier: Apache-2.0
"""BatchNorm over two workers (gloo) with uneven shares: outputs, gradients and statistics of one worker's BatchNorm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from wsss_ray.nets.synced_norm import SyncedBatchNorm2d, sync_norms

SHARES = (slice(0, 3), slice(3, 5))


def build(momentum: float | None, affine: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=momentum, affine=affine)
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1))


def step(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of the images."""
    images = images.clone().requires_grad_()
    found = network(images)
    (found**3).sum().backward()
    assert images.grad is not None
    return found.detach(), images.grad


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for momentum, affine in ((0.1, True), (None, True), (0.3, False)):
        one = build(momentum, affine)
        synced = copy.deepcopy(one)
        sync_norms(synced)
        for number in range(2):
            images = 3 + 2 * torch.randn(5, 3, 8, 9, generator=torch.Generator().manual_seed(number))
            expected, gradient = step(one, images)
            found, own = step(synced, images[SHARES[rank]])
            torch.testing.assert_close(found, expected[SHARES[rank]], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(own, gradient[SHARES[rank]], rtol=1e-3, atol=1e-3)
        for parameter, whole in zip(synced.parameters(), one.parameters(), strict=True):
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            torch.testing.assert_close(parameter.grad, whole.grad, rtol=1e-3, atol=1e-3)
        for buffer, whole_buffer in zip(synced.buffers(), one.buffers(), strict=True):
            torch.testing.assert_close(buffer, whole_buffer, rtol=1e-5, atol=1e-5)
        held = build(momentum, affine).eval()
        still = copy.deepcopy(held)
        sync_norms(still)
        images = torch.randn(2 + rank, 3, 8, 8)  # not together: what is in eval mode asks nobody
        assert torch.equal(still(images), held(images))
        assert synced[1](torch.randn(2, 4, 5, 5).bfloat16()).dtype == torch.bfloat16
    dist.destroy_process_group()


def test_two_workers_are_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_batch_norm(training: bool) -> None:
    one = build(0.1, True).train(training)
    synced = copy.deepcopy(one)
    sync_norms(synced)
    assert type(synced[1]) is SyncedBatchNorm2d
    assert synced.state_dict().keys() == one.state_dict().keys()
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(synced(images), one(images))
