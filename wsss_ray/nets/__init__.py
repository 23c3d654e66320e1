"""Networks, their published weights and the optimiser that trains them."""

from __future__ import annotations

from typing import Any

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet38": ("resnet38", "ResNet38", {}),
    "resnet18": ("resnet", "ResNet", {"depth": 18}),
    "resnet50": ("resnet", "ResNet", {"depth": 50}),
    "resnet101": ("resnet", "ResNet", {"depth": 101}),
    "resnet50_caffe": ("resnet_caffe", "ResNetCaffe", {"depth": 50}),
    "resnet101_caffe": ("resnet_caffe", "ResNetCaffe", {"depth": 101}),
    "vgg16": ("vgg", "VGG16", {}),
    "squeezenet": ("squeezenet", "SqueezeNet", {}),
    "toy": ("toy", "Toy", {}),
}
"""Name -> (module of this package, class, preset options)."""


def build_backbone(name: str, output_stride: int | None = None, **options: Any) -> Backbone:
    """The backbone ``name`` with random weights; ``output_stride`` None means its usual one.

    Options are those of its class (see the module named in ``BACKBONES``). Errors: ``UserError`` on an unknown name,
    stride or option, listing the allowed ones.
    """
    from importlib import import_module

    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    module, attribute, preset = BACKBONES[name]
    build = getattr(import_module(f"wsss_ray.nets.{module}"), attribute)
    given = dict(preset, **options) if output_stride is None else dict(preset, output_stride=output_stride, **options)
    allowed = list(build.__init__.__annotations__)
    for option in options:
        if option not in allowed or option in preset:
            free = [key for key in allowed if key not in preset and key != "output_stride"]
            raise UserError(f"backbone {name!r} has no option {option!r}; known: {', '.join(free) or 'none'}")
    backbone: Backbone = build(**given)
    return backbone
