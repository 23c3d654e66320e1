# SPDX-License-Identifier: Apache-2.0
"""Seeds against the label maps of PSA, IRN and KTSE, and the rules they promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike
from pydantic import ValidationError

from wsss_ray.config import UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine.base import RefinerConfig
from wsss_ray.refine.crf import PRESETS, smooth_labels
from wsss_ray.refine.planes import add_constant_background, pick_winners
from wsss_ray.refine.seeds import (
    ConfidentPowerSeedsConfig,
    ConfidentSeedsConfig,
    PowerSeedsConfig,
    ThresholdSeedsConfig,
    average_blocks,
    make_confident_mask,
    pick_confident,
)

Golden = Callable[[str], dict[str, np.ndarray]]
ALL: list[RefinerConfig] = [
    ThresholdSeedsConfig(),
    PowerSeedsConfig(),
    ConfidentSeedsConfig(),
    ConfidentPowerSeedsConfig(),
]


def class_maps(classes: ArrayLike, values: ArrayLike, size: tuple[int, int] | None = None) -> ClassMaps:
    planes = np.asarray(values, np.float32)
    return ClassMaps("a", np.asarray(classes, np.int32), planes, size or (planes.shape[1], planes.shape[2]))


def blank(maps: ClassMaps) -> np.ndarray:
    return np.zeros((*maps.size, 3), np.uint8)


def test_psa_seed(golden: Golden) -> None:
    data = golden("b10_psa_cam_crf.npz")
    maps = class_maps(data["keys"], data["cam"])
    np.testing.assert_array_equal(
        ThresholdSeedsConfig(threshold=0.2).refine(data["img"], maps), data["cam_pred_theta02"]
    )


@pytest.mark.parametrize(("name", "background"), [("irn", 0.05), ("ktse", 0.10)])
def test_irn_and_ktse_labels(golden: Golden, name: str, background: float) -> None:
    pytest.importorskip("pydensecrf")
    data = golden("b06_irn_ir_label.npz")
    for k in (0, 1):
        maps = class_maps(data[f"keys{k}"], data[f"cam{k}"])
        mask = ConfidentSeedsConfig(background=background).refine(data[f"img{k}"], maps)
        np.testing.assert_array_equal(mask, data[f"ir_label{k}_{name}"])


def test_irn_seeds_before_the_crf(golden: Golden) -> None:
    data = golden("b06_irn_ir_label.npz")
    for k in (0, 1):
        for stored, level in (("fg30", 0.30), ("bg05", 0.05), ("bg10", 0.10)):
            seed = pick_winners(add_constant_background(data[f"cam{k}"], level))
            np.testing.assert_array_equal(seed, data[f"hard{k}_{stored}"])


def test_irn_seeds_after_the_crf(golden: Golden) -> None:
    pytest.importorskip("pydensecrf")
    data = golden("b06_irn_ir_label.npz")
    for k in (0, 1):
        num_labels = len(data[f"keys{k}"]) + 1
        for stored in ("fg30", "bg05", "bg10"):
            marginals = smooth_labels(data[f"img{k}"], data[f"hard{k}_{stored}"], num_labels, PRESETS["irn"])
            np.testing.assert_array_equal(pick_winners(marginals), data[f"crf{k}_{stored}"])


def test_psa_affinity_labels_from_pooled_scores(golden: Golden) -> None:
    data = golden("b09_psa_pairs_labels.npz")
    side = data["score_low_f16"].shape[1] // data["score_label"].shape[0]
    low, high = (
        average_blocks(data[f"score_{name}_f16"].astype(np.float32), side)[:, ::side, ::side]
        for name in ("low", "high")
    )
    np.testing.assert_array_equal(pick_confident(low, high), data["score_label"])


def test_a_tie_is_background() -> None:
    maps = class_maps([1], [[[0.2, 0.2000001, 0.1999999, 0.0]]])
    assert ThresholdSeedsConfig(threshold=0.2).refine(blank(maps), maps).tolist() == [[0, 2, 0, 0]]
    assert ThresholdSeedsConfig(threshold=0).refine(blank(maps), maps).tolist() == [[2, 2, 2, 0]]


def test_power_by_hand() -> None:
    # 0.4: background 0.6^2 = 0.36 loses; 0.38: 0.62^2 = 0.3844 wins; at power 1 a half is a tie
    maps = class_maps([5], [[[0.4, 0.38]]])
    assert PowerSeedsConfig(alpha=2).refine(blank(maps), maps).tolist() == [[6, 0]]
    half = class_maps([5], [[[0.5, 0.51]]])
    assert PowerSeedsConfig(alpha=1).refine(blank(half), half).tolist() == [[0, 6]]


def test_three_zones_of_confidence() -> None:
    maps = class_maps([0, 7], [[[0.9, 0.2, 0.01, 0.0]], [[0.1, 0.1, 0.02, 0.31]]])
    assert ConfidentSeedsConfig(crf=None).refine(blank(maps), maps).tolist() == [[1, 255, 0, 8]]


def test_a_sure_class_stays_where_the_second_crf_says_background() -> None:
    sure, likely = np.array([[1, 0, 0]]), np.array([[0, 0, 1]])
    assert make_confident_mask(sure, likely, np.array([4])).tolist() == [[5, 0, 255]]


def test_where_the_high_power_says_background_it_wins() -> None:
    low = np.array([[[0.1, 0.9, 0.9, 0.1, 0]], [[0.9, 0.1, 0.1, 0.9, 0]]])
    high = np.array([[[0.1, 0.1, 0.9, 0.9, 0]], [[0.9, 0.9, 0.1, 0.1, 0]]])
    assert pick_confident(low, high).tolist() == [[1, 255, 0, 0, 255]]


def test_confident_powers_leave_the_middle_unknown() -> None:
    # 0.5: 0.5^1 ties (background at the low power), 0.5^4 loses: unknown; 0.9 wins at both; 0.1 loses at both
    maps = class_maps([2], [[[0.5, 0.9, 0.1]]])
    mask = ConfidentPowerSeedsConfig(alpha_low=1, alpha_high=4, crf=None).refine(blank(maps), maps)
    assert mask.tolist() == [[255, 3, 0]]


def test_block_mean_of_a_ragged_grid() -> None:
    means = average_blocks(np.arange(15, dtype=np.float32).reshape(1, 3, 5), 2)
    assert means[0].tolist() == [[3, 3, 5, 5, 6.5], [3, 3, 5, 5, 6.5], [10.5, 10.5, 12.5, 12.5, 14]]


@pytest.mark.parametrize("refiner", ALL, ids=lambda r: r.name)
def test_contract(refiner: RefinerConfig) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    maps = class_maps([3, 9, 253], rng.random((3, 5, 6)), (17, 23))
    if refiner.name.startswith("confident"):
        pytest.importorskip("pydensecrf")
    mask = refiner.refine(image, maps)
    assert mask.dtype == np.uint8
    assert mask.shape == (17, 23)
    assert set(np.unique(mask)) <= {0, 4, 10, 254, 255}
    nothing = ClassMaps("a", np.zeros(0, np.int32), np.zeros((0, 5, 6), np.float32), (17, 23))
    assert not refiner.refine(image, nothing).any()
    assert type(refiner).model_validate(refiner.model_dump(mode="json")) == refiner


def test_a_class_that_would_read_as_unknown_is_refused() -> None:
    maps = class_maps([254], [[[0.9]]])
    with pytest.raises(UserError, match="at most 254"):
        ThresholdSeedsConfig().refine(blank(maps), maps)


def test_levels_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="swap"):
        ConfidentSeedsConfig(foreground=0.1, background=0.2)
    with pytest.raises(ValidationError, match="swap"):
        ConfidentPowerSeedsConfig(alpha_low=8, alpha_high=4)
