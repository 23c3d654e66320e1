# SPDX-License-Identifier: Apache-2.0
"""The dense CRF against the released scripts of PSA, IRN, SMAF and deeplab-pytorch, and by its own properties."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from wsss_ray.config import UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine import crf
from wsss_ray.refine.crf import (
    PRESETS,
    CRFConfig,
    CRFRefinerConfig,
    compute_label_energy,
    compute_score_energy,
    infer_marginals,
    make_guide,
    smooth_labels,
    smooth_scores,
    wrap_image,
)
from wsss_ray.refine.dense_crf import UnfitError
from wsss_ray.refine.planes import add_power_background, pick_winners

pytest.importorskip("pydensecrf")
Golden = Callable[[str], dict[str, np.ndarray]]
SAME_LIBRARY = 1e-5


@pytest.fixture(params=["fast", "pydensecrf"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test holds for both engines, whichever the settings name."""
    name = str(request.param)
    if name == "fast":
        pytest.importorskip("numba")
    else:

        def refuse(*_: object) -> None:
            raise UnfitError("so that pydensecrf answers")

        monkeypatch.setattr(crf, "_infer_fast", refuse)
    return name


@pytest.mark.parametrize("alpha", [4, 24, 32])
def test_psa_scores(golden: Golden, alpha: float) -> None:
    data = golden("08_crf.npz")
    marginals = smooth_scores(data["image"], add_power_background(data["cam"], alpha), PRESETS["psa"])
    np.testing.assert_allclose(marginals, data[f"psa_alpha{alpha}"], atol=SAME_LIBRARY)


def test_psa_energy_iterations_and_scale(golden: Golden) -> None:
    data = golden("08_crf.npz")
    scores = add_power_background(data["cam"], 4)
    np.testing.assert_allclose(compute_score_energy(scores), data["psa_alpha4_unary"], atol=2e-6)
    once = smooth_scores(data["image"], scores, CRFConfig(iterations=1))
    np.testing.assert_allclose(once, data["psa_alpha4_1iter"], atol=SAME_LIBRARY)
    halved = smooth_scores(data["image"], scores, CRFConfig(scale=2))
    np.testing.assert_allclose(halved, data["psa_alpha4_scale2"], atol=SAME_LIBRARY)


@pytest.mark.parametrize("alpha", [2, 4, 21, 32])
def test_psa_scores_of_a_second_image(golden: Golden, alpha: float) -> None:
    data = golden("b10_psa_cam_crf.npz")
    marginals = smooth_scores(data["img"], add_power_background(data["cam"], alpha), PRESETS["psa"])
    np.testing.assert_allclose(marginals, data[f"crf_scores_alpha{alpha}"], atol=SAME_LIBRARY)


@pytest.mark.parametrize("side", ["fg", "bg"])
def test_irn_labels(golden: Golden, side: str) -> None:
    data = golden("08_crf.npz")
    marginals = smooth_labels(data["image"], data[f"irn_{side}_in"], len(data["present"]) + 1, PRESETS["irn"])
    np.testing.assert_array_equal(pick_winners(marginals), data[f"irn_{side}_out"])


def test_irn_labels_after_one_iteration(golden: Golden) -> None:
    data = golden("b06_irn_ir_label.npz")
    config = PRESETS["irn"].model_copy(update={"iterations": 1})
    for k in (0, 1):
        marginals = smooth_labels(data[f"img{k}"], data[f"hard{k}_fg30"], len(data[f"keys{k}"]) + 1, config)
        np.testing.assert_array_equal(pick_winners(marginals), data[f"crf{k}_fg30_t1"])


def test_smaf_counts_every_label_of_the_data_set(golden: Golden) -> None:
    data = golden("08_crf.npz")
    num_labels = len(data["deeplab_prob"])
    energy = compute_label_energy(data["smaf_in"], num_labels, PRESETS["smaf"].gt_prob)
    np.testing.assert_allclose(np.unique(energy), np.sort(data["smaf_unary_values"]), rtol=1e-6)
    marginals = smooth_labels(data["image"], data["smaf_in"], num_labels, PRESETS["smaf"])
    shown = [0, *(data["present"] + 1)]
    np.testing.assert_allclose(marginals[shown], data["smaf_q"], atol=SAME_LIBRARY)
    maps = ClassMaps("a", data["present"], data["cam"], data["cam"].shape[1:])
    refiner = CRFRefinerConfig(
        unary="labels", background="constant", threshold=0.2, crf=PRESETS["smaf"], num_labels=num_labels
    )
    np.testing.assert_array_equal(refiner.refine(data["image"], maps), data["smaf_out"])


@pytest.mark.parametrize(
    ("preset", "stored"),
    [
        ("deeplab_v2", "deeplab_v2_bgr"),
        ("deeplab_v2_wrapped", "deeplab_v2_wrapped"),
        ("largefov", "deeplab_v1_bgr"),
        ("largefov_wrapped", "deeplab_v1_wrapped"),
    ],
)
def test_deeplab(golden: Golden, preset: str, stored: str) -> None:
    data = golden("08_crf.npz")
    scores = data["deeplab_prob"].astype(np.float32)
    marginals = smooth_scores(data["image"], scores, PRESETS[preset])
    np.testing.assert_allclose(marginals[[0, *(data["present"] + 1)]], data[f"{stored}_q"], atol=SAME_LIBRARY)
    np.testing.assert_array_equal(pick_winners(marginals), data[f"{stored}_argmax"])


@pytest.mark.parametrize("preset", ["ssss", "wsfcn"])
@pytest.mark.parametrize("mode", ["gate", "gtlabels"])
def test_single_stage_methods_score_every_label(golden: Golden, preset: str, mode: str) -> None:
    data, image = golden(f"b14_{preset}_infer_merge.npz"), golden("b14_ssss_infer_merge.npz")["img"]
    num_labels = golden("b14_ssss_infer_merge.npz")["masks_u8"].shape[1]
    scores = np.zeros((num_labels, *image.shape[:2]), np.float32)
    scores[data[f"{mode}_active"]] = data[f"{mode}_crf_in_active"]
    marginals = smooth_scores(image, scores, PRESETS[preset])
    np.testing.assert_allclose(marginals[data[f"{mode}_active"]], data[f"{mode}_crf_q_active"], atol=SAME_LIBRARY)
    np.testing.assert_array_equal(pick_winners(marginals), data[f"{mode}_pred_crf"])


def test_wrapped_image(golden: Golden) -> None:
    data = golden("08_crf.npz")
    np.testing.assert_array_equal(wrap_image(data["image"]), data["deeplab_wrapped_bgr"])


def test_wrapped_image_by_hand() -> None:
    # B 100 - 104.008 -> -4 -> 252, G 120 - 116.669 -> 3, R 10 - 122.675 -> -112 -> 144
    image = np.array([[[10, 120, 100]]], np.uint8)
    assert wrap_image(image)[0, 0].tolist() == [252, 3, 144]
    assert make_guide(image, PRESETS["deeplab_v2_wrapped"])[0, 0].tolist() == [252, 3, 144]
    assert make_guide(image, CRFConfig(wrapped=True))[0, 0].tolist() == [144, 3, 252]
    assert make_guide(image, PRESETS["deeplab_v2"])[0, 0].tolist() == [100, 120, 10]
    assert make_guide(image, PRESETS["psa"])[0, 0].tolist() == [10, 120, 100]


def test_label_energy_by_hand() -> None:
    energy = compute_label_energy(np.array([[2]]), 21, 0.7)
    assert energy[2, 0, 0] == pytest.approx(0.356675, abs=1e-6)
    assert energy[[0, 20], 0, 0] == pytest.approx([4.199705, 4.199705], abs=1e-6)
    assert compute_label_energy(np.zeros((2, 3), np.int64), 1).tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_scores_are_clipped() -> None:
    energy = compute_score_energy(np.array([[[0.0, 2.0, 0.5]]], np.float32))
    assert energy[0, 0] == pytest.approx([11.512925, 0.0, 0.693147], abs=1e-5)


def test_without_kernels_the_unary_wins() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    scores = rng.random((4, 9, 11), dtype=np.float32)
    alone = CRFConfig(gaussian_weight=0, bilateral_weight=0)
    marginals = smooth_scores(image, scores, alone)
    np.testing.assert_array_equal(pick_winners(marginals), pick_winners(scores))
    np.testing.assert_allclose(marginals, scores / scores.sum(axis=0), atol=1e-5)


def test_on_one_colour_the_bilateral_kernel_is_spatial() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((3, 24, 30), dtype=np.float32)
    narrow, wide = (
        CRFConfig(gaussian_weight=0, bilateral_xy=10, bilateral_weight=2, bilateral_rgb=rgb) for rgb in (3, 1000)
    )
    flat = np.full((24, 30, 3), 77, np.uint8)
    noisy = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    # The lattice approximates: its error depends on the position of the one colour.
    np.testing.assert_allclose(smooth_scores(flat, scores, narrow), smooth_scores(flat, scores, wide), atol=0.01)
    assert abs(smooth_scores(noisy, scores, narrow) - smooth_scores(noisy, scores, wide)).max() > 0.2


def test_a_confident_unary_survives_on_one_colour() -> None:
    confident = np.zeros((24, 30), np.int64)
    confident[:, 15:] = 1
    kept = pick_winners(
        smooth_labels(np.full((24, 30, 3), 9, np.uint8), confident, 2, CRFConfig(gt_prob=0.99, bilateral_xy=2))
    )
    np.testing.assert_array_equal(kept, confident)


def test_pruned_labels_come_out_zero_and_the_background_stays() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (16, 18, 3), dtype=np.uint8)
    scores = rng.random((4, 16, 18), dtype=np.float32)
    scores[[0, 2]] *= 0.01
    pruned = smooth_scores(image, scores, CRFConfig(prune=0.05))
    assert not pruned[2].any()
    np.testing.assert_array_equal(pruned[[0, 1, 3]], smooth_scores(image, scores[[0, 1, 3]], PRESETS["psa"]))


def test_one_label_needs_no_library(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    image = np.zeros((3, 4, 3), np.uint8)
    assert smooth_scores(image, np.full((1, 3, 4), 0.3, np.float32), PRESETS["psa"]).tolist() == [[[1] * 4] * 3]
    if engine == "fast":
        return
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        smooth_scores(image, np.full((2, 3, 4), 0.3, np.float32), PRESETS["psa"])


def test_sizes_must_agree() -> None:
    with pytest.raises(UserError, match="resize"):
        infer_marginals(np.zeros((3, 4, 3), np.uint8), np.zeros((2, 4, 3), np.float32), PRESETS["psa"])


def test_an_image_without_labels_is_background() -> None:
    maps = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, 2, 3), np.float32), (5, 7))
    assert CRFRefinerConfig().refine(np.zeros((5, 7, 3), np.uint8), maps).tolist() == [[0] * 7] * 5


def test_absent_classes_never_appear() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    maps = ClassMaps("a", np.array([3, 9], np.int32), rng.random((2, 5, 6), dtype=np.float32), (20, 24))
    for unary in ("scores", "labels"):
        mask = CRFRefinerConfig(unary=unary, background="constant", num_labels=30).refine(image, maps)
        assert mask.dtype == np.uint8
        assert mask.shape == (20, 24)
        assert set(np.unique(mask)) <= {0, 4, 10}


def test_presets_by_name() -> None:
    assert CRFRefinerConfig.model_validate({"crf": "wsfcn"}).crf == PRESETS["wsfcn"]
    assert (PRESETS["wsfcn"].bilateral_xy, PRESETS["ssss"].bilateral_xy) == (30, 80)
    assert CRFConfig.model_validate(PRESETS["largefov"].model_dump(mode="json")) == PRESETS["largefov"]
    with pytest.raises(ValidationError, match="no CRF preset 'pza'"):
        CRFRefinerConfig.model_validate({"crf": "pza"})
