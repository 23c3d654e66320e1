"""From settings to networks: the one place where a localizer, an affinity network or a segmenter is put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from wsss_ray import storage
from wsss_ray.config import Config, UserError
from wsss_ray.contracts import Need
from wsss_ray.methods import MethodConfig
from wsss_ray.nets import build_backbone
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.weights import load_weights
from wsss_ray.recipe import AffinityConfig, Localization, NetConfig, Refiner, SegmentConfig

MODEL = "model.safetensors"


class NetworkSpec(Config):
    """Everything that is needed to build one network again: travels to workers and lies beside its weights."""

    kind: Literal["localizer", "affinity", "segmenter"]
    num_classes: int
    """C, foreground classes."""
    localization: Localization | None = None
    refiner: Refiner | None = None
    affinity: AffinityConfig | None = None
    segment: SegmentConfig | None = None

    @property
    def net(self) -> NetConfig:
        """The settings of the backbone."""
        part = {"localizer": self.localization, "affinity": self.affinity, "segmenter": self.segment}[self.kind]
        assert part is not None
        return part.net

    @property
    def train(self) -> Any:
        """The settings of the training."""
        part = {"localizer": self.localization, "affinity": self.affinity, "segmenter": self.segment}[self.kind]
        assert part is not None
        return part.train

    @property
    def needs(self) -> frozenset[Need]:
        """What its batches must carry (``contracts.Need``)."""
        if self.kind == "localizer":
            assert self.localization is not None
            return frozenset(self.localization.method.needs)
        return frozenset({"mask"}) if self.refiner is None else frozenset(self.refiner.needs)


def backbone(net: NetConfig, pretrained: bool) -> Backbone:
    """The backbone of ``net``, with its published weights where ``pretrained`` and it names some."""
    built = build_backbone(net.backbone, net.output_stride, **net.options)
    if pretrained and net.weights is not None:
        load_weights(built, net.weights)
    return built


def localizer(
    localization: Localization, num_classes: int, pretrained: bool = False, base_folder: str | None = None
) -> nn.Module:
    """A localizer and, inside it, the one it is built on (with the weights in ``base_folder`` where that is given)."""
    base = None
    if localization.base is not None and localization.method.wants_base:
        base = localizer(localization.base, num_classes)
        if base_folder is not None:
            load_state(base, storage.join(base_folder, MODEL))
    return localization.method.build(backbone(localization.net, pretrained and base is None), num_classes, base)


def network(spec: NetworkSpec, pretrained: bool = False, base_folder: str | None = None) -> nn.Module:
    """The network of a spec, freshly initialised (from published weights where ``pretrained``)."""
    if spec.kind == "localizer":
        assert spec.localization is not None
        return localizer(spec.localization, spec.num_classes, pretrained, base_folder)
    if spec.kind == "affinity":
        assert spec.refiner is not None and spec.affinity is not None
        built: Any = spec.refiner.build(backbone(spec.affinity.net, pretrained), spec.num_classes)
        built.normalize = spec.affinity.net.normalize.apply
        return built  # type: ignore[no-any-return]
    assert spec.segment is not None
    return spec.segment.network.build(backbone(spec.segment.net, pretrained), spec.num_classes + 1)


def save_state(module: nn.Module, path: Path) -> None:
    """All parameters and buffers as safetensors: equal networks give equal bytes."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}, path)


def load_state(module: nn.Module, uri: str) -> None:
    """Load what ``save_state`` wrote, from any URI; every tensor must match."""
    from safetensors.torch import load

    try:
        module.load_state_dict(load(storage.read_bytes(uri)))
    except RuntimeError as error:
        raise UserError(
            f"{uri}: these weights are of another network ({str(error).splitlines()[-1].strip()})"
        ) from error


def trained(spec: NetworkSpec, folder: str, device: torch.device | str = "cpu") -> nn.Module:
    """The trained network of a train artifact's folder, in eval mode."""
    built = network(spec)
    load_state(built, storage.join(folder, MODEL))
    return built.to(device).eval()


def open_network(folder: str, method: MethodConfig | None = None) -> tuple[torch.nn.Module, NetworkSpec, torch.device]:
    """The trained network of a train artifact, on this worker's device; ``method`` says how its maps are read."""
    spec = NetworkSpec.model_validate(storage.read_json(storage.join(folder, "network.json")))
    if method is not None and spec.localization is not None:
        spec = spec.model_copy(update={"localization": spec.localization.model_copy(update={"method": method})})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = trained(spec, folder, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, spec, device
