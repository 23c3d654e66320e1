# SPDX-License-Identifier: Apache-2.0
"""Samples by (epoch, index), partners, batches, and threads that change nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_ray.config import UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.data import samples as dataset
from wsss_ray.data.augment import AugmentConfig
from wsss_ray.data.colour import JitterConfig, NormalizeConfig
from wsss_ray.data.image import decode_mask
from wsss_ray.data.partner import PartnerIndex
from wsss_ray.data.samples import Lookups, PixelCache, Prefetcher, Sampling, TrainSamples, collate
from wsss_ray.data.shards import Rows, write_dataset
from wsss_ray.data.sources import open_source

AUGMENT = AugmentConfig(resize="scale", range=(0.7, 1.5), crop=32, jitter=JitterConfig())
EVERYTHING = ("rgb", "saliency", "mask", "maps", "partner")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    root: Path = tmp_path_factory.mktemp("toy")
    write_dataset(open_source("toy", num_train=30, num_val=4, size=40), str(root / "data"))
    return Rows(str(root / "data"), "train", cache=root / "cache")


def mask_of(name: str) -> np.ndarray:
    return np.full((40, 40), int(name[-2:]) % 3, np.uint8)


def maps_of(name: str) -> ClassMaps:
    return ClassMaps(name, np.array([1, 3], np.int32), np.full((2, 10, 10), 0.5, np.float32), (40, 40))


def samples(rows: Rows, needs=EVERYTHING, **options) -> TrainSamples:
    lookups = Lookups(options.pop("mask_lookup", mask_of), options.pop("maps_lookup", maps_of))
    return TrainSamples(rows, 5, Sampling(AUGMENT, NormalizeConfig(), 3, needs), lookups, **options)


def equal(first: dict, second: dict) -> bool:
    assert first.keys() == second.keys()
    same = []
    for name, value in first.items():
        other = second[name]
        if isinstance(value, dict):
            same.append(equal(value, other))
        else:
            same.append(torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other)
    return all(same)


def test_sample_holds_what_is_needed(rows):
    sample = samples(rows).sample(0, 7)
    shapes = {name: tuple(value.shape) for name, value in sample.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "image": (3, 32, 32),
        "rgb": (3, 32, 32),
        "inside": (1, 32, 32),
        "saliency": (1, 32, 32),
        "mask": (32, 32),
        "maps": (5, 32, 32),
        "labels": (5,),
    }
    assert sample["image_id"] == rows.ids[7]
    assert sample["partner"]["maps"].shape == (5, 32, 32)
    assert torch.nonzero(sample["labels"]).flatten().tolist() == rows[7]["labels"]
    assert sample["maps"].amax(dim=(1, 2)).tolist() == [0, 0.5, 0, 0.5, 0]
    assert set(sample["mask"].unique().tolist()) <= {7 % 3, 255}
    assert set(samples(rows, ()).sample(0, 7)) == {"image", "inside", "labels", "image_id"}


def test_a_sample_depends_on_seed_epoch_and_index_alone(rows):
    first, second = samples(rows), samples(rows, cache_bytes=0)
    for index in (11, 2, 5):
        first.sample(0, index)
    for index in (2, 5, 11):
        assert equal(first.sample(4, index), second.sample(4, index))
    now, later = first.sample(4, 2), first.sample(5, 2)
    assert not torch.equal(now["image"], later["image"])
    assert not torch.equal(now["partner"]["image"], later["partner"]["image"])
    assert not torch.equal(first.sample(4, 2)["image"], first.sample(4, 3)["image"])
    other = TrainSamples(rows, 5, Sampling(AUGMENT, NormalizeConfig(), 4))
    plain = TrainSamples(rows, 5, Sampling(AUGMENT, NormalizeConfig(), 3))
    assert not equal(plain.sample(4, 2), other.sample(4, 2))
    assert torch.equal(plain.sample(4, 2)["image"], first.sample(4, 2)["image"]), "needs change nothing else"


def test_epoch_orders_are_permutations(rows):
    made = samples(rows, ())
    orders = [made.epoch_order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == samples(rows, ()).epoch_order(1).tolist()


def test_partners_share_a_class(rows):
    """KTSE spec T16, sampler part: the labels of a pair intersect; anchor and partner batches have equal shapes."""
    made = samples(rows, ("partner",))
    batch = collate([made.sample(1, index) for index in range(16)])
    assert batch.partner is not None
    assert batch.partner.partner is None
    assert batch.image.shape == batch.partner.image.shape == (16, 3, 32, 32)
    assert ((batch.labels * batch.partner.labels).sum(1) >= 1).all()
    assert len({made.sample(epoch, 0)["partner"]["image_id"] for epoch in range(12)}) > 3


def test_partner_rule_by_hand():
    """Anchor {0, 1}: half of the draws take class 0 (images 0, 1), half class 1 (images 0, 2, 3, 4)."""
    index = PartnerIndex([[0, 1], [0], [1], [1], [1], [2], None, []])
    rng = np.random.default_rng(0)
    counts = Counter(index.draw(0, rng) for _ in range(16000))
    expected = {0: 1 / 4 + 1 / 8, 1: 1 / 4, 2: 1 / 8, 3: 1 / 8, 4: 1 / 8}
    assert set(counts) == set(expected)
    for place, share in expected.items():
        assert counts[place] / 16000 == pytest.approx(share, abs=0.015)
    assert [index.draw(place, rng) for place in (5, 6, 7)] == [5, 6, 7]


def test_own_masks_of_the_rows_are_never_read(rows, monkeypatch):
    """Ground truth does not reach training: rows without that column give the same samples."""
    blind = Rows(rows.uri, "train", columns=("image_id", "image", "labels", "saliency"), cache=rows.cache)
    assert equal(samples(rows).sample(0, 3), samples(blind).sample(0, 3))


@pytest.mark.parametrize("threads", [1, 4])
def test_prefetched_batches_equal_plain_ones(rows, threads):
    made = samples(rows)
    order = made.epoch_order(2)
    batches = [order[start : start + 8].tolist() for start in range(0, 30, 8)]
    fetched = list(Prefetcher(made, 2, batches, num_threads=threads))
    assert [len(batch.image) for batch in fetched] == [8, 8, 8, 6]
    for indices, batch in zip(batches, fetched, strict=True):
        plain = collate([made.sample(2, index) for index in indices])
        for name in ("image", "labels", "inside", "rgb", "saliency", "maps", "mask"):
            assert torch.equal(getattr(batch, name), getattr(plain, name)), name
        assert torch.equal(batch.partner.image, plain.partner.image)


class Slow:
    """Samples that count themselves."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.lock = threading.Lock()

    def sample(self, epoch: int, index: int) -> dict:
        if index == 13:
            raise UserError("image 13 is broken")
        with self.lock:
            self.done.append(index)
        one = torch.full((1,), float(index))
        return {"image": one, "labels": one, "inside": one, "rgb": one}


def test_prefetcher_raises_in_place_and_stays_bounded():
    slow = Slow()
    batches = iter(Prefetcher(slow, 0, [[place] for place in range(100)], num_threads=2, ahead=3))
    assert next(batches).image.item() == 0
    time.sleep(0.2)
    assert len(slow.done) <= 4, "no more than three batches ahead"
    for place in range(1, 13):
        assert next(batches).image.item() == place
    with pytest.raises(UserError, match="image 13"):
        next(batches)
    before = threading.active_count()
    another = iter(Prefetcher(slow, 0, [[place] for place in range(5)]))
    next(another)
    another.close()
    assert threading.active_count() == before


def test_pixel_cache_keeps_to_its_limit():
    made: list[int] = []

    def make(key: int):
        def inner():
            made.append(key)
            return {"image": np.zeros(100, np.uint8)}

        return inner

    cache = PixelCache(250)
    for key in (1, 2, 1, 3, 1, 2):
        cache.get(key, make(key))
    assert made == [1, 2, 3, 2], "2 was the least recently used when 3 came"
    nothing = PixelCache(50)
    for _ in range(2):
        nothing.get(9, make(9))
    assert made[-2:] == [9, 9]


def test_images_are_decoded_once(rows, monkeypatch):
    calls = []
    plain = dataset.pic.decode_image
    monkeypatch.setattr(dataset.pic, "decode_image", lambda *args: calls.append(1) or plain(*args))
    made = samples(rows, ())
    for epoch in range(3):
        made.sample(epoch, 0)
    assert len(calls) == 1


def test_what_is_missing_is_said(rows, tmp_path):
    with pytest.raises(ValueError, match="Lookups has no mask"):
        samples(rows, ("mask",), mask_lookup=None)

    def gone(name: str):
        raise KeyError(name)

    with pytest.raises(UserError, match=f"{rows.ids[0]}: missing maps"):
        samples(rows, ("maps",), maps_lookup=gone).sample(0, 0)
    with pytest.raises(UserError, match="pseudo mask is"):
        samples(rows, ("mask",), mask_lookup=lambda name: np.zeros((39, 40), np.uint8)).sample(0, 0)
    with pytest.raises(UserError, match="label outside 0..0"):
        TrainSamples(rows, 1, Sampling(AUGMENT, NormalizeConfig(), 0)).sample(0, 1)


class Fixed(list):
    """Rows from a list."""

    def labels(self):
        return [row["labels"] for row in self]


def test_rows_without_saliency_or_labels(rows):
    row = {**rows[0], "saliency": None}
    with pytest.raises(UserError, match="no saliency map, which this method needs"):
        samples(Fixed([row]), ("saliency",)).sample(0, 0)
    with pytest.raises(UserError, match="has no labels"):
        samples(Fixed([{**row, "labels": None}]), ()).sample(0, 0)


def test_mask_lookup_goes_through_the_same_window(rows):
    """The toy truth as pseudo mask: saliency of perfect quality and mask agree on every pixel of a nearest-resized
    sample."""
    truth = {rows[index]["image_id"]: decode_mask(rows[index]["mask"]) for index in range(len(rows))}

    class Perfect(Fixed):
        pass

    from wsss_ray.data.image import encode_grey

    perfect = Perfect(
        {**rows[index], "saliency": encode_grey((truth[rows[index]["image_id"]] > 0).astype(np.uint8) * 255)}
        for index in range(len(rows))
    )
    config = AUGMENT.model_copy(update={"saliency_interpolation": "nearest"})
    sampling = Sampling(config, NormalizeConfig(), 0, ("saliency", "mask"))
    made = TrainSamples(perfect, 5, sampling, Lookups(truth.__getitem__))
    for index in range(10):
        sample = made.sample(0, index)
        inside = sample["inside"][0] == 1
        assert torch.equal((sample["mask"] > 0)[inside], (sample["saliency"][0] > 0.5)[inside])
