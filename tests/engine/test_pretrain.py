# SPDX-License-Identifier: Apache-2.0
"""The weights that ship for the toy backbone, and the command that makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsss_ray.engine.pretrain import PretrainConfig, main, pretrain_toy, save_toy
from wsss_ray.nets import build_backbone
from wsss_ray.nets.weight_store import check_weights, locate_weights
from wsss_ray.nets.weights import load_weights
from wsss_ray.studies._scales import TOY_NET

TINY = PretrainConfig(width=8, num_images=48, num_checked=50, size=40, crop=32, epochs=2, batch_size=16)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_runs_write_the_same_bytes_and_another_seed_others(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, config in (("a", TINY), ("b", TINY), ("c", PretrainConfig(**{**vars(TINY), "seed": 1}))):
        save_toy(pretrain_toy(config), tmp_path / f"{name}.safetensors")
    first, again, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other
    assert "epoch 2: loss" in caplog.text


def test_what_is_written_loads_strictly(tmp_path):
    made = pretrain_toy(TINY)
    save_toy(made, tmp_path / "own.safetensors")
    net = build_backbone("toy", width=8, batch_norm="frozen")
    report = load_weights(net, str(tmp_path / "own.safetensors"))
    assert report.leftovers == ()
    images = torch.randn(1, 3, 64, 64)
    expected = build_backbone("toy", 8, width=8)
    expected.load_state_dict(made.state_dict())
    torch.testing.assert_close(net(images)["out"], expected(images)["out"], rtol=0.02, atol=0.02)


def test_it_learns_in_a_few_steps(caplog):
    caplog.set_level("INFO")
    pretrain_toy(PretrainConfig(**{**vars(TINY), "epochs": 14, "lr": 0.02}))
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in caplog.messages if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


def test_the_file_that_ships_is_small_known_and_what_the_toy_starts_from():
    path = locate_weights("toy_pretrained", Path("/nowhere"))
    assert path.stat().st_size <= 400_000
    state = check_weights("toy_pretrained", Path("/nowhere"))
    assert (state.verdict, state.place) == ("ok", "installed: wsss-ray")
    assert TOY_NET.weights == "toy_pretrained"
    net = build_backbone(TOY_NET.backbone, TOY_NET.output_stride, **TOY_NET.options)
    assert load_weights(net, TOY_NET.weights).leftovers == ()


def test_the_command_asks_for_a_file(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain"])
    with pytest.raises(SystemExit):
        main()
    assert "--out" in capsys.readouterr().err
