# SPDX-License-Identifier: Apache-2.0
"""A network made ready for inference: BatchNorm folded into convolutions, ReLU and sums done inside them.

The same maths in fewer passes over memory; results differ by rounding alone. Nothing is compiled and nothing depends on
the size of an image, so that it pays from the first image on.
"""

from __future__ import annotations

import copy
import logging
import operator
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.same_conv import SameConv2d
from wsss_ray.nets.toy import ShiftedConv2d

log = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
Activation = Literal["none", "relu", "relu6"]
ADD_BIAS = (nn.Conv2d, SameConv2d, ShiftedConv2d)
"""Convolutions that add their bias, so that BatchNorm can be folded into them."""
ONEDNN: dict[Activation, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""What oneDNN calls an activation, and its arguments."""


class FusedConv2d(nn.Module):
    """A convolution, its bias, a second summand and an activation in one pass.

    Through oneDNN on a CPU that has it; elsewhere the steps one by one, in place.
    """

    def __init__(self, conv: nn.Conv2d, padding: tuple[int, ...], activation: Activation, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.geometry = list(padding), list(conv.stride), list(conv.dilation), conv.groups
        self.activation = activation
        self.onednn = self.weight.device.type == "cpu" and can_fuse(dtype)

    def forward(self, x: Tensor, other: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """(B, in, h, w) -> (B, out, h', w'), plus ``other`` of that shape, which ``overwrite`` may use up."""
        padding, stride, dilation, groups = self.geometry
        x = x.to(self.weight.dtype)
        if not self.onednn:
            found = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            return activate(found if other is None else found.add_(other), self.activation)
        fixed = (self.weight, self.bias, padding, stride, dilation, groups)
        single, pair = _find_ops()
        if other is None:
            name, numbers = ONEDNN[self.activation]
            return cast(Tensor, single.default(x, *fixed, name, numbers, ""))
        # Behind a sum it knows ReLU alone.
        after: tuple[Any, ...] = ("relu" if self.activation == "relu" else None), [], ""
        if overwrite and other.dtype == x.dtype:
            total = pair.binary(other, x, *fixed, "add", 1.0, *after)
        else:
            total = single.binary(x, other.to(x.dtype), *fixed, "add", 1.0, *after)
        return total if self.activation != "relu6" else activate(total, "relu6")


def activate(x: Tensor, activation: Activation) -> Tensor:
    """``x`` rectified in place."""
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else F.hardtanh_(x, 0.0, 6.0)


def _find_ops() -> tuple[Any, Any]:
    """OneDNN's convolution with what follows it, and the one that adds to its summand: what ``torch.compile`` calls."""
    return torch.ops.mkldnn._convolution_pointwise, torch.ops.mkldnn._convolution_pointwise_  # noqa: SLF001


@lru_cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether this CPU and this PyTorch run oneDNN's fused convolutions in ``dtype``."""
    if not torch.backends.mkldnn.is_available():
        return False
    # Of 16 channels: a single value goes another way, which knows no bfloat16.
    x = torch.ones(1, 16, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.ones(16, 16, 1, 1, dtype=dtype).to(memory_format=torch.channels_last)
    fixed: tuple[Any, ...] = (weight, None, [0, 0], [1, 1], [1, 1], 1)
    try:
        single, pair = _find_ops()
        first = single.default(x, *fixed, "relu", [], "")
        other = single.binary(x, x, *fixed, "add", 1.0, "relu", [], "")
        last = pair.binary(other, x, *fixed, "add", 1.0, "relu", [], "")
    except (AttributeError, RuntimeError):
        return False
    return all(bool((found == value).all()) for found, value in ((first, 16), (last, 33)))


def fuse_network(network: Network, bf16: bool = False) -> Network:
    """A copy of a network in eval mode whose backbones are fused; never trained or saved after that.

    ``bf16``: their convolutions take and give bfloat16, where the CPU has fused ones of that; the rest is autocast's.
    Every ``Backbone`` inside is traced through its ``forward``; one that cannot be traced stays as it is.
    """
    fused = copy.deepcopy(network).eval().requires_grad_(False)
    on_cpu = all(parameter.device.type == "cpu" for parameter in fused.parameters())
    dtype = torch.bfloat16 if bf16 and (not on_cpu or can_fuse(torch.bfloat16)) else torch.float32
    for part in list(fused.modules()):
        if isinstance(part, Backbone):
            _fuse_backbone(part, dtype)
    return fused


def _fuse_backbone(backbone: Backbone, dtype: torch.dtype) -> None:
    try:
        graph = _ConvTracer().trace(backbone)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        log.info("%s runs unfused: its forward cannot be traced (%s)", type(backbone).__name__, error)
        return
    traced = fx.GraphModule(backbone, graph)
    editor = _Editor(traced)
    editor.fold_norms()
    editor.split_joined()
    editor.fuse_convs(dtype)
    editor.rectify_in_place()
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    # An attribute of the instance, so that the backbone keeps its class, its taps and its strides.
    object.__setattr__(backbone, "forward", traced.forward)


class _ConvTracer(fx.Tracer):
    """Looks into every module but PyTorch's own and convolutions of any kind."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


class _Editor:
    """Rewrites the graph of one backbone."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, traced.graph
        called = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]
        self.called_once = {name for name in called if called.count(name) == 1}

    def find_module(self, node: object) -> nn.Module | None:
        """The module that a node calls, and no other node does."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or node.target not in self.called_once:
            return None
        return self.traced.get_submodule(str(node.target))

    def find_only_user(self, node: fx.Node) -> fx.Node | None:
        """The node that alone reads another one."""
        return next(iter(node.users)) if len(node.users) == 1 else None

    def read_activation(self, node: fx.Node | None) -> Activation:
        """What a node does, where it rectifies its first argument and nothing else."""
        if node is None:
            return "none"
        called = self.find_module(node)
        if isinstance(called, (nn.ReLU, nn.ReLU6)):
            return "relu" if isinstance(called, nn.ReLU) else "relu6"
        names = ("relu", "relu_") if node.op == "call_method" else (F.relu, F.relu_, torch.relu, torch.relu_)
        return "relu" if node.op in ("call_method", "call_function") and node.target in names else "none"

    def fold_norms(self) -> None:
        """BatchNorm behind a convolution that nobody else reads becomes part of its weights and bias."""
        for node in list(self.graph.nodes):
            norm, before = self.find_module(node), node.args[0] if node.args else None
            conv = self.find_module(before)
            if not isinstance(before, fx.Node) or len(before.users) > 1 or type(conv) not in ADD_BIAS:
                continue
            if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                _fold(cast(nn.Conv2d, conv), norm)
                node.replace_all_uses_with(before)
                self.graph.erase_node(node)

    def split_joined(self) -> None:
        """ReLU of joined channels is done in each part, where all of them are convolutions."""
        for node in list(self.graph.nodes):
            joined = node.args[0] if node.args else None
            if (
                self.read_activation(node) != "relu"
                or not isinstance(joined, fx.Node)
                or joined.target is not torch.cat
            ):
                continue
            parts = joined.args[0]
            convs = [self.find_module(part) for part in parts] if isinstance(parts, (list, tuple)) else [None]
            if len(joined.users) > 1 or any(conv is None or find_padding(conv) is None for conv in convs):
                continue
            if any(len(cast(fx.Node, part).users) > 1 for part in cast(list[Any], parts)):
                continue
            with self.graph.inserting_before(joined):
                rectified = [self.graph.call_function(torch.relu, (part,)) for part in cast(list[Any], parts)]
            joined.args = (rectified, *joined.args[1:])
            node.replace_all_uses_with(joined)
            self.graph.erase_node(node)

    def fuse_convs(self, dtype: torch.dtype) -> None:
        """Every convolution with the sum and the activation behind it, where nobody else reads what is between."""
        place = {node: index for index, node in enumerate(self.graph.nodes)}
        fused: set[fx.Node] = set()
        for node in list(self.graph.nodes):
            conv = self.find_module(node)
            padding = find_padding(conv)
            if conv is None or padding is None:
                continue
            chain, other = [node], self._find_summand(node, place)
            if other is not None:
                chain.append(next(iter(node.users)))
            follower = self.find_only_user(chain[-1])
            activation = self.read_activation(follower)
            if follower is not None and activation != "none":
                chain.append(follower)
            # Without a sum it stays where it was, so that what it reads is read before a later sum overwrites it.
            at = node if other is None else chain[1]
            name = f"{node.target}_fused".replace(".", "_")
            self.traced.add_submodule(name, FusedConv2d(cast(nn.Conv2d, conv), padding, activation, dtype))
            arguments: tuple[Any, ...] = (node.args[0],)
            if other is not None:
                readers = set(other.users) - {at}
                spent = other in fused and readers <= fused and all(place[reader] < place[at] for reader in readers)
                arguments += (other, spent)
            with self.graph.inserting_before(at):
                made = self.graph.call_module(name, arguments)
            place[made] = place[at]
            fused.add(made)
            chain[-1].replace_all_uses_with(made)
            for old in reversed(chain):
                self.graph.erase_node(old)

    def _find_summand(self, node: fx.Node, place: dict[fx.Node, int]) -> fx.Node | None:
        """What alone is added to a convolution, where that is there before the convolution runs."""
        total = self.find_only_user(node)
        if total is None or total.op != "call_function" or total.target not in (operator.add, operator.iadd, torch.add):
            return None
        others = [one for one in total.args if one is not node]
        if total.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
            return None
        return others[0] if place[others[0]] < place[node] else None

    def rectify_in_place(self) -> None:
        """ReLU of a BatchNorm or of a sum that nobody else reads needs no memory of its own."""
        for node in self.graph.nodes:
            before = node.args[0] if node.args else None
            if node.op == "call_module" or self.read_activation(node) != "relu" or not isinstance(before, fx.Node):
                continue
            if len(before.users) == 1 and (before.target is operator.add or _is_norm(self.find_module(before))):
                node.op, node.target = "call_function", torch.relu_


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def find_padding(conv: nn.Module | None) -> tuple[int, ...] | None:
    """Zeros around the input of a plain convolution; None for any other module."""
    if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return tuple(conv.padding)
    if type(conv) is SameConv2d and conv.stride == (1, 1):
        # At stride 1 the margins are those of every size.
        (top, bottom), (left, right) = conv.find_margins(0, 1), conv.find_margins(1, 1)
        return (top, left) if (top, left) == (bottom, right) else None
    return None


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Make a convolution do what BatchNorm in eval mode does behind it; in double precision, rounded once."""
    num = conv.out_channels
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = (variance + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
    shift = mean.new_zeros(num) if norm.bias is None else norm.bias.double()
    before = mean.new_zeros(num) if conv.bias is None else conv.bias.double()
    kind = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(kind), requires_grad=False)
    conv.bias = nn.Parameter(((before - mean) * scale + shift).to(kind), requires_grad=False)
    norm.reset_running_stats()
    norm.eps = 0.0
    if norm.affine:
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
