# SPDX-License-Identifier: Apache-2.0
"""What every backbone promises to the heads that stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from wsss_ray.config import UserError

BatchNormMode = Literal["frozen", "affine", "train"]
"""``frozen``: statistics, gamma and beta never change; ``affine``: only gamma and beta learn; ``train``: ordinary."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Backbone(nn.Module):
    """A feature extractor with named taps, whose frozen parts stay frozen in ``train()`` mode.

    ``forward`` returns a dictionary of feature maps; ``"out"`` is the last one. Every backbone has ``"low"`` (stride
    4), ``"conv4"`` and ``"conv5"`` (what enters its last two stages) and ``"out"``. ``channels`` and ``strides``
    describe each tap. Its argument ``output_stride`` is one of ``output_strides``.
    """

    output_strides: ClassVar[tuple[int, ...]] = ()
    """What the stride of ``"out"`` may be, the usual one first."""
    channels: dict[str, int]
    strides: dict[str, int]
    batch_norm: BatchNormMode = "train"
    frozen_parts: tuple[nn.Module, ...] = ()
    """Modules that never learn."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised -> {tap: (B, channels[tap], h, w)}."""
        raise TypeError(f"{type(self).__name__} has no forward()")

    def freeze(self, parts: Sequence[nn.Module] = (), batch_norm: BatchNormMode = "train") -> None:
        """Declare what never learns: whole ``parts`` (kept in eval mode too), and how BatchNorm behaves.

        To be called last in ``__init__``.
        """
        self.frozen_parts = tuple(parts)
        self.batch_norm = batch_norm
        self.train(self.training)

    def frozen(self) -> list[nn.Parameter]:
        """Parameters that training never touches (no gradient, in no optimiser group)."""
        parts = list(self.frozen_parts)
        if self.batch_norm == "frozen":
            parts += _find_batch_norms(self)
        return list({id(p): p for part in parts for p in part.parameters()}.values())

    def train(self, mode: bool = True) -> Backbone:
        """Enter train mode with BatchNorm and frozen parts kept as the backbone's recipe says."""
        super().train(mode)
        for part in self.frozen_parts:
            part.eval()
        if self.batch_norm != "train":
            for norm in _find_batch_norms(self):
                norm.eval()
        for parameter in self.frozen():
            parameter.requires_grad_(False)
        return self


def find_backbone(network: nn.Module) -> Backbone:
    """The first backbone inside a network: of a localizer the one that its maps are read from.

    Raises UserError where there is none.
    """
    found = next((part for part in network.modules() if isinstance(part, Backbone)), None)
    if found is None:
        raise UserError(f"{type(network).__name__} has no backbone that another network could start from")
    return found


def start_backbone(backbone: Backbone, trained: nn.Module) -> None:
    """Give ``backbone`` the weights of the one inside a trained network; UserError where it is another kind."""
    source = find_backbone(trained)
    wanted, found = ({key: value.shape for key, value in part.state_dict().items()} for part in (backbone, source))
    if type(backbone) is not type(source) or wanted != found:
        raise UserError(
            f"net is {_name_backbone(backbone)}, base.net {_name_backbone(source)}: give both the same backbone, "
            "or set 'base' to null"
        )
    backbone.load_state_dict(source.state_dict())


def _name_backbone(backbone: Backbone) -> str:
    return f"{type(backbone).__name__} of {backbone.channels['out']} channels"


def check_output_stride(name: str, output_stride: int, allowed: Sequence[int]) -> None:
    """Raise UserError where the backbone ``name`` has no such output stride; it lists those ``allowed``."""
    if output_stride not in allowed:
        raise UserError(f"{name} has no output stride {output_stride}; allowed: {', '.join(map(str, allowed))}")


def _find_batch_norms(module: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers inside ``module``."""
    return [part for part in module.modules() if isinstance(part, NORMS)]
