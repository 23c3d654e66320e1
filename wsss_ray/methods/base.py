"""What every method's settings share. Functions, not state: methods compose, they do not inherit behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import nn

from wsss_ray.config import Config
from wsss_ray.contracts import FusionRule, Need
from wsss_ray.nets.backbone import Backbone


class MethodConfig(Config):
    """Settings of one localizer: ``name`` picks it, ``profile`` says whose side it takes where paper and code
    disagree."""

    name: str
    profile: Literal["paper", "released"] = "paper"
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What its batches must carry; may be overridden by a property where a switch decides."""
    wants_base: ClassVar[bool] = False
    """True where the method starts from another trained localizer (SMAF, ESOL's later phases)."""

    map_fields: ClassVar[frozenset[str]] = frozenset()
    """Settings that change how maps are read and nothing in training: a changed one makes new maps of the old
    weights."""
    label_fields: ClassVar[frozenset[str]] = frozenset()
    """Settings that change neither weights nor maps, but how labels are read from them."""

    single_stage: ClassVar[bool] = False
    """True where its network answers per pixel by itself (``contracts.Segments``): SSSS, WS-FCN."""

    def fusion(self) -> FusionRule:
        """How this method's maps of several scales and flips are fused."""
        return FusionRule()

    def background(self) -> float:
        """The background constant its paper uses on normalised maps."""
        return 0.2

    def warning(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """What the mean loss parts of a training's epochs say that its user should read; None where all is well."""
        return None

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """The localizer (see ``contracts.Localizer``); ``base`` is the localizer it starts from, weights not yet
        loaded."""
        raise TypeError(f"method {self.name!r} has no build()")
