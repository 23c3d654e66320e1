# SPDX-License-Identifier: Apache-2.0
"""What the settings of all methods share: functions, no state. Methods compose, they do not inherit behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from torch import nn

from wsss_ray.config import Changes, Config, Profile
from wsss_ray.contracts import FusionRule, Need
from wsss_ray.nets.backbone import Backbone


class MethodConfig(Config):
    """Settings of one localizer, which it builds.

    ``name`` is its name in a recipe and in ``METHODS``; ``profile`` decides where a paper and its authors' code differ.
    Every field declares the first result it changes: ``Annotated[float, Changes("weights")]``.
    """

    name: Annotated[str, Changes("weights")]
    profile: Annotated[Profile, Changes("weights")] = "paper"

    single_stage: ClassVar[bool] = False
    """True where its network predicts masks by itself (``contracts.Segments``): SSSS, WS-FCN."""

    @property
    def needs(self) -> frozenset[Need]:
        """What its training batches must hold besides images and labels."""
        return frozenset()

    @property
    def wants_base(self) -> bool:
        """Whether it takes over another trained localizer whole, which ``build`` is given (SMAF, ESOL's later phases).

        Every other method can have a base too: its backbone then starts from the base's.
        """
        return False

    @property
    def skips_parameters(self) -> bool:
        """Whether some steps give no gradient to some of its parameters: several workers then look for them."""
        return False

    def fusion(self) -> FusionRule:
        """How its maps of several scales and flips are fused."""
        return FusionRule()

    def background(self) -> float:
        """The background constant that its paper sets against normalised maps."""
        return 0.2

    def warning(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """What a user should read about a training, given the mean loss parts of its epochs; None where all is well."""
        return None

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """The localizer (``contracts.Localizer``); ``base`` is the one it takes over (``wants_base``)."""
        raise TypeError(f"method {self.name!r} has no build()")
