"""What every backbone promises to the heads that stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

BatchNormMode = Literal["frozen", "affine", "train"]
"""``frozen``: statistics, gamma and beta never change; ``affine``: only gamma and beta learn; ``train``: ordinary."""


class Backbone(nn.Module):
    """A feature extractor with named taps, whose frozen parts stay frozen in ``train()`` mode.

    ``forward`` returns a dictionary of feature maps; ``"out"`` is the last one. Every backbone has ``"low"`` (stride
    4), ``"conv4"`` and ``"conv5"`` (what enters its last two stages) and ``"out"``. ``channels`` and ``strides``
    describe each tap.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    batch_norm: BatchNormMode = "train"
    _still: tuple[nn.Module, ...] = ()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised -> {tap: (B, channels[tap], h, w)}."""
        raise TypeError(f"{type(self).__name__} has no forward()")

    def freeze(self, parts: Sequence[nn.Module] = (), batch_norm: BatchNormMode = "train") -> None:
        """Declare what never learns: whole ``parts`` (kept in eval mode too), and how BatchNorm behaves.

        To be called last in ``__init__``.
        """
        self._still = tuple(parts)
        self.batch_norm = batch_norm
        self.train(self.training)

    def frozen(self) -> list[nn.Parameter]:
        """Parameters that training never touches (no gradient, in no optimiser group)."""
        parts = list(self._still)
        if self.batch_norm == "frozen":
            parts += _batch_norms(self)
        return list({id(p): p for part in parts for p in part.parameters()}.values())

    def train(self, mode: bool = True) -> Backbone:
        """Enter train mode with BatchNorm and frozen parts kept as the backbone's recipe says."""
        super().train(mode)
        for part in self._still:
            part.eval()
        if self.batch_norm != "train":
            for norm in _batch_norms(self):
                norm.eval()
        for parameter in self.frozen():
            parameter.requires_grad_(False)
        return self


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers inside ``module``."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
