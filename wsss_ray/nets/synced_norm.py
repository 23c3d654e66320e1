# SPDX-License-Identifier: Apache-2.0
"""BatchNorm whose statistics are those of all workers' images together: the same as one worker's on the whole batch.

PyTorch's own ``SyncBatchNorm`` runs on GPUs alone; this one is plain operations and a sum over workers, and runs where
``torch.distributed`` does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverWorkers(torch.autograd.Function):
    """The sum of every worker's tensor; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """In training mode normalised by mean and variance over all workers, weighted by their numbers of pixels."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """(B, C, H, W) -> the same shape; B may differ between workers."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        x = input.float()
        own = torch.cat([x.sum(dim=(0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        total = cast(Tensor, _SumOverWorkers.apply(own))  # type: ignore[no-untyped-call]
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean.view(1, -1, 1, 1)
        squares = cast(Tensor, _SumOverWorkers.apply(centred.square().sum(dim=(0, 2, 3))))  # type: ignore[no-untyped-call]
        variance = squares / count
        self._follow(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        found = centred * scale.view(1, -1, 1, 1)
        if self.affine:
            found = found + self.bias.view(1, -1, 1, 1)
        return found.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as BatchNorm does: the variance without bias."""
        if not self.track_running_stats:
            return
        cast(Tensor, self.num_batches_tracked).add_(1)
        share = 1 / float(cast(Tensor, self.num_batches_tracked)) if self.momentum is None else self.momentum
        cast(Tensor, self.running_mean).lerp_(mean, share)
        cast(Tensor, self.running_var).lerp_(variance * count / (count - 1).clamp(min=1), share)


def sync_norms(network: nn.Module) -> None:
    """Make every plain BatchNorm of a network one that looks at all workers, in place."""
    for norm in network.modules():
        if type(norm) is nn.BatchNorm2d:
            # The very same object: a backbone keeps lists of those that it holds still.
            norm.__class__ = SyncedBatchNorm2d
