# SPDX-License-Identifier: Apache-2.0
"""Training samples by (epoch, index), the same whatever the number of workers and threads, and batches built ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wsss_ray.config import UserError
from wsss_ray.contracts import Batch, ClassMaps, Need
from wsss_ray.data import image as pic
from wsss_ray.data.augment import AugmentConfig, NormalizeConfig, augment
from wsss_ray.data.partner import PartnerIndex
from wsss_ray.data.shards import Rows

Sample = dict[str, Any]
_ORDER, _ANCHOR, _PARTNER = 1, 2, 3
"""Keep the random streams of orders, anchors and partners apart."""


@dataclass(frozen=True)
class Sampling:
    """How samples are cut and normalised, from which seed, and what they hold besides image and labels.

    ``needs``: ``rgb`` pixels as they were, ``saliency`` from the rows, ``mask`` and ``maps`` of earlier steps,
    ``partner`` a second sample that shares a class.
    """

    augment: AugmentConfig
    normalize: NormalizeConfig
    seed: int
    needs: Iterable[Need] = ()


@dataclass(frozen=True)
class Lookups:
    """What earlier steps made of an image, by its id."""

    mask: Callable[[str], np.ndarray] | None = None
    """The (H, W) uint8 pseudo mask."""
    maps: Callable[[str], ClassMaps] | None = None


NO_LOOKUPS = Lookups()


class TrainSamples:
    """A split as training samples; the rows' own masks, which are ground truth, are never read."""

    def __init__(
        self,
        rows: Rows,
        num_classes: int,
        sampling: Sampling,
        lookups: Lookups = NO_LOOKUPS,
        cache_bytes: int = 512 << 20,
    ) -> None:
        self.rows, self.num_classes = rows, num_classes
        self.config, self.normalize, self.seed = sampling.augment, sampling.normalize, sampling.seed
        self.needs = frozenset(sampling.needs)
        offered: dict[str, Callable[[str], Any] | None] = {"mask": lookups.mask, "maps": lookups.maps}
        self._lookups = {name: lookup for name, lookup in offered.items() if lookup is not None}
        missing = sorted(self.needs & (offered.keys() - self._lookups.keys()))
        if missing:
            raise ValueError(f"needs {missing[0]!r} but Lookups has no {missing[0]}")
        self._partners = PartnerIndex(rows.labels()) if "partner" in self.needs else None
        self._pixels = PixelCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.rows)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """(N,) int64 permutation of the images for an epoch."""
        return np.random.default_rng([self.seed, epoch, _ORDER]).permutation(len(self))

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample of an image in an epoch (see ``augment``), with ``labels`` (C,), ``image_id`` and, if needed,
        ``partner``.
        """
        rng = np.random.default_rng([self.seed, epoch, _ANCHOR, index])
        sample = self._single(index, rng)
        if self._partners is not None:
            rng = np.random.default_rng([self.seed, epoch, _PARTNER, index])
            sample["partner"] = self._single(self._partners.draw(index, rng), rng)
        return sample

    def _single(self, index: int, rng: np.random.Generator) -> Sample:
        row = self.rows[index]
        name = row["image_id"]
        decoded = dict(self._pixels.get(index, lambda: self._decode(row)))
        maps: ClassMaps | None = None
        if "mask" in self.needs:
            decoded["mask"] = _sized(self._look_up("mask", name), decoded["image"], name, "pseudo mask")
        if "maps" in self.needs:
            maps = self._look_up("maps", name)
            decoded["maps"] = maps.full()
        sample: Sample = dict(augment(decoded, self.config, rng, self.normalize, "rgb" in self.needs))
        if maps is not None:
            spread = torch.zeros(self.num_classes, *sample["maps"].shape[1:])
            spread[torch.from_numpy(maps.classes).long()] = sample["maps"]
            sample["maps"] = spread
        sample["labels"] = self._label_vector(row)
        sample["image_id"] = name
        return sample

    def _decode(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        decoded = {"image": pic.decode_image(row["image"], row["image_id"])}
        if "saliency" in self.needs:
            if row.get("saliency") is None:
                raise UserError(
                    f"{row['image_id']}: no saliency map, which this method needs; prepare the data with saliency maps"
                )
            saliency = pic.decode_saliency(row["saliency"], row["image_id"])
            decoded["saliency"] = _sized(saliency, decoded["image"], row["image_id"], "saliency map")
        return decoded

    def _look_up(self, what: str, name: str) -> Any:
        try:
            return self._lookups[what](name)
        except KeyError:
            raise UserError(
                f"{name}: missing {what}, which the step before makes; delete that step's folder and rerun"
            ) from None

    def _label_vector(self, row: dict[str, Any]) -> torch.Tensor:
        vector = torch.zeros(self.num_classes)
        labels = row["labels"]
        if labels is None:
            raise UserError(f"{row['image_id']}: has no labels and cannot be trained on; choose a split with labels")
        if labels and not 0 <= min(labels) <= max(labels) < self.num_classes:
            raise UserError(f"{row['image_id']}: label outside 0..{self.num_classes - 1}; prepare the data again")
        vector[labels] = 1
        return vector


def _sized(array: np.ndarray, image: np.ndarray, name: str, what: str) -> np.ndarray:
    if array.shape[:2] != image.shape[:2]:
        raise UserError(
            f"{name}: its {what} is {array.shape[:2]} but the image {image.shape[:2]}; make that stage again"
        )
    return array


class PixelCache:
    """Decoded images, the least recently used dropped beyond ``limit`` bytes; safe among threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What is kept under ``key``, made outside the lock where it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        size = _num_bytes(made)
        with self._lock:
            if key not in self._kept and size <= self._limit:
                self._kept[key] = made
                self._bytes += size
                while self._bytes > self._limit:
                    self._bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        return made


def _num_bytes(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one crop size -> a batch, partners into ``Batch.partner``."""
    first = samples[0]
    optional = [name for name in ("rgb", "saliency", "maps", "mask") if name in first]
    stacked = {
        name: torch.stack([sample[name] for sample in samples]) for name in ("image", "labels", "inside", *optional)
    }
    partner = collate([sample["partner"] for sample in samples]) if "partner" in first else None
    return Batch(**stacked, partner=partner)


class Prefetcher:
    """Batches of an epoch in the given order, ``ahead`` of them being built by threads (decoding releases the
    interpreter lock); ``pinned`` for a GPU.

    An error inside a thread is raised where the batch would have come; leaving the loop early stops the threads.
    """

    def __init__(
        self,
        samples: TrainSamples,
        epoch: int,
        batches: Iterable[Sequence[int]],
        num_threads: int = 2,
        ahead: int = 2,
        pinned: bool = False,
    ) -> None:
        self._samples, self._epoch, self._batches = samples, epoch, batches
        self._num_threads, self._ahead, self._pinned = max(1, num_threads), max(1, ahead), pinned

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="samples")
        # One of its own: it waits for samples, and would keep a thread of theirs.
        collator = ThreadPoolExecutor(1, thread_name_prefix="batches")
        waiting: deque[Future[Batch]] = deque()
        try:
            for indices in self._batches:
                made = [pool.submit(self._samples.sample, self._epoch, int(index)) for index in indices]
                waiting.append(collator.submit(self._collate, made))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            collator.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=True)
            collator.shutdown(wait=True)

    def _collate(self, made: Sequence[Future[Sample]]) -> Batch:
        batch = collate([future.result() for future in made])
        return batch.pin() if self._pinned else batch
