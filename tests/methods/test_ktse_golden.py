# SPDX-License-Identifier: Apache-2.0
"""KTSE against the numbers of the authors' code: whole steps, their gradients and pseudo labels, and the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fuse_all import fuse_all
from tests.golden_rules import fill_set_b, set_b, set_b_input
from tests.methods.contract import TinyBackbone, total
from wsss_ray.contracts import Batch, Progress
from wsss_ray.engine.fusion import Pass
from wsss_ray.methods.ktse import labels as pseudo
from wsss_ray.methods.ktse import losses as terms
from wsss_ray.methods.ktse.config import IRN_FUSION, KTSEConfig
from wsss_ray.methods.ktse.network import KTSE
from wsss_ray.methods.layers import resize_bilinear
from wsss_ray.nets import build_backbone
from wsss_ray.refine.pamr import refine_with_par

Golden = Callable[[str], dict[str, np.ndarray]]
STEPS = [f"b03_ktse_step_{name}.npz" for name in ("mixed", "allcomplex", "allsimple", "negclass_quirk")]
INPUTS = ("F21_a", "F21_p", "F21_m", "F21_s", "logit_a")


class Step:
    """A golden step: its arrays as tensors, its batch, and a ``KTSE`` whose network gives what they say."""

    def __init__(self, arrays: dict[str, np.ndarray], **settings: Any) -> None:
        self.arrays = arrays
        self.leaves = {name: torch.from_numpy(arrays[name]).requires_grad_() for name in INPUTS}
        self.num_pairs = int(arrays["n_pairs"])
        self.batch = image_batch(arrays, 1)
        self.batch.partner = image_batch(arrays, 2)
        self.seen: list[Tensor] = []
        self.model = KTSE(KTSEConfig(profile="released", **settings), TinyBackbone(), arrays["label1"].shape[1])
        outputs = iter(
            [
                torch.cat([self.leaves["F21_a"], self.leaves["F21_p"][: self.num_pairs]]),
                self.leaves["F21_m"],
                self.leaves["F21_s"],
            ]
        )

        def planes(images: Tensor) -> Tensor:
            self.seen.append(images)
            return next(outputs)

        self.model.planes = planes  # type: ignore[method-assign]
        self.model.pool = lambda features: (self.leaves["logit_a"], features)  # type: ignore[method-assign]

    def run(self) -> dict[str, Tensor]:
        epoch = int(self.arrays["epoch"])
        return self.model.loss(self.batch, Progress(epoch=epoch, step=0, num_epochs=40, num_steps=100))

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        return {
            n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(self.leaves.items(), found, strict=True)
        }


def image_batch(arrays: dict[str, np.ndarray], number: int) -> Batch:
    levels = arrays[f"img{number}_u8"].transpose(0, 3, 1, 2)
    mean, std = (np.array(v)[:, None, None] for v in (pseudo.IMAGENET_MEAN, pseudo.IMAGENET_STD))
    return Batch(
        image=torch.from_numpy(((levels / 255 - mean) / std).astype(np.float32)),
        labels=torch.from_numpy(arrays[f"label{number}"].astype(np.float32)),
        inside=torch.ones(len(levels), 1, *levels.shape[2:]),
        rgb=torch.from_numpy((levels / 255).astype(np.float32)),
    )


def load(golden: Golden, file: str, **settings: Any) -> Step:
    return Step(golden(file), guard_maximum="negclass" not in file, **settings)


def near(actual: Tensor | float, expected: np.ndarray, tolerance: float) -> None:
    expected = np.asarray(expected, dtype=np.float64)
    found = actual.detach().double().numpy() if isinstance(actual, Tensor) else np.float64(actual)
    assert found.shape == expected.shape
    worst = np.abs(found - expected).max()
    assert worst <= tolerance, worst


@pytest.mark.parametrize("file", STEPS)
def test_a_released_step_has_the_released_losses(golden: Golden, file: str) -> None:
    step = load(golden, file)
    parts, arrays = step.run(), step.arrays
    near(parts["cls"], arrays["L_cls"], 2e-6)
    near(parts["kt"], arrays["L_kt"], 2e-6)
    near(parts["local"], arrays["L_local"], 2e-6)
    near(parts["global"], arrays["L_global"], 2e-6)
    near(parts["bg"] + parts["fg"] + parts["inter"], arrays["L_seg_anchor"], 2e-6)
    near(parts["joined_bg"] + parts["joined_fg"], arrays["L_seg_concat"], 2e-6)
    expected = {
        "bg": arrays["ce_anchor_bg"],
        "fg": 0.0125 * arrays["ce_anchor_fg_simple"],
        "inter": 0.005 * arrays["L_inter"] if "L_inter" in arrays else np.nan,
        "joined_bg": arrays["ce_concat_bg"],
        "joined_fg": 0.0125 * arrays["ce_concat_fg"],
    }
    for name, value in expected.items():
        near(parts[name], np.nan_to_num(value), 2e-6)
    near(total(parts), arrays["total"], 4e-6)


@pytest.mark.parametrize("file", STEPS)
def test_a_released_step_has_the_released_gradients(golden: Golden, file: str) -> None:
    step = load(golden, file)
    parts, arrays = step.run(), step.arrays
    losses = {
        "total": total(parts),
        "kt": parts["kt"],
        "local": parts["local"],
        "global": parts["global"],
        "seganchor": parts["bg"] + parts["fg"] + parts["inter"],
        "segconcat": parts["joined_bg"] + parts["joined_fg"],
    }
    pinned = [key for key in arrays if key.startswith("grad_")]
    assert pinned or "negclass" in file
    for name, loss in losses.items():
        listed = {key for key in pinned if key.startswith(f"grad_{name}_")}
        for leaf, gradient in step.gradients(loss).items():
            key = f"grad_{name}_{leaf}"
            if key in listed:
                near(gradient, arrays[key], 1e-7)
            elif listed:
                assert not gradient.any(), f"{name} must not reach {leaf}"


@pytest.mark.parametrize("file", STEPS)
def test_the_network_sees_the_released_images(golden: Golden, file: str) -> None:
    step = load(golden, file)
    step.run()
    images, arrays, num = step.batch.image, step.arrays, step.num_pairs
    both, masked, joined = step.seen
    partner = step.batch.partner
    assert partner is not None
    assert torch.equal(both, torch.cat([images, partner.image[:num]]))
    keep = torch.from_numpy(arrays["erase_mask"]).bool()[:, None]
    assert torch.equal(masked, torch.where(keep, images, torch.zeros(())))
    assert torch.equal(joined, torch.cat([images[:num], partner.image[:num]], dim=2))


@pytest.mark.parametrize("file", STEPS)
def test_activations_are_the_released_ones(golden: Golden, file: str) -> None:
    step = load(golden, file)
    features = step.leaves["F21_a"][:, 1:]
    near(terms.strongest_activation(features, step.batch.labels)[:, 0], step.arrays["A_lo"], 1e-6)
    high = terms.strongest_activation(features, step.batch.labels, step.batch.image.shape[2:])
    near(high[:, 0], step.arrays["A_hi"], 1e-6)


@pytest.mark.parametrize("file", STEPS)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("exact_guide", [False, True])
def test_pseudo_labels_are_the_released_ones(golden: Golden, file: str, number: int, exact_guide: bool) -> None:
    step = load(golden, file)
    batch, arrays = image_batch(step.arrays, number), step.arrays
    features = step.leaves["F21_a" if number == 1 else "F21_p"][:, 1:]
    image = pseudo.make_guide(batch.rgb, batch.inside, truncated=not exact_guide)
    given = torch.from_numpy(arrays[f"guide{number}_u8_bgr"]).flip(1)
    if not exact_guide:
        assert torch.equal((image * 255).round().to(torch.uint8), given)
    guard = "negclass" not in file
    labels = pseudo.refine_then_threshold(features, batch.labels, image, guard_maximum=guard)
    for name, found in zip(("Y", "Yh", "Yl"), labels, strict=True):
        wrong = (found.numpy() != arrays[f"{name}{number}"]).sum()
        assert wrong <= (max(2, 0.005 * found.numel()) if exact_guide else 2), name


def test_what_par_is_given_and_gives_back(golden: Golden) -> None:
    for file in STEPS:
        step = load(golden, file)
        features, batch, arrays = step.leaves["F21_a"][:, 1:].detach(), step.batch, step.arrays
        size = batch.image.shape[2:]
        image = resize_bilinear(pseudo.make_guide(batch.rgb, batch.inside, truncated=True), pseudo.halve_size(size))
        if "par_guide_first" in arrays:
            near(image[0].flip(0), arrays["par_guide_first"], 1e-6)
        for index in range(len(features)):
            if f"parout_h_{index}" not in arrays:
                continue
            one = slice(index, index + 1)
            planes, valid, _ = pseudo.select_present(features[one], batch.labels[one])
            scaled = planes / (planes.amax(dim=(2, 3), keepdim=True) + terms.EPSILON)
            for letter, level in (("h", 0.3), ("l", 0.15)):
                stack = pseudo.score_planes(scaled, valid, level, size)
                if f"parin_{letter}_{index}" in arrays:
                    near(stack[0], arrays[f"parin_{letter}_{index}"], 1e-6)
                near(refine_with_par(image[one], stack)[0], arrays[f"parout_{letter}_{index}"], 5e-6)


def test_guarding_the_maximum_changes_the_negative_class_and_nothing_else(golden: Golden) -> None:
    for file in STEPS:
        step = load(golden, file)
        image = pseudo.make_guide(step.batch.rgb, step.batch.inside, truncated=True)
        features = step.leaves["F21_a"][:, 1:]
        labels = [
            pseudo.refine_then_threshold(features, step.batch.labels, image, guard_maximum=g)[0] for g in (False, True)
        ]
        assert torch.equal(*labels) == ("negclass" not in file)


def test_the_warm_up_has_the_classification_loss_alone(golden: Golden) -> None:
    arrays = golden("b03_ktse_step_warmup.npz")
    logits = torch.from_numpy(arrays["logit_a"]).requires_grad_()
    planes = torch.zeros(arrays["grad_total_F21_a"].shape, requires_grad=True)
    model = KTSE(KTSEConfig(profile="released", sie=False), TinyBackbone(), arrays["label1"].shape[1])
    model.planes = lambda images: planes  # type: ignore[method-assign]
    model.pool = lambda features: (logits, features)  # type: ignore[method-assign]
    image = torch.zeros(len(logits), 3, 48, 40)
    labels = torch.from_numpy(arrays["label1"].astype(np.float32))
    batch = Batch(image, labels, torch.ones_like(image[:, :1]), image)
    parts = model.loss(batch, Progress(int(arrays["epoch"]), 0, 40, 100))
    assert set(parts) == {"cls"}
    near(parts["cls"], arrays["L_cls"], 1e-6)
    near(parts["cls"], arrays["total"], 1e-6)
    found = torch.autograd.grad(parts["cls"], [logits, planes], allow_unused=True)
    near(found[0], arrays["grad_total_logit_a"], 1e-7)
    assert found[1] is None
    assert not arrays["grad_total_F21_a"].any()


def test_inference_fuses_scales_and_flips_as_released(golden: Golden) -> None:
    arrays = golden("b04_ktse_infer_eval.npz")
    names = sorted(key.removesuffix("_plain") for key in arrays if key.startswith("F_") and key.endswith("_plain"))
    passes = [Pass(*(torch.from_numpy(arrays[f"{n}_{side}"])[None] for side in ("plain", "flip"))) for n in names]
    labels = torch.from_numpy(arrays["label"].astype(np.float32))[None]
    size = (int(arrays["H"]), int(arrays["W"]))
    seed = fuse_all(passes, KTSEConfig(profile="released").fusion(), size, labels)[0]
    near(seed[torch.from_numpy(arrays["keys"])], arrays["seed"], 1e-6)
    assert seed[labels[0] == 0].abs().max() == 0


def test_maps_for_irn_add_the_flip_before_they_rectify(golden: Golden) -> None:
    arrays = golden("b05_ktse_irn_extras.npz")
    features = torch.from_numpy(arrays["pair_F21"])[:, 1:]
    rule = IRN_FUSION.model_copy(update={"normalize": "none"})
    labels = torch.ones(1, features.shape[1])
    size = (features.shape[2], features.shape[3])
    near(fuse_all([Pass(features[:1], features[1:])], rule, size, labels)[0], arrays["pair_cam"], 1e-6)


@torch.inference_mode()
def test_the_whole_network_on_resnet38(golden: Golden) -> None:
    arrays = golden("b08_resnet38_rule.npz")
    prefix, gain = str(arrays["rule_prefix"]), float(arrays["gain"])
    backbone = build_backbone("resnet38", dropout=(0.2, 0.2))
    model = KTSE(KTSEConfig(), backbone, arrays["ktse_gpp"].shape[1]).eval()
    fill_set_b(backbone, prefix, gain)
    head: dict[str, Any] = {"fc8": model.head.reduce, "fc9": model.head.classify}
    for number, gate in enumerate(model.head.pooling.gates.children(), start=1):
        head |= {f"gconv{number}.att_p.0": gate.positive, f"gconv{number}.att_n.0": gate.negative}
    for key, layer in head.items():
        layer.weight.copy_(torch.from_numpy(set_b(f"{key}.weight", layer.weight.shape, prefix, gain)))
    trainable = {f"{key}.weight" for key in head} | {k for k, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == set(arrays["ktse_trainable"].tolist())
    images = torch.from_numpy(set_b_input("image", arrays["input_shape"].tolist(), prefix))
    planes = model.planes(images)
    near(planes, arrays["ktse_F21"], 5e-5)
    logits, pooled = model.pool(planes[:, 1:])
    near(pooled, arrays["ktse_gpp"], 5e-5)
    near(logits, arrays["ktse_logits"], 5e-5)
