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
from wsss_ray.artifacts.tables import decode_maps, part_name, read_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.manifest import Manifest, load_manifest
from wsss_ray.data.shards import read_shard_table
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.reports.drawing import overlay_map, overlay_mask
from wsss_ray.score.confusion import Counts, compute_mean_iou
from wsss_ray.score.names import STEPS

BUDGET = 6_500_000
"""Bytes of all images of a page together, as base64."""
LARGEST, SMALLEST = 480, 140
"""Longest side in pixels: what is tried first, and what is kept whatever its bytes."""
LEAST = 12_000
"""Characters an image's tile may have at least; fewer images are shown where the budget allows them less."""
KINDS = {"seeds": "maps", "masks": "masks", "segmentation": "predictions"}
"""What is shown of a step -> the run's artifact it lies in."""
GROUPS = {"best": 4, "worst": 4, "random": 6}
MAX_CLASSES = 24
"""Images chosen by class: one for each of so many classes, those with most pixels of truth."""


@dataclass(frozen=True)
class Shown:
    """One image as a panel."""

    image_id: str
    group: str
    """best, worst, random, or ``class NAME``."""
    score: float | None
    """Mean IoU over the classes of this image and its result: chooses images, is no score of the run."""
    labels: tuple[int, ...]
    """Labels in the image, 1-based as in masks."""
    tiles: tuple[tuple[str, str], ...]
    """(caption, data URI)."""
    size: tuple[int, int]
    """(height, width) of the image."""


def choose(
    ids: list[str], counts: np.ndarray | None, names: list[str], seed: int = 0
) -> list[tuple[str, str, float | None]]:
    """(id, group, score) of the images to show; ``counts`` (N, 3, K) or None where nothing was scored.

    Best and worst among the images that have an object; for every class the image in the middle by that class's
    IoU. No image comes twice.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(ids))
    if counts is None:
        return [(ids[place], "random", None) for place in sorted(order[: sum(GROUPS.values())])]
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
    return [(ids[place], group, _finite(scores[place])) for place, group in taken.items()]


def run_images(run: RunFolder, step: str, budget: int = BUDGET) -> list[Shown]:
    """Panels of the "seeds", pseudo masks ("masks") or predictions ("segmentation") of a run, within ``budget`` bytes.

    Empty where the run made none of these or its images are gone.
    """
    folder = run.artifact(KINDS[step])
    try:
        manifest = load_manifest(run.record["data"])
    except UserError:
        return []
    if folder is None:
        return []
    split = str(run.record.get("splits", {}).get("val" if step == "segmentation" else "score") or "train")
    where = _places(folder, {part_name(shard.path): shard.path for shard in manifest.shards_of(split)})
    scored = run.counts(step)
    variant = next((name for name in STEPS[step].variants if name in scored), None)
    ids, counts = scored[variant] if variant is not None else (sorted(where), None)
    chosen = [entry for entry in choose(ids, counts, run.labels) if entry[0] in where][: budget // (4 * LEAST)]
    maps = run.artifact("maps") if step != "segmentation" else None
    threshold = seed_threshold(run) if step == "seeds" else None
    share = budget // max(1, 4 * len(chosen))
    shown = []
    for image_id, group, score in chosen:
        shard = where[image_id]
        image, tiles, present = _given(run.record["data"], shard, image_id, manifest)
        answered, found = _answers(step, folder, maps, part_name(shard), image_id, image, manifest, threshold)
        shown.append(
            Shown(
                image_id=image_id,
                group=group,
                score=score,
                labels=tuple(sorted((present | found) - {0, 255})),
                tiles=tuple((caption, data_uri(tile, share)) for caption, tile in [*tiles, *answered]),
                size=(image.shape[0], image.shape[1]),
            )
        )
    return shown


def seed_threshold(run: RunFolder) -> float | None:
    """The fixed threshold at which seeds were scored; where they were not, the recipe's, None where it names none."""
    given: float | None = run.scored("seeds").get("fixed", {}).get("threshold")
    if given is None:
        given = run.recipe.get("score", {}).get("background")
    return given


def _places(folder: str, shard_of: dict[str, str]) -> dict[str, str]:
    """Image id -> name of its shard, of every image the artifact has."""
    found = {}
    for name in storage.list_names(folder):
        if name in shard_of:
            ids = read_table(storage.join(folder, name), columns=["image_id"])["image_id"].to_pylist()
            found.update(dict.fromkeys(ids, shard_of[name]))
    return found


def _row(folder: str, part: str, image_id: str) -> dict[str, object]:
    table = read_table(storage.join(folder, part))
    row: dict[str, object] = table.slice(table["image_id"].to_pylist().index(image_id), 1).to_pylist()[0]
    return row


def _given(
    data: str, shard: str, image_id: str, manifest: Manifest
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], set[int]]:
    """(image, its tile and that of the truth, mask values of its labels and truth)."""
    table = read_shard_table(data, shard, columns=["image_id", "image", "labels", "mask"])
    row = table.slice(table["image_id"].to_pylist().index(image_id), 1).to_pylist()[0]
    image = decode_image(row["image"], image_id)
    tiles = [("image", image)]
    present = {index + 1 for index in row["labels"] or []}
    if row["mask"] is not None:
        truth = decode_mask(row["mask"], image_id)
        present |= {int(value) for value in np.unique(truth)}
        tiles.append(("truth", overlay_mask(image, truth, np.asarray(manifest.palette, dtype=np.uint8))))
    return image, tiles, present


def _answers(
    step: str,
    folder: str,
    maps: str | None,
    part: str,
    image_id: str,
    image: np.ndarray,
    manifest: Manifest,
    threshold: float | None,
) -> tuple[list[tuple[str, np.ndarray]], set[int]]:
    """(tiles of what the run made of an image, mask values in them)."""
    tiles, masks = [], []
    if maps is not None:
        found = decode_maps(_row(maps, part, image_id))
        full = found.full()
        strongest = full.max(axis=0) if len(full) else np.zeros(image.shape[:2], np.float32)
        tiles.append(("class map", overlay_map(image, strongest)))
        if threshold is not None:
            seeds = make_mask(pick_winners(add_constant_background(full, threshold)), found.classes)
            masks.append((f"seeds at {threshold:g}", seeds))
    columns = {"masks": {"mask": "pseudo mask"}, "segmentation": {"multi_scale": "prediction", "crf": "with CRF"}}
    if step in columns:
        row = _row(folder, part, image_id)
        for column, caption in columns[step].items():
            if row[column] is not None:
                masks.append((caption, decode_mask(row[column], image_id)))  # type: ignore[arg-type]
    palette = np.asarray(manifest.palette, dtype=np.uint8)
    tiles += [(caption, overlay_mask(image, mask, palette)) for caption, mask in masks]
    return tiles, {int(value) for _, mask in masks for value in np.unique(mask)}


def data_uri(image: np.ndarray, share: int) -> str:
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
