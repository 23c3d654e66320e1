"""What every backbone promises to the heads that stand on it."""

from __future__ import annotations

from torch import Tensor, nn


class Backbone(nn.Module):
    """A feature extractor with named taps, whose frozen parts stay frozen in ``train()`` mode.

    ``forward`` returns a dictionary of feature maps; ``"out"`` is the last one. ``channels`` and ``strides`` describe each tap.
    """

    channels: dict[str, int]
    strides: dict[str, int]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised -> {tap: (B, channels[tap], h, w)}."""
        raise TypeError(f"{type(self).__name__} has no forward()")

    def frozen(self) -> list[nn.Parameter]:
        """Parameters that training never touches (no gradient, in no optimiser group)."""
        return []

    def train(self, mode: bool = True) -> Backbone:
        """Enter train mode with BatchNorm and frozen parts kept as the backbone's recipe says."""
        super().train(mode)
        return self
