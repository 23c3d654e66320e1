# SPDX-License-Identifier: Apache-2.0
"""From settings to networks and back: how a localizer, an affinity network or a segmenter is built, saved, loaded."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from wsss_ray import storage
from wsss_ray.artifacts.files import FIX, DamagedError, read_file
from wsss_ray.config import Config, UserError, select
from wsss_ray.contracts import Localizer, Need, Segments
from wsss_ray.engine.passes import Device
from wsss_ray.engine.train import TrainConfig
from wsss_ray.engine.watch import take_single_scale
from wsss_ray.methods.base import MethodConfig
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone, start_backbone
from wsss_ray.nets.shapes import shapes_only
from wsss_ray.nets.weights import load_weights
from wsss_ray.recipe import AffinityConfig, Localization, NetConfig, Refiner, SegmentConfig

MODEL = "model.safetensors"
NETWORK = "network.json"


class LocalizerSpec(Config):
    """Everything that is needed to build a localizer again: travels to workers and lies beside its weights."""

    kind: Literal["localizer"] = "localizer"
    num_classes: int
    """C, foreground classes."""
    localization: Localization

    @property
    def net(self) -> NetConfig:
        """The settings of the backbone."""
        return self.localization.net

    @property
    def train(self) -> TrainConfig:
        """The settings of the training."""
        return self.localization.train

    @property
    def needs(self) -> frozenset[Need]:
        """What its batches must carry (``contracts.Need``)."""
        return frozenset(self.localization.method.needs)

    @property
    def settings(self) -> dict[str, Any]:
        """What can change its weights and history: not what it starts from, nor how maps are read, unless seeds are
        scored in training.
        """
        method = self.localization.method
        parts = {"method": method, "net": self.net, "train": self.train}
        found = {name: select(part, "weights") for name, part in parts.items()}
        if self.train.validate_seeds:
            single = take_single_scale(self.localization.localize)
            found["seeds"] = {"method": select(method, "maps", "scores"), "localize": select(single, "maps")}
        return found

    def build(self, pretrained: bool = False, base_folder: str | None = None) -> nn.Module:
        """The network, from published weights where ``pretrained``, its base with the weights in ``base_folder``."""
        return build_localizer(self.localization, self.num_classes, pretrained, base_folder)


class AffinitySpec(Config):
    """The same for the network of a refiner (PSA, IRN)."""

    kind: Literal["affinity"] = "affinity"
    num_classes: int
    refiner: Refiner
    affinity: AffinityConfig

    @property
    def net(self) -> NetConfig:
        """The settings of the backbone."""
        return self.affinity.net

    @property
    def train(self) -> TrainConfig:
        """The settings of the training."""
        return self.affinity.train

    @property
    def needs(self) -> frozenset[Need]:
        """What its batches must carry."""
        return frozenset(self.refiner.needs)

    @property
    def settings(self) -> dict[str, Any]:
        """What can change its weights."""
        parts = {"refiner": self.refiner, "net": self.net, "train": self.train}
        return {"name": self.refiner.name, **{name: select(part, "weights") for name, part in parts.items()}}

    def build(self, pretrained: bool = False, base_folder: str | None = None) -> nn.Module:
        """The network, from published weights where ``pretrained``; it starts from no other one."""
        built: Any = self.refiner.build(_build_backbone(self.net, pretrained), self.num_classes)
        built.normalize = self.net.normalize.apply
        network: nn.Module = built
        return network


class SegmenterSpec(Config):
    """The same for a segmenter."""

    kind: Literal["segmenter"] = "segmenter"
    num_classes: int
    segment: SegmentConfig

    @property
    def net(self) -> NetConfig:
        """The settings of the backbone."""
        return self.segment.net

    @property
    def train(self) -> TrainConfig:
        """The settings of the training."""
        return self.segment.train

    @property
    def needs(self) -> frozenset[Need]:
        """What its batches must carry."""
        return frozenset({"mask"})

    @property
    def settings(self) -> dict[str, Any]:
        """What can change its weights."""
        return select(self.segment, "weights")

    def build(self, pretrained: bool = False, base_folder: str | None = None) -> nn.Module:
        """The network, from published weights where ``pretrained``; it starts from no other one."""
        return self.segment.network.build(_build_backbone(self.net, pretrained), self.num_classes + 1)


NetworkSpec = LocalizerSpec | AffinitySpec | SegmenterSpec
_SPEC: TypeAdapter[NetworkSpec] = TypeAdapter(Annotated[NetworkSpec, Field(discriminator="kind")])


def parse_spec(text: str | bytes) -> NetworkSpec:
    """A spec from its JSON."""
    return _SPEC.validate_json(text)


def _build_backbone(net: NetConfig, pretrained: bool) -> Backbone:
    """The backbone of ``net``, with its published weights where ``pretrained`` and it names some."""
    built = build_backbone(net.backbone, net.output_stride, **net.options)
    if pretrained and net.weights is not None:
        load_weights(built, net.weights)
    return built


def check_backbone(net: NetConfig) -> None:
    """UserError where the settings make no backbone; takes no memory."""
    with shapes_only():
        _build_backbone(net, pretrained=False)


def build_localizer(
    localization: Localization, num_classes: int, pretrained: bool = False, base_folder: str | None = None
) -> nn.Module:
    """A localizer on a backbone from published weights (``pretrained``), or from its base where it has one.

    A method that wants its base takes it over whole, any other one starts its backbone from the base's. The base has
    the weights in ``base_folder`` where that is given.
    """
    method = localization.method
    backbone = _build_backbone(localization.net, pretrained and localization.base is None)
    if localization.base is None:
        return method.build(backbone, num_classes)
    base = build_localizer(localization.base, num_classes)
    if base_folder is not None:
        load_state(base, storage.join(base_folder, MODEL))
    if method.wants_base:
        return method.build(backbone, num_classes, base)
    start_backbone(backbone, base)
    return method.build(backbone, num_classes)


def encode_state(module: nn.Module) -> bytes:
    """All parameters and buffers as safetensors: equal networks give equal bytes."""
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()})


def load_state(module: nn.Module, uri: str) -> None:
    """Load what ``encode_state`` wrote, from any URI; every tensor must match."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder, _, name = uri.rpartition("/")
    data = read_file(folder, name)
    try:
        module.load_state_dict(load(data))
    except SafetensorError as error:
        raise DamagedError(f"{uri}: damaged ({error}); {FIX}") from None
    except RuntimeError as error:
        raise UserError(f"{uri}: weights do not match the network ({str(error).splitlines()[-1].strip()})") from error


Spec = TypeVar("Spec", bound=NetworkSpec)


class TrainedNetwork(Generic[Spec]):
    """A trained network on this process's device, ready to be asked."""

    def __init__(self, spec: Spec, network: nn.Module, device: torch.device) -> None:
        self.spec, self.network, self.device = spec, network, device

    @property
    def localizer(self) -> Localizer:
        """The network as one that yields class maps."""
        return cast(Localizer, self.network)

    @property
    def segments(self) -> Segments:
        """The network as one that predicts masks."""
        return cast(Segments, self.network)

    def on(self, batch_size: int) -> Device:
        """How its whole images are fed."""
        return Device(self.spec.net.normalize, self.device, batch_size)


def read_spec(folder: str) -> NetworkSpec:
    """The spec beside the weights of a train artifact."""
    where = storage.join(folder, NETWORK)
    try:
        return parse_spec(read_file(folder, NETWORK))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"{where}: damaged or of another version ({key}: {first['msg']}); {FIX}") from None


def load_network(spec: Spec, folder: str) -> TrainedNetwork[Spec]:
    """A trained network from its folder, in eval mode, on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = spec.build()
    load_state(network, storage.join(folder, MODEL))
    network.to(device).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedNetwork(spec, network, device)


def open_localizer(folder: str, method: MethodConfig | None = None) -> TrainedNetwork[LocalizerSpec]:
    """The trained localizer of a train artifact; ``method`` says how its maps are read, None as it was trained."""
    spec = read_spec(folder)
    if not isinstance(spec, LocalizerSpec):
        raise UserError(f"{folder}: holds a {spec.kind}, not a localizer; give a run that trained one")
    if method is not None:
        spec = spec.model_copy(update={"localization": spec.localization.model_copy(update={"method": method})})
    return load_network(spec, folder)


def open_affinity(folder: str) -> TrainedNetwork[AffinitySpec]:
    """The trained network of a refiner."""
    spec = read_spec(folder)
    if not isinstance(spec, AffinitySpec):
        raise UserError(f"{folder}: holds a {spec.kind}, not the network of a refiner; give a run that trained one")
    return load_network(spec, folder)


def open_predictor(folder: str) -> TrainedNetwork[LocalizerSpec] | TrainedNetwork[SegmenterSpec]:
    """The trained segmenter or single-stage localizer of a train artifact; UserError where it predicts no masks."""
    spec = check_predicts(read_spec(folder), folder)
    if isinstance(spec, SegmenterSpec):
        return load_network(spec, folder)
    return load_network(spec, folder)


def check_predicts(spec: NetworkSpec, folder: str) -> LocalizerSpec | SegmenterSpec:
    """The spec of a network that predicts masks; UserError for another one."""
    if isinstance(spec, SegmenterSpec) or (isinstance(spec, LocalizerSpec) and spec.localization.method.single_stage):
        return spec
    raise UserError(f"{folder}: a {spec.kind} cannot predict masks; give a run that trained a segmenter")
