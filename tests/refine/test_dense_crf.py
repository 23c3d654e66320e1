# SPDX-License-Identifier: Apache-2.0
"""The compiled CRF against pydensecrf, on images of any size and any number of labels, and by its own properties."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsss_ray.config import UserError, select
from wsss_ray.refine import crf
from wsss_ray.refine.crf import PRESETS, CRFConfig, compute_score_energy, infer_marginals, smooth_scores

pytest.importorskip("numba")
pytest.importorskip("pydensecrf")
ONCE, OFTEN = 2e-5, 1e-2
"""How far marginals may lie apart after one step, where only the order of sums differs, and after all of them: every
softmax widens a difference."""


def use(config: CRFConfig, **changes: object) -> CRFConfig:
    return config.model_copy(update=changes)


def infer_reference(image: np.ndarray, energy: np.ndarray, config: CRFConfig) -> np.ndarray:
    return infer_marginals(image, energy, use(config, engine="pydensecrf"))


def make_case(size: tuple[int, int], num_labels: int, noise: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image between flat and noise, and energies of smooth scores."""
    rng = np.random.default_rng(seed)
    height, width = size
    base = np.linspace(0, 200, width)[None, :, None] * (noise > 0) + rng.integers(0, 50, 3)
    image = np.clip(base + rng.integers(0, noise + 1, (height, width, 3)), 0, 255).astype(np.uint8)
    coarse = rng.random((num_labels, -(-height // 6), -(-width // 6))) ** 3
    scores = coarse.repeat(6, axis=1)[:, :height].repeat(6, axis=2)[:, :, :width]
    scores = scores + 0.05 * rng.random((num_labels, height, width))
    return image, compute_score_energy((scores / scores.sum(axis=0)).astype(np.float32))


def assert_same(image: np.ndarray, energy: np.ndarray, config: CRFConfig) -> None:
    """Equal labels, but where the reference itself has a tie; marginals as close as rounding lets them be."""
    once = use(config, iterations=1)
    np.testing.assert_allclose(infer_marginals(image, energy, once), infer_reference(image, energy, once), atol=ONCE)
    fast, reference = infer_marginals(image, energy, config), infer_reference(image, energy, config)
    first, second = np.sort(np.concatenate([reference, np.zeros_like(reference[:1])]), axis=0)[[-1, -2]]
    differ = fast.argmax(axis=0) != reference.argmax(axis=0)
    assert not (differ & (first - second > 1e-4)).any()
    np.testing.assert_allclose(fast, reference, atol=OFTEN)
    np.testing.assert_allclose(fast.sum(axis=0), 1, atol=1e-5)


UNLIKE = {config: name for name, config in sorted(PRESETS.items(), reverse=True)}
"""One name of every set of settings that presets have."""


@pytest.mark.parametrize("name", sorted(UNLIKE.values()))
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    num_labels=st.one_of(st.integers(1, 24), st.integers(25, 255)),
    noise=st.sampled_from([0, 3, 40, 255]),
    seed=st.integers(0, 1000),
)
@example(size=(1, 1), num_labels=2, noise=0, seed=0)
@example(size=(1, 31), num_labels=40, noise=0, seed=81)  # dark, and no multiple of four pixels
@example(size=(1, 37), num_labels=255, noise=255, seed=1)
@example(size=(64, 90), num_labels=21, noise=40, seed=2)
@settings(max_examples=8, deadline=None)
def test_labels_are_those_of_pydensecrf(
    name: str, size: tuple[int, int], num_labels: int, noise: int, seed: int
) -> None:
    image, energy = make_case(size, num_labels, noise, seed)
    config = PRESETS[name]
    assert config.engine == "fast"
    assert_same(image, energy, config)


@pytest.mark.parametrize(
    "changes",
    [
        {"bilateral_weight": 0.0},
        {"gaussian_weight": 0.0},
        {"bilateral_weight": 0.0, "gaussian_weight": 0.0},
        {"iterations": 1},
        {"scale": 2.0},
        {"bilateral_weight": 300.0},
        {"bilateral_rgb": 0.02, "bilateral_xy": 0.05},
    ],
)
def test_settings_beside_the_presets(changes: dict[str, float]) -> None:
    image, energy = make_case((30, 41), 5, 40, 3)
    config = use(PRESETS["psa"], **changes)
    assert_same(image, energy, config)


def test_a_lattice_of_many_vertices() -> None:
    """Vertices in the order of their keys, in place of that of the pixels."""
    image, energy = make_case((220, 240), 6, 255, 4)
    config = PRESETS["deeplab_v2"]
    from wsss_ray.refine.dense_crf.lattice import LARGE, find_bilateral_lattice

    lattice = find_bilateral_lattice(image, config.bilateral_xy, config.bilateral_rgb, config.bilateral_weight)
    assert lattice.num_vertices > LARGE
    assert_same(image, energy, config)


@given(span=st.floats(1, 400), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_energies_that_lie_far_apart_have_the_reference_s_labels(span: float, seed: int) -> None:
    """Also where e to their difference is 0 in float32."""
    image, energy = make_case((12, 17), 4, 40, seed)
    energy = (energy - energy.min()) / (energy.max() - energy.min()) * np.float32(span)
    fast, reference = infer_marginals(image, energy, PRESETS["psa"]), infer_reference(image, energy, PRESETS["psa"])
    assert np.isfinite(fast).all()
    np.testing.assert_allclose(fast, reference, atol=OFTEN)


@given(size=st.tuples(st.integers(1, 30), st.integers(1, 30)), num_labels=st.integers(1, 30), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_scores_are_unaries_as_their_energies_are(size: tuple[int, int], num_labels: int, seed: int) -> None:
    """Some above 1 and below the least that counts."""
    rng = np.random.default_rng(seed)
    image, _ = make_case(size, 1, 40, seed)
    scores = rng.random((num_labels, *size)).astype(np.float32) ** 8 * np.float32(1.1)
    for engine in ("fast", "pydensecrf"):
        config = use(PRESETS["psa"], engine=engine, iterations=2, clip=1e-2)
        energy = compute_score_energy(scores, config.clip)
        one, other = infer_marginals(image, scores, config, scores=True), infer_marginals(image, energy, config)
        np.testing.assert_allclose(one, other, atol=1e-4)


@given(keys=st.sets(st.one_of(st.integers(0, 50), st.integers(0, 2**62 - 1)), min_size=1, max_size=40))
def test_keys_of_any_size_are_sorted(keys: set[int]) -> None:
    from wsss_ray.refine.dense_crf.lattice import _sort_keys

    given_ = np.array(list(keys))
    found, order = _sort_keys(given_)
    assert found.tolist() == sorted(keys)
    assert given_[order].tolist() == sorted(keys)


def test_dropped_labels_are_zero_and_the_others_stay() -> None:
    image, energy = make_case((48, 60), 30, 40, 5)
    energy[[3, *range(8, 30)]] += 14
    whole = infer_marginals(image, energy, PRESETS["psa"])
    fewer = infer_marginals(image, energy, CRFConfig(drop=1e-4))
    assert not fewer[[3, *range(8, 30)]].any()
    assert whole[3].any()
    assert (whole.argmax(axis=0) == fewer.argmax(axis=0)).mean() > 0.999
    np.testing.assert_allclose(fewer.sum(axis=0), 1, atol=1e-5)
    alone = energy.copy()
    alone[1:] += 30
    assert (infer_marginals(image, alone, CRFConfig(drop=1e-4))[0] == 1).all()


@pytest.mark.parametrize("clip", [1e-5, 1e-3])
def test_labels_dropped_before_the_first_step_would_be_after_it(clip: float) -> None:
    """None but those whose first marginal is below ``drop`` everywhere, scores clipped as they are."""
    image, energy = make_case((30, 40), 12, 40, 6)
    scores = np.exp(-energy)
    scores[4:] *= np.logspace(-6, 0, 8, dtype=np.float32)[:, None, None]
    scores /= scores.sum(axis=0)
    config = CRFConfig(drop=1e-4, clip=clip, iterations=1)
    clipped = np.clip(scores, clip, 1)
    peaks = (clipped / clipped.sum(axis=0)).reshape(12, -1).max(axis=1)
    dropped = ~crf._find_competing(scores, config)
    assert (peaks[dropped] < config.drop).all()
    assert dropped.any() == (clip < config.drop)
    assert not smooth_scores(image, scores, config)[dropped].any()


def test_images_of_one_size_share_a_lattice_and_threads_do_not_mix() -> None:
    from wsss_ray.refine.dense_crf.lattice import find_spatial_lattice

    assert find_spatial_lattice(20, 30, 3.0, 3.0) is find_spatial_lattice(20, 30, 3.0, 3.0)
    cases = [make_case((60, 70), 4, 40, seed) for seed in range(4)]
    alone = [infer_marginals(image, energy, PRESETS["psa"]) for image, energy in cases]
    found: list[np.ndarray] = [np.zeros(0)] * 4

    def work(place: int) -> None:
        for _ in range(5):
            found[place] = infer_marginals(*cases[place], PRESETS["psa"])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_engine_is_part_of_what_masks_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select(CRFConfig(), "masks")["engine"] == "fast"
    monkeypatch.setattr(crf, "has_fast", lambda: False)
    assert CRFConfig().engine == "pydensecrf"
    assert CRFConfig.model_validate({"engine": "fast"}).engine == "pydensecrf"
    with pytest.raises(ValueError, match="drop needs the fast engine"):
        CRFConfig(drop=1e-4)
    image, energy = make_case((5, 6), 3, 40, 0)
    with pytest.raises(UserError, match="wsss-ray\\[fast\\]"):
        infer_marginals(image, energy, PRESETS["psa"].model_copy(update={"engine": "fast"}))


def test_without_numba_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "has_fast", lambda: False)
    crf._say_slow.cache_clear()
    image, energy = make_case((5, 6), 3, 40, 0)
    with pytest.warns(UserWarning, match="pip install"):
        infer_marginals(image, energy, CRFConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer_marginals(image, energy, CRFConfig())


@pytest.mark.parametrize("case", ["home", "read_only", "set"])
def test_where_compiled_code_is_kept(case: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below a file")
    given_ = {"home": tmp_path / "home", "read_only": blocked / "below", "set": tmp_path / "home"}[case]
    environment = {**os.environ, "HOME": str(given_), "XDG_CACHE_HOME": str(given_), "TMPDIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    if case == "set":
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "own")
    code = (
        "import numpy as np\n"
        "from wsss_ray.refine.dense_crf.compiling import find_cache_folder\n"
        "from wsss_ray.refine.dense_crf.lattice_kernels import renumber\n"
        "renumber(np.zeros((1, 3), np.uint32), np.arange(2, dtype=np.uint32))\n"
        "print(find_cache_folder())\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    assert list(folder.rglob("*.nbi")), "nothing was kept"
    assert str(folder).startswith(str({"home": given_, "read_only": tmp_path, "set": tmp_path / "own"}[case]))
