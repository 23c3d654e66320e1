# SPDX-License-Identifier: Apache-2.0
"""Loading published weights: containers, name mapping, refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.golden_rules import mxnet_name
from wsss_ray.config import UserError
from wsss_ray.nets import BACKBONES, build_backbone
from wsss_ray.nets.weight_files import read_mxnet, read_weights
from wsss_ray.nets.weight_names import is_counter, translate_lite_name, translate_mxnet_name, translate_names
from wsss_ray.nets.weight_registry import WEIGHTS
from wsss_ray.nets.weight_store import digest_weights
from wsss_ray.nets.weights import load_weights

FORMS = ("oldest", "v1", "v2", "v3")
FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def write_mxnet(path: Path, arrays: dict[str, np.ndarray], form: str) -> None:
    """MXNet's container, written from its description."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            if form in ("v2", "v3"):
                stream.write(struct.pack("<Ii", 0xF993FAC9 if form == "v2" else 0xF993FACA, 0))
            elif form == "v1":
                stream.write(struct.pack("<I", 0xF993FAC8))
            dims = "I" if form == "oldest" else "q"
            stream.write(struct.pack(f"<I{array.ndim}{dims}", array.ndim, *array.shape))
            if array.ndim:
                stream.write(struct.pack("<iii", 2, 1, FLAGS[str(array.dtype)]))
                stream.write(array.tobytes())
        stream.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            stream.write(struct.pack("<Q", len(name)) + name.encode())


def write_raw_safetensors(path: Path, dtype: str, num_bytes: int) -> None:
    """A file with one tensor ``odd`` of a type that torch may lack, from the format's description."""
    entry = {"dtype": dtype, "shape": [16], "data_offsets": [0, num_bytes]}
    text = json.dumps({"odd": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))


@pytest.mark.parametrize("form", FORMS)
def test_mxnet_forms_round_trip(form, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "arg:conv1a_weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "aux:bn7_moving_var": rng.standard_normal(6),
        "arg:half": rng.standard_normal((5,)).astype(np.float16),
        "arg:counts": np.arange(4, dtype=np.int64),
    }
    path = tmp_path / "w.params"
    write_mxnet(path, arrays, form)
    found = read_mxnet(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].numpy().dtype == array.dtype
        assert np.array_equal(found[name].numpy(), array)


@pytest.mark.parametrize("form", FORMS[:3])
def test_mxnet_golden(form, shared, golden):
    expected = golden("02_mxparams_expected.npz")
    found = read_weights(shared / "golden" / f"02_mxparams_{form}.params")
    assert list(found) == expected["names"].tolist()
    for row, array in enumerate(found.values()):
        assert array.numpy().dtype == expected[f"a{row}"].dtype
        assert np.array_equal(array.numpy(), expected[f"a{row}"])


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "w.params"
    write_mxnet(path, {"a": np.ones((3, 3), np.float32), "b": np.ones(2, np.float32)}, "v2")
    whole = path.read_bytes()
    for data, says in ((whole[:50], "cut short"), (b"PK" + whole[2:], "not an MXNet"), (whole[:-3], "cut short")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=says) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
    sparse = tmp_path / "s.params"
    sparse.write_bytes(struct.pack("<QQQIi", 0x112, 0, 1, 0xF993FAC9, 1) + bytes(64))
    with pytest.raises(UserError, match="sparse"):
        read_weights(sparse)
    for name in ("w.pth", "w.npz", "w.safetensors"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(UserError, match="fetch it again"):
            read_weights(tmp_path / name)
    with pytest.raises(UserError, match="known: .params"):
        read_weights(tmp_path / "w.caffemodel")
    with pytest.raises(UserError, match="no such"):
        read_weights(tmp_path / "absent.npz")


SHARED_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    torch.float4_e2m1fn_x2,
)
"""Every type that both torch and safetensors know."""


def test_safetensors_of_every_type_are_read_as_stored(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for dtype in SHARED_TYPES:
        raw = rng.integers(0, 2 if dtype is torch.bool else 256, 6 * dtype.itemsize, np.uint8)
        tensors[str(dtype)] = torch.from_numpy(raw).view(dtype).reshape(2, 3)
    save_file(tensors, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == (2, 3)
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    "dtype",
    [d for d in SHARED_TYPES if d not in (torch.complex64, torch.float4_e2m1fn_x2)],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_weights_of_every_real_type_fill_the_toy(dtype, tmp_path):
    state = {k: v for k, v in build_backbone("toy", width=8).state_dict().items() if not is_counter(k)}
    stored = {key: torch.ones(value.shape).to(dtype) for key, value in state.items()}
    save_file(stored, tmp_path / "w.safetensors")
    net = build_backbone("toy", width=8)
    assert load_weights(net, str(tmp_path / "w.safetensors")).num_matched == len(state)
    assert all(torch.equal(net.state_dict()[key], torch.ones(value.shape)) for key, value in state.items())


def test_a_tensor_that_is_no_weight_is_one_line_naming_it(tmp_path):
    state = {k: v for k, v in build_backbone("toy", width=8).state_dict().items() if not is_counter(k)}
    first = next(iter(state))
    shape = state[first].shape
    bad = [torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape, dtype=torch.uint8).view(SHARED_TYPES[-1])]
    for odd in bad:
        save_file({**state, first: odd}, tmp_path / "w.safetensors")
        net = build_backbone("toy", width=8)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(UserError, match=rf"w\.safetensors: tensor '{first}' is of .*save it as float32") as caught:
            load_weights(net, str(tmp_path / "w.safetensors"))
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    torch.save({**state, first: torch.zeros(shape).to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="sparse_coo"):
        load_weights(build_backbone("toy", width=8), str(tmp_path / "w.pth"))


def test_types_that_torch_lacks_are_one_line_naming_file_and_tensor(tmp_path):
    write_raw_safetensors(tmp_path / "w.safetensors", "F6_E2M3", 12)
    with pytest.raises(UserError, match=r"w\.safetensors: tensor 'odd' cannot be used \(.*F6_E2M3") as caught:
        read_weights(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    write_raw_safetensors(tmp_path / "w.safetensors", "F8_E4M3", 12)
    with pytest.raises(UserError, match=r"w\.safetensors: not a readable"):
        read_weights(tmp_path / "w.safetensors")


def test_arrays_of_every_kind_are_read_from_npz(tmp_path):
    kinds = ["?", "u1", "u2", "<u4", "u8", "i1", "i2", "<i4", ">i8", "f2", "f4", ">f8", "c8"]
    arrays = {kind: np.array([0, 1, 1]).astype(kind) for kind in kinds}
    np.savez(tmp_path / "w.npz", names=np.array(["a", "b"]), **arrays)
    found = read_weights(tmp_path / "w.npz")
    assert found.keys() == arrays.keys()
    for kind, array in arrays.items():
        assert found[kind].numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found[kind].numpy(), array)
    np.savez(tmp_path / "w.npz", odd=np.zeros(3, "V2"))
    with pytest.raises(UserError, match=r"w\.npz: tensor 'odd' cannot be used"):
        read_weights(tmp_path / "w.npz")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "evil").exists()


def test_every_container_fills_the_toy(tmp_path):
    torch.manual_seed(0)
    donor = build_backbone("toy", width=8)
    state = {k: v.numpy() for k, v in donor.state_dict().items() if not is_counter(k)}
    extra = dict(state, **{"classifier.weight": np.zeros((2, 2), np.float32)})
    np.savez(tmp_path / "w.npz", **extra)
    save_file({k: torch.from_numpy(v) for k, v in extra.items()}, tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.backbone.{k}": torch.from_numpy(v) for k, v in extra.items()}}, tmp_path / "w.pth"
    )
    for name in ("w.npz", "w.safetensors", "w.pth"):
        net = build_backbone("toy", width=8)
        report = load_weights(net, str(tmp_path / name))
        assert report.num_matched == len(state)
        assert report.leftovers == ("classifier.weight",)
        assert report.digest == digest_weights(tmp_path / name)
        assert "matched" in str(report)
        found = net.state_dict()
        assert all(torch.equal(found[k], torch.from_numpy(v)) for k, v in state.items())


def test_missing_or_misshapen_tensors_change_nothing(tmp_path):
    donor = {k: torch.full_like(v, 7) for k, v in build_backbone("toy", width=8).state_dict().items()}
    for key, bad, says in (
        ("stage4.0.weight", None, "lacks 1 .* first stage4.0.weight"),
        ("stage4.0.weight", torch.zeros(3, 3), r"stage4.0.weight \(3, 3\) not"),
    ):
        state = dict(donor, **{key: bad})
        torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "w.pth")
        net = build_backbone("toy", width=8)
        with pytest.raises(UserError, match=says):
            load_weights(net, str(tmp_path / "w.pth"))
        assert not any((v == 7).all() for v in net.state_dict().values())


def test_resnet38_names_map_one_to_one():
    with torch.device("meta"):
        net = build_backbone("resnet38")
    wanted = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    published = [mxnet_name(key) for key in wanted] + ["linear1000_weight", "linear1000_bias"]
    assert len(wanted) == 191
    assert len(set(published)) == 193
    assert [translate_mxnet_name(name) for name in published[:191]] == wanted
    prefixed = {("aux:" if "moving" in name else "arg:") + name: torch.zeros(1) for name in published}
    found = translate_names(prefixed, wanted)
    assert set(found) - set(wanted) == {"linear1000_weight", "linear1000_bias"}
    assert set(wanted) <= set(found)
    assert translate_mxnet_name("res4b5_branch2b1_weight") == "b4_5.conv_branch2b1.weight"
    assert translate_mxnet_name("bn6a_branch2b2_moving_mean") == "b6.bn_branch2b2.running_mean"


class TinyResNet38(nn.Module):
    """Three tensors under the trunk's names: enough to load a synthetic file by the whole path."""

    def __init__(self):
        super().__init__()
        self.conv1a = nn.Conv2d(3, 2, 3, bias=False)
        self.bn7 = nn.BatchNorm2d(2)


def test_mxnet_file_to_module(tmp_path):
    rng = np.random.default_rng(1)
    names = {"arg:conv1a_weight": (2, 3, 3, 3), "arg:bn7_gamma": (2,), "arg:bn7_beta": (2,)}
    names |= {"aux:bn7_moving_mean": (2,), "aux:bn7_moving_var": (2,), "arg:linear1000_bias": (5,)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    write_mxnet(tmp_path / "w.params", arrays, "oldest")
    net = TinyResNet38()
    report = load_weights(net, str(tmp_path / "w.params"))
    assert (report.num_matched, report.leftovers) == (5, ("linear1000_bias",))
    assert np.array_equal(net.bn7.weight.detach(), arrays["arg:bn7_gamma"])
    assert np.array_equal(net.bn7.running_var, arrays["aux:bn7_moving_var"])
    assert np.array_equal(net.conv1a.weight.detach(), arrays["arg:conv1a_weight"])


def test_deeplab_pytorch_checkpoints_load_with_their_prefixes(tmp_path):
    torch.manual_seed(0)
    donor = build_backbone("resnet50_caffe").state_dict()
    for prefix in ("", "base.", "scale.", "module.scale.base."):
        state = {prefix + k: v for k, v in donor.items() if not k.endswith("num_batches_tracked")}
        torch.save(dict(state, **{prefix + "aspp.c0.weight": torch.zeros(1)}), tmp_path / "w.pth")
        net = build_backbone("resnet50_caffe")
        report = load_weights(net, str(tmp_path / "w.pth"))
        assert report.num_matched == 265
        assert report.leftovers == ("aspp.c0.weight",)
        assert torch.equal(net.layer5.block3.increase.conv.weight, donor["layer5.block3.increase.conv.weight"])


def test_stride_placement_is_refused_both_ways(tmp_path):
    torchvision, caffe = build_backbone("resnet50"), build_backbone("resnet50_caffe")
    torch.save(torchvision.state_dict(), tmp_path / "tv.pth")
    torch.save({f"base.{k}": v for k, v in caffe.state_dict().items()}, tmp_path / "caffe.pth")
    with pytest.raises(UserError, match="stride in the 3x3.*resnet50"):
        load_weights(caffe, str(tmp_path / "tv.pth"))
    with pytest.raises(UserError, match="stride in the first 1x1.*resnet101_caffe"):
        load_weights(torchvision, str(tmp_path / "caffe.pth"))


def test_squeezenet_file_fills_the_net(shared):
    """The published file fills every tensor; its digest is the registry's."""
    path = shared / "weights" / "squeezenet1_0_imagenet.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    net = build_backbone("squeezenet").eval()
    report = load_weights(net, "squeezenet_deep_compression", folder=path.parent)
    assert report.num_matched == 50
    assert set(report.leftovers) == {"classifier.1.weight", "classifier.1.bias"}
    assert report.digest == WEIGHTS["squeezenet_deep_compression"].digest


def test_lite_names_map_one_to_one():
    with torch.device("meta"):
        net = build_backbone("efficientnet_lite0")
    wanted = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    tails = ("weight", "bias", "running_mean", "running_var")
    published = ["_conv_stem.weight", "_conv_head.weight", *(f"_bn{k}.{tail}" for k in (0, 1) for tail in tails)]
    for block in range(16):
        layers = ["_depthwise_conv", "_project_conv"] + (["_expand_conv"] if block else [])
        norms = ["_bn1", "_bn2"] + (["_bn0"] if block else [])
        published += [f"_blocks.{block}.{layer}.weight" for layer in layers]
        published += [f"_blocks.{block}.{norm}.{tail}" for norm in norms for tail in tails]
    assert {translate_lite_name(name) for name in published} == wanted
    assert len(published) == len(wanted)
    assert translate_lite_name("_blocks.3._bn1.bias") == "blocks.3.depthwise.bn.bias"
    wrapped = {f"module.{name}": torch.zeros(1) for name in [*published, "_fc.weight", "_fc.bias"]}
    found = translate_names(wrapped, wanted)
    assert set(found) - wanted == {"classifier.weight", "classifier.bias"}


def test_registry_is_well_formed():
    assert all(name == entry.name for name, entry in WEIGHTS.items())
    assert len({entry.filename for entry in WEIGHTS.values()}) == len(WEIGHTS)
    for entry in WEIGHTS.values():
        assert set(entry.backbones) <= set(BACKBONES)
        assert entry.licence
        assert entry.source
        assert bool(entry.digest) == bool(entry.algorithm)
        kinds = (".params", ".pth", ".npz", ".safetensors") if entry.backbones else (".onnx",)
        assert Path(entry.filename).suffix in kinds
    assert WEIGHTS["resnet38_imagenet"].digest == "ff21f45d6bf03284100dcbec571edfad"
    assert WEIGHTS["resnet50_imagenet_19c8e357"].digest == "19c8e357"
