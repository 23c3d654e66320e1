# SPDX-License-Identifier: Apache-2.0
"""CAM: head, maps, styles, sliding window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.methods.contract import Case, build, check_localizer
from wsss_ray.methods.cam import CAM, CAMConfig
from wsss_ray.methods.layers import classification_loss
from wsss_ray.methods.views import place_windows, slide_window
from wsss_ray.nets.backbone import Backbone


class Identity(Backbone):
    """The image itself, average-pooled in 8 x 8 blocks: maps that can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides = {"out": 3}, {"out": 8}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": torch.nn.functional.avg_pool2d(images, 8, ceil_mode=True, count_include_pad=False)}


@pytest.mark.parametrize("config", [CAMConfig(style="irn"), CAMConfig(window=24, window_stride=16)])
def test_contract(config: CAMConfig) -> None:
    check_localizer(Case(config))


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # ln 2, ln(1 + e), ln(1 + e^-2), ln(1 + e^-1)
    expected = (0.693147181 + 1.313261688 + 0.126928011 + 0.313261688) / 4
    assert classification_loss(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(
        classification_loss(logits, labels), torch.nn.functional.multilabel_soft_margin_loss(logits, labels)
    )


def test_logits_are_the_mean_of_the_evidence_and_maps_its_positive_part() -> None:
    model = build(CAMConfig(), 4).eval()
    images = torch.randn(2, 3, 40, 56)
    evidence = model.evidence(images)
    assert torch.allclose(model.logits(images), evidence.mean(dim=(2, 3)), atol=1e-6)
    assert torch.equal(model.maps(images), evidence.clamp(min=0))
    assert evidence.min() < 0


def test_dropout_acts_on_the_classifier_only() -> None:
    # A dropout-free backbone: what varies in train mode is the head's own dropout.
    for style, varies in (("psa", True), ("irn", False)):
        model = CAM(CAMConfig(style=style), Identity(), 5).train()
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(model.maps(images), model.maps(images))
        torch.manual_seed(0)
        draws = {tuple(model.logits(images).flatten().tolist()) for _ in range(4)}
        assert (len(draws) > 1) is varies


def test_styles_set_rates_and_background() -> None:
    psa, irn = CAMConfig(), CAMConfig(style="irn")
    assert (psa.dropout, irn.dropout, CAMConfig(style="irn", dropout=0.3).dropout) == (0.5, 0.0, 0.3)
    assert (psa.background(), irn.background()) == (0.2, 0.15)
    rates = {
        style: [g.lr_multiplier for g in build(CAMConfig(style=style), 2).param_groups()] for style in ("psa", "irn")
    }
    assert rates == {"psa": [1.0, 2.0, 10.0], "irn": [1.0, 1.0, 10.0]}
    decays = [g.weight_decay for g in build(CAMConfig(style="irn"), 2).param_groups()]
    assert decays == [None, None, None]


def test_window_positions_cover_every_pixel() -> None:
    assert place_windows(448, 320, 64) == [0, 64, 128]
    assert place_windows(100, 40, 32) == [0, 32, 60]
    assert place_windows(40, 40, 64) == [0]


def test_sliding_window_of_a_local_network_is_the_plain_map() -> None:
    # Block means do not see beyond their block, so windows on the grid change nothing, wherever they overlap.
    images = torch.rand(2, 3, 72, 104)
    plain = CAM(CAMConfig(dropout=0), Identity(), 3)
    windowed = CAM(CAMConfig(dropout=0, window=32, window_stride=16), Identity(), 3)
    windowed.load_state_dict(plain.state_dict())
    assert torch.allclose(windowed.maps(images), plain.maps(images), atol=1e-6)


def test_sliding_window_averages_the_windows_that_hold_a_cell() -> None:
    # Each window gives its own number; starts 0, 16, 32 on a row of 8 cells of 8 pixels.
    def number(part: Tensor) -> Tensor:
        return part[:, :1, ::8, ::8] * 0 + part[:, :1, :1, :1]

    image = torch.zeros(1, 3, 32, 64)
    image[..., 16], image[..., 32] = 1.0, 2.0
    fused = slide_window(number, image, window=32, step=16, stride=8)
    assert fused.shape == (1, 1, 4, 8)
    assert fused[0, 0, 0].tolist() == [0.0, 0.0, 0.5, 0.5, 1.5, 1.5, 2.0, 2.0]


@pytest.mark.parametrize("size", [(31, 45), (20, 90), (8, 8)])
def test_sliding_window_keeps_the_grid_of_the_whole_image(size: tuple[int, int]) -> None:
    model = build(CAMConfig(window=24, window_stride=8), 2).eval()
    images = torch.randn(1, 3, *size)
    assert model.maps(images).shape == model.evidence(images).shape


def test_maps_follow_a_mirrored_image() -> None:
    model = CAM(CAMConfig(), Identity(), 3).eval()
    images = torch.rand(1, 3, 40, 64)
    assert torch.allclose(model.maps(images.flip(3)), model.maps(images).flip(3), atol=1e-6)
