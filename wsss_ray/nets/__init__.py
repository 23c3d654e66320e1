# SPDX-License-Identifier: Apache-2.0
"""Networks, their published weights and the optimiser that trains them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from wsss_ray.config import UserError
from wsss_ray.registry import Lazy, Registry, require_settings

if TYPE_CHECKING:
    from wsss_ray.nets.backbone import Backbone
    from wsss_ray.nets.deeplab import SegmenterConfig

    BackboneEntry = Callable[..., Backbone]
    """A class derived from ``Backbone``, or a ``functools.partial`` of one that sets some of its options."""

BACKBONES: Registry[BackboneEntry] = Registry(
    "wsss_ray.backbones",
    "backbone",
    {
        "resnet38": Lazy("wsss_ray.nets.resnet38:ResNet38"),
        "resnet18": Lazy("wsss_ray.nets.resnet:ResNet", {"depth": 18}),
        "resnet50": Lazy("wsss_ray.nets.resnet:ResNet", {"depth": 50}),
        "resnet101": Lazy("wsss_ray.nets.resnet:ResNet", {"depth": 101}),
        "resnet50_caffe": Lazy("wsss_ray.nets.resnet_caffe:ResNetCaffe", {"depth": 50}),
        "resnet101_caffe": Lazy("wsss_ray.nets.resnet_caffe:ResNetCaffe", {"depth": 101}),
        "vgg16": Lazy("wsss_ray.nets.vgg:VGG16"),
        "efficientnet_lite0": Lazy("wsss_ray.nets.efficientnet:EfficientNetLite", {"variant": 0}),
        "efficientnet_lite1": Lazy("wsss_ray.nets.efficientnet:EfficientNetLite", {"variant": 1}),
        "efficientnet_lite2": Lazy("wsss_ray.nets.efficientnet:EfficientNetLite", {"variant": 2}),
        "squeezenet": Lazy("wsss_ray.nets.squeezenet:SqueezeNet"),
        "toy": Lazy("wsss_ray.nets.toy:Toy"),
    },
)
"""Every backbone by its name in a recipe; adding one is one line here."""

SEGMENTERS: Registry[type[SegmenterConfig]] = Registry(
    "wsss_ray.segmenters",
    "segmenter",
    {
        "deeplab_v1": Lazy("wsss_ray.nets.deeplab:DeepLabV1Config"),
        "deeplab_v2": Lazy("wsss_ray.nets.deeplab:DeepLabV2Config"),
    },
    require_settings(Lazy("wsss_ray.nets.deeplab:SegmenterConfig")),
)
"""Every segmenter by its name in a recipe; adding one is one line here."""


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
