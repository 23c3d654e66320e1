"""Networks, their published weights and the optimiser that trains them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.efficientnet import EfficientNetLite
from wsss_ray.nets.resnet import ResNet
from wsss_ray.nets.resnet38 import ResNet38
from wsss_ray.nets.resnet_caffe import ResNetCaffe
from wsss_ray.nets.squeezenet import SqueezeNet
from wsss_ray.nets.toy import Toy
from wsss_ray.nets.vgg import VGG16
from wsss_ray.registry import Registry

BackboneEntry = Callable[..., Backbone]
"""A class derived from ``Backbone``, or a ``functools.partial`` of one that sets some of its options."""

BACKBONES: Registry[BackboneEntry] = Registry(
    "wsss_ray.backbones",
    "backbone",
    {
        "resnet38": ResNet38,
        "resnet18": partial(ResNet, depth=18),
        "resnet50": partial(ResNet, depth=50),
        "resnet101": partial(ResNet, depth=101),
        "resnet50_caffe": partial(ResNetCaffe, depth=50),
        "resnet101_caffe": partial(ResNetCaffe, depth=101),
        "vgg16": VGG16,
        "efficientnet_lite0": partial(EfficientNetLite, variant=0),
        "efficientnet_lite1": partial(EfficientNetLite, variant=1),
        "efficientnet_lite2": partial(EfficientNetLite, variant=2),
        "squeezenet": SqueezeNet,
        "toy": Toy,
    },
)
"""Every backbone by its name in a recipe; adding one is one line here."""


def build_backbone(name: str, output_stride: int | None = None, **options: Any) -> Backbone:
    """The backbone ``name`` with random weights; ``output_stride`` None means its usual one.

    Options are those of its class. Errors: ``UserError`` on an unknown name, stride or option, listing the allowed
    ones.
    """
    entry = BACKBONES[name]
    preset = entry.keywords if isinstance(entry, partial) else {}
    allowed = [key for key in signature(entry).parameters if key not in preset and key != "output_stride"]
    for option in options:
        if option not in allowed:
            raise UserError(f"backbone {name!r} has no option {option!r}; known: {', '.join(allowed) or 'none'}")
    return entry(**options) if output_stride is None else entry(output_stride=output_stride, **options)
