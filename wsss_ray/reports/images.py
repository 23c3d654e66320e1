# SPDX-License-Identifier: Apache-2.0
"""The images of a report page: which ones, drawn as panels, and packed into data URIs within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wsss_ray import storage
from wsss_ray.artifacts.record import RunFolder
from wsss_ray.artifacts.tables import name_part, read_table
from wsss_ray.config import UserError
from wsss_ray.data.image import list_values
from wsss_ray.data.manifest import load_manifest
from wsss_ray.reports.tiles import (
    GROUND_TRUTH,
    NamedMask,
    PartReader,
    Tile,
    draw_map,
    draw_mask,
    draw_seeds,
)
from wsss_ray.score.confusion import Counts, compute_mean_iou
from wsss_ray.score.names import STEPS, choose_variant

BUDGET = 6_500_000
"""Bytes of all images of a page together, as base64."""
LARGEST, SMALLEST = 480, 140
"""Longest side in pixels: what is tried first, and what is kept whatever its bytes."""
LEAST = 12_000
"""Characters an image's tile may have at least; fewer images are shown where the budget allows them less."""
GROUPS = {"best": 4, "worst": 4, "random": 6}
MAX_CLASSES = 24
"""Images chosen by class: one for each of so many classes, those with most pixels of truth."""


@dataclass(frozen=True)
class Chosen:
    """An image that is shown, and why."""

    image_id: str
    group: str
    """best, worst, random, or ``class NAME``."""
    score: float | None
    """Mean IoU over the classes of this image and its result: chooses images, is no score of the run."""


@dataclass(frozen=True)
class Shown(Chosen):
    """One image as a panel."""

    labels: tuple[int, ...]
    """Labels in the image, 1-based as in masks."""
    tiles: tuple[tuple[str, str], ...]
    """(caption, data URI)."""
    size: tuple[int, int]
    """(height, width) of the image."""


def choose_images(ids: list[str], counts: np.ndarray | None, names: list[str], seed: int = 0) -> list[Chosen]:
    """The images to show; ``counts`` (N, 3, K) or None where nothing was scored, ``names`` of the K labels.

    Best and worst among the images that have an object; for every class the image in the middle by that class's
    IoU. No image comes twice.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(ids))
    if counts is None:
        return [Chosen(ids[place], "random", None) for place in sorted(order[: sum(GROUPS.values())])]
    parts = Counts(counts[:, 0], counts[:, 1], counts[:, 2])
    scores, with_background = compute_mean_iou(parts, foreground=True), compute_mean_iou(parts)
    objects = np.flatnonzero((counts[:, 1, 1:].sum(axis=1) > 0) & ~np.isnan(scores))
    ranked = objects[np.lexsort((-with_background[objects], -scores[objects]))]
    taken: dict[int, str] = {}

    def take(places: Iterable[int], group: str, count: int) -> None:
        for place in places:
            if count and int(place) not in taken:
                taken[int(place)] = group
                count -= 1

    take(ranked, "best", GROUPS["best"])
    take(ranked[::-1], "worst", GROUPS["worst"])
    take(order, "random", GROUPS["random"])
    truth = counts[:, 1].sum(axis=0)
    largest = sorted((label for label in range(1, counts.shape[2]) if truth[label]), key=lambda label: -truth[label])
    for label in sorted(largest[:MAX_CLASSES]):
        having = np.flatnonzero(counts[:, 1, label] > 0)
        union = counts[having, 1, label] + counts[having, 2, label] - counts[having, 0, label]
        by_iou = having[np.argsort(-counts[having, 0, label] / union, kind="stable")]
        middle = len(by_iou) // 2
        take([*by_iou[middle:], *by_iou[:middle][::-1]], f"class {names[label]}", 1)
    return [Chosen(ids[place], group, _finite(scores[place])) for place, group in taken.items()]


def draw_images(run: RunFolder, step: str, budget: int = BUDGET) -> list[Shown]:
    """Panels of what one step of a run made (a key of ``score.names.STEPS``), within ``budget`` bytes.

    Empty where the run made none of it or its images are gone.
    """
    folder = run.artifact(STEPS[step].kind)
    try:
        manifest = load_manifest(run.record["data"])
    except UserError:
        return []
    if folder is None:
        return []
    split = str(run.record.get("splits", {}).get(STEPS[step].split) or "train")
    shard_of = _find_shards(folder, {name_part(shard.path): shard.path for shard in manifest.shards_of(split)})
    counted = run.counts(step)
    variant = choose_variant(step, counted)
    ids, counts = counted[variant] if variant is not None else (sorted(shard_of), None)
    chosen = [one for one in choose_images(ids, counts, run.labels) if one.image_id in shard_of]
    chosen = chosen[: budget // (4 * LEAST)]
    share = budget // max(1, 4 * len(chosen))
    artist = _Artist(run, step, folder, np.asarray(manifest.palette, dtype=np.uint8))
    by_shard = sorted(chosen, key=lambda one: shard_of[one.image_id])
    drawn = {one.image_id: artist.draw(one, shard_of[one.image_id], share) for one in by_shard}
    return [drawn[one.image_id] for one in chosen]


class _Artist:
    """Draws what one step of a run made, image by image."""

    def __init__(self, run: RunFolder, step: str, folder: str, palette: np.ndarray) -> None:
        self.step, self.folder, self.palette = step, folder, palette
        self.data = str(run.record["data"])
        self.reader = PartReader()
        kind, split = STEPS[step].kind, STEPS[step].split
        self.of_maps = kind == "maps"
        self.maps = folder if self.of_maps else run.artifact("maps") if split == "score" else None
        self.thresholds = find_thresholds(run, step) if self.of_maps else {}

    def draw(self, one: Chosen, shard: str, share: int) -> Shown:
        """The panel of one image; each tile has at most ``share`` characters."""
        given = self.reader.read_given(self.data, shard, one.image_id)
        tiles: list[Tile] = [("image", given.pixels)]
        found = {index + 1 for index in given.classes}
        if given.truth is not None:
            tiles.append(draw_mask(given.pixels, NamedMask(GROUND_TRUTH, given.truth), self.palette))
            found |= find_labels(given.truth)
        masks = []
        if self.maps is not None:
            maps = self.reader.read_maps(self.maps, shard, one.image_id)
            tiles.append(draw_map(given.pixels, maps))
            masks = [draw_seeds(maps, variant, threshold) for variant, threshold in self.thresholds.items()]
        if not self.of_maps:
            masks = self.reader.read_masks(self.step, self.folder, shard, one.image_id)
        for mask in masks:
            tiles.append(draw_mask(given.pixels, mask, self.palette))
            found |= find_labels(mask.mask)
        return Shown(
            image_id=one.image_id,
            group=one.group,
            score=one.score,
            labels=tuple(sorted(found - {0, 255})),
            tiles=tuple((caption, encode_image(tile, share)) for caption, tile in tiles),
            size=(given.pixels.shape[0], given.pixels.shape[1]),
        )


def find_thresholds(run: RunFolder, step: str) -> dict[str, float]:
    """Drawn variant -> the threshold it was scored at; where it was not scored, the recipe's, if it names one."""
    scored, background = run.scored(step), run.recipe.get("score", {}).get("background")
    found = {
        variant: scored[variant].get("threshold") if variant in scored else background for variant in STEPS[step].drawn
    }
    return {variant: threshold for variant, threshold in found.items() if threshold is not None}


def find_labels(mask: np.ndarray) -> set[int]:
    """The values in a mask."""
    return set(list_values(mask))


def _find_shards(folder: str, shard_of: dict[str, str]) -> dict[str, str]:
    """Image id -> name of its shard, of every image the artifact has; ``shard_of`` names the shard of a part."""
    found = {}
    for name in storage.list_names(folder):
        if name in shard_of:
            ids = read_table(storage.join(folder, name), columns=["image_id"])["image_id"].to_pylist()
            found.update(dict.fromkeys(ids, shard_of[name]))
    return found


def encode_image(image: np.ndarray, share: int) -> str:
    """(H, W, 3) uint8 as a WebP data URI of at most ``share`` characters, as large as fits or the smallest size."""
    pil = Image.fromarray(np.ascontiguousarray(image))
    side = min(LARGEST, max(pil.size))
    while True:
        scale = side / max(pil.size)
        size = (max(1, round(pil.width * scale)), max(1, round(pil.height * scale)))
        buffer = io.BytesIO()
        pil.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80, method=2)
        text = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= share or side <= SMALLEST:
            return text
        side = max(SMALLEST, min(round(0.95 * side), int(0.95 * side * (share / len(text)) ** 0.5)))


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
