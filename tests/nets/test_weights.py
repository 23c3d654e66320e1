"""Loading published weights: containers, name mapping, refusals."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
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


def write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        data = array.tobytes()
        shape, span = list(array.shape), [len(blob), len(blob) + len(data)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": span}
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


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
    write_safetensors(tmp_path / "w.safetensors", extra)
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
