# SPDX-License-Identifier: Apache-2.0
"""Gated pyramid pooling: the released head's numbers, the constant-map formula, and where its signs come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_ray.methods.ktse.pooling import Gate, GatedPyramidPooling, GPPHead, build_pyramid, score_classes

Golden = Callable[[str], dict[str, np.ndarray]]


def gates(pooling: GatedPyramidPooling) -> list[Gate]:
    return [gate for gate in pooling.gates if isinstance(gate, Gate)]


def released_head(arrays: dict[str, np.ndarray]) -> GPPHead:
    """A head with the weights of the golden file."""
    hidden, channels = arrays["w_fc8"].shape[:2]
    head = GPPHead(channels, arrays["w_fc9"].shape[0] - 1, hidden)
    with torch.no_grad():
        head.reduce.weight.copy_(torch.from_numpy(arrays["w_fc8"]))
        head.classify.weight.copy_(torch.from_numpy(arrays["w_fc9"]))
        for number, gate in enumerate(gates(head.pooling), start=1):
            gate.positive.weight.copy_(torch.from_numpy(arrays[f"w_gate{number}_p"]))
            gate.negative.weight.copy_(torch.from_numpy(arrays[f"w_gate{number}_n"]))
    return head


def close(actual: Tensor | None, expected: np.ndarray, atol: float) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), torch.from_numpy(expected), atol=atol, rtol=0)


def test_the_released_head_is_met_value_by_value_and_gradient_by_gradient(golden: Golden) -> None:
    arrays = golden("b02_gpp.npz")
    for case in range(int(arrays["n_cases"])):
        head = released_head(arrays)
        features = torch.from_numpy(arrays[f"c{case}_feat"]).requires_grad_()
        planes = head.planes(features)
        planes.retain_grad()
        logits, pooled = head.pool(planes[:, 1:])
        close(planes, arrays[f"c{case}_F21"], 1e-5)
        close(pooled, arrays[f"c{case}_gpp"], 1e-5)
        close(logits, arrays[f"c{case}_logit"], 1e-5)
        if f"c{case}_gate1" in arrays:
            steps = build_pyramid(planes[:, 1:])
            close(steps[0], arrays[f"c{case}_G2up"], 1e-5)
            first = gates(head.pooling)[0](steps[0], steps[1])
            close(first, arrays[f"c{case}_gate1"], 1e-5)
            close(gates(head.pooling)[1](first, steps[2]), arrays[f"c{case}_gate2"], 1e-5)
        (logits * torch.from_numpy(arrays[f"c{case}_cot"])).sum().backward()
        gradients = {"F21": planes.grad, "feat": features.grad, "fc8": head.reduce.weight.grad}
        gradients["fc9"] = head.classify.weight.grad
        for number, gate in enumerate(gates(head.pooling), start=1):
            gradients[f"gate{number}_p"] = gate.positive.weight.grad
            gradients[f"gate{number}_n"] = gate.negative.weight.grad
        for name, gradient in gradients.items():
            if f"c{case}_grad_{name}" in arrays:
                close(gradient, arrays[f"c{case}_grad_{name}"], 5e-5)


def test_constant_maps_of_the_released_head(golden: Golden) -> None:
    expected = golden("b02_gpp.npz")["const_zero_gate_logits_v2"]
    pooling = silent_pooling(3)
    for value, logit in zip((2.0, -2.0), expected, strict=True):
        features = torch.full((1, 3, 20, 20), value)
        close(score_classes(features, pooling(features)), np.full((1, 3), logit, np.float32), 1e-5)


def silent_pooling(num_classes: int) -> GatedPyramidPooling:
    pooling = GatedPyramidPooling(num_classes)
    for parameter in pooling.parameters():
        torch.nn.init.zeros_(parameter)
    return pooling


@pytest.mark.parametrize("value", [3.0, 0.5, 0.0, -0.5, -3.0])
def test_silent_gates_turn_a_constant_into_its_signed_square(value: float) -> None:
    """Each gate is 1/2 * 1/2 * (coarse + fine): v/2, then 3v/8, then 11v/32 = 0.34375 v."""
    features = torch.full((2, 4, 9, 13), value)
    logits = score_classes(features, silent_pooling(4)(features))
    sign = 1.0 if value > 0 else -1.0
    torch.testing.assert_close(logits, torch.full((2, 4), sign * 11 / 32 * value**2), atol=1e-6, rtol=1e-6)


def test_the_first_gate_channel_weighs_the_coarser_map() -> None:
    gate = gates(silent_pooling(1))[0]
    with torch.no_grad():
        gate.positive.weight[0, :, 1, 1] = 50.0
        gate.positive.weight[1, :, 1, 1] = -50.0
    mixed = gate(torch.full((1, 1, 3, 3), 4.0), torch.full((1, 1, 3, 3), 10.0))
    torch.testing.assert_close(mixed, torch.full((1, 1, 3, 3), 2.0), atol=1e-5, rtol=0)


def test_evidence_of_opposite_sign_does_not_count() -> None:
    features = torch.ones(1, 1, 4, 4)
    assert score_classes(features, -features).item() == 0.0
    assert score_classes(-features, -features).item() == -1.0


def test_gates_see_their_own_class_count_and_have_no_biases() -> None:
    head = GPPHead(8, 7, hidden=5)
    assert head.planes(torch.rand(2, 8, 6, 6)).shape == (2, 8, 6, 6)
    assert [tuple(p.shape) for p in head.pooling.parameters()] == [(2, 14, 3, 3)] * 6
    assert not any(name.endswith("bias") for name, _ in head.named_parameters())


def test_the_two_projections_start_at_xavier_scale() -> None:
    torch.manual_seed(0)
    head = GPPHead(64, 20, hidden=32)
    bound = (6 / (64 + 32)) ** 0.5
    largest = head.reduce.weight.abs().max().item()
    assert 0.95 * bound < largest <= bound
