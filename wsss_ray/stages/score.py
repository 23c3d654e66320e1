# SPDX-License-Identifier: Apache-2.0
"""The score step, the only one that reads ground truth: one integer matrix per variant, and the whole threshold curve
in one pass.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.store import Artifact, Step
from wsss_ray.artifacts.tables import COUNTS_SCHEMA, decode_maps, name_part, read_table
from wsss_ray.cluster.shards import ShardJob, Shards, run_shards
from wsss_ray.config import Config, select
from wsss_ray.data.image import decode_mask
from wsss_ray.data.manifest import DataSet
from wsss_ray.data.saliency import name_origin
from wsss_ray.data.shards import read_shard
from wsss_ray.recipe import Recipe, SettledRecipe
from wsss_ray.refine.crf import CRFConfig
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.score.bootstrap import stack_counts
from wsss_ray.score.config import ScoreConfig
from wsss_ray.score.confusion import compute_scores, count_confusion, make_matrix
from wsss_ray.score.curve import ThresholdCurve
from wsss_ray.score.names import NOT_SCORED, STEPS, VARIANTS, Kind, list_variants
from wsss_ray.stages.run import Run

log = logging.getLogger(__name__)
VERSION = 3
"""3: seeds at Otsu's threshold. 2: precision and recall of the foreground."""
_TOTALS = b"wsss.totals"


@dataclass(frozen=True)
class ScoreStep(Step):
    """What can change scores."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = VERSION
    kind: str
    """maps, masks or predictions."""
    score: dict[str, Any]
    """Thresholds, and how absent classes count."""
    split: str
    protocol: dict[str, str]
    """Variant -> the sentence beside its number."""
    results: str
    """The artifact that is scored."""
    data: str
    """The split with the ground truth."""


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image."""

    mask: np.ndarray
    """(H, W) uint8."""
    parts: np.ndarray | None
    """(H, W) uint8 parts of objects (synthetic images)."""


class ScoreWorker:
    """Results of a shard against its truth; the sums of the shard travel in the table's metadata."""

    def __init__(self, data: str, results: str, kind: Kind, config: ScoreConfig, num_labels: int) -> None:
        self.data, self.results, self.kind, self.num_labels = data, results, kind, num_labels
        self.config = config

    def make_table(self, shard: str) -> pa.Table:
        """One row of ``COUNTS_SCHEMA`` for every image with truth and every variant."""
        matrices = {variant: make_matrix(self.num_labels) for variant in _counted(self.kind)}
        curve = ThresholdCurve(self.config.curve_thresholds, self.num_labels)
        parts = np.zeros((2, 256), dtype=np.int64)
        rows = []
        truths = {row["image_id"]: row for row in read_shard(self.data, shard, columns=["image_id", "mask", "parts"])}
        for row in read_table(storage.join(self.results, name_part(shard))).to_pylist():
            image_id = row["image_id"]
            truth = _read_truth(truths[image_id])
            if truth is None:
                continue
            for variant, mask in self._read_variants(row, truth, curve):
                matrix = count_confusion(truth.mask, mask, self.num_labels, image_id)
                matrices[variant] += matrix
                rows.append({"image_id": image_id, "variant": variant, **_encode_counts(stack_counts(matrix))})
                if truth.parts is not None and VARIANTS[variant].parts:
                    parts += _count_parts(truth.parts, truth.mask, mask)
        buffer = io.BytesIO()
        read = {"curve": curve.counts, "values": curve.values} if self.kind == "maps" else {}
        np.savez_compressed(buffer, parts=parts, **read, **matrices)  # type: ignore[arg-type]
        table = pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)
        return table.replace_schema_metadata({_TOTALS: buffer.getvalue()})

    def _read_variants(
        self, row: dict[str, Any], truth: Truth, curve: ThresholdCurve
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(variant, (H, W) mask) of everything that is scored of one image; maps also go into the curve."""
        if self.kind != "maps":
            for variant in _counted(self.kind):
                if row[variant] is not None:
                    yield variant, decode_mask(row[variant], row["image_id"])
            return
        maps = decode_maps(row)
        full = maps.full()
        curve.add(truth.mask, maps.classes, full, maps.image_id)
        if self.config.background is not None:
            yield "fixed", make_mask(pick_winners(add_constant_background(full, self.config.background)), maps.classes)


def score(run: Run, name: str, results: Artifact) -> Artifact | None:
    """Score the artifact of the step ``name`` (seeds, masks, segmentation); None where there is no ground truth."""
    step = STEPS[name]
    split = run.recipe.data.val_split if step.split == "val" else run.recipe.data.score_split
    if not run.data.manifest.splits[split].has_masks:
        log.info(f"score {name}: split {split!r} has no masks, so there is nothing to score against")
        return None
    config = run.recipe.score.model_copy(update={"background": run.recipe.background})
    protocol = describe_protocols(run.recipe, run.data, step.kind)
    key = ScoreStep(
        kind=step.kind,
        score=select(config, "scores"),
        split=split,
        protocol=protocol,
        results=results.digest,
        data=run.split_digest(split),
    )
    labels = run.data.labels
    make_worker = partial(ScoreWorker, run.data.uri, results.uri, step.kind, config, len(labels))

    def compute(folder: str) -> dict[str, Any]:
        shards = run.data.shards(split)
        run_shards(
            ShardJob(f"score {name}", make_worker, shards, folder, row_per_image=False, data=run.data.uri), run.machines
        )
        totals = _sum_totals(folder, shards)
        return {"scores": summarize_totals(totals, step.kind, labels, config, protocol)}

    artifact = run.steps.find_or_compute(f"score {name}", key, compute)
    if NOT_SCORED in artifact.record["scores"]:
        log.warning(f"score {name}: not scored: {artifact.record['scores'][NOT_SCORED]}")
    return artifact


def rescore(artifact: Artifact, recipe: SettledRecipe, data: DataSet) -> dict[str, Any]:
    """What ``score`` reports of maps with another ``background`` or ``absent``, from a finished artifact's counts.

    Recall of parts is left out. KeyError where the recipe's background threshold is not on the artifact's curve.
    """
    step = artifact.record["step"]
    config = recipe.score.model_copy(update={"background": recipe.background, "at": tuple(step["score"]["at"])})
    totals = dict(_read_totals(artifact.uri, artifact.record["content"]))
    curve = _read_curve(totals, config, len(data.labels))
    place = np.flatnonzero(curve.thresholds == config.background)
    if not len(place):
        raise KeyError(f"threshold {config.background} is not on the curve of {artifact.uri}")
    totals["fixed"] = curve.matrices()[int(place[0])]
    totals["parts"] = np.zeros_like(totals["parts"])
    return summarize_totals(totals, "maps", data.labels, config, describe_protocols(recipe, data, "maps"))


@lru_cache(maxsize=4)
def _read_totals(uri: str, content: str) -> dict[str, np.ndarray]:
    """The totals of a finished artifact, by its content too: a sweep asks for the same ones again and again."""
    return _sum_totals(uri, [(name, 0) for name in storage.list_names(uri) if name.endswith(".parquet")])


def describe_protocols(recipe: SettledRecipe, data: DataSet, kind: Kind) -> dict[str, str]:
    """Variant -> the sentence beside its number; ``{threshold}`` is left open where only the scores decide it."""
    split = next(step.split for step in STEPS.values() if step.kind == kind)
    flip = " + flip" if recipe.predict.flip else ""
    used = "image labels used" if recipe.predict.gate.classes == "labels" else "no image labels"
    given = {
        "split": recipe.data.val_split if split == "val" else recipe.data.score_split,
        "refiner": "none" if recipe.refine is None else recipe.refine.name + describe_dropped(recipe.refine),
        "dropped": "" if recipe.predict.crf is None else describe_dropped(recipe.predict.crf),
        "views": f"scales {', '.join(f'{scale:g}' for scale in recipe.predict.scales)}{flip}",
        "labels": f"{used} at test time",
    }
    saliency = describe_saliency(recipe, data)
    sentences = {}
    for name in list_variants(kind):
        variant = VARIANTS[name]
        threshold = f"{recipe.background:g}" if variant.by_image else "{threshold}"
        sentence = variant.protocol.format(**given, threshold=threshold)
        sentences[name] = f"{sentence}, {saliency}" if saliency else sentence
    return sentences


def describe_dropped(config: Config) -> str:
    """Below which marginal a CRF within these settings leaves labels out; empty where none does."""
    if isinstance(config, CRFConfig):
        return f" (labels below {config.drop:g} dropped)" if config.drop else ""
    inner = (getattr(config, name) for name in type(config).model_fields)
    return next((text for one in inner if isinstance(one, Config) and (text := describe_dropped(one))), "")


def describe_saliency(recipe: Recipe, data: DataSet) -> str:
    """Where the saliency maps come from that some localizer of this recipe learns from; empty where none does."""
    learns = any("saliency" in part.method.needs for part in recipe.chain)
    return name_origin(data.manifest.options.get("saliency")) if learns else ""


def summarize_totals(
    totals: Mapping[str, np.ndarray],
    kind: Kind,
    labels: Sequence[str],
    config: ScoreConfig,
    protocol: Mapping[str, str],
) -> dict[str, Any]:
    """{variant: numbers with their protocol} from the summed matrices and curve of an artifact; ``labels`` background
    first.
    """
    reason = explain_unscored(next(totals[variant] for variant in _counted(kind)))
    if reason is not None:
        return {NOT_SCORED: reason}
    recalls = _recall_parts(totals["parts"])
    found: dict[str, Any] = {}
    for variant in _counted(kind):
        if totals[variant].sum():
            found[variant] = _describe_matrix(totals[variant], labels, config, protocol[variant])
            if recalls and VARIANTS[variant].parts:
                found[variant]["part_recall"] = recalls
    if "fixed" in found:
        found["fixed"]["threshold"] = config.background
        found |= _summarize_curve(_read_curve(totals, config, len(labels)), labels, config, protocol)
    return found


def explain_unscored(matrix: np.ndarray) -> str | None:
    """Why a (K, K + 1) matrix is no score: nothing was counted, or no foreground is in the truth; None where it is."""
    truth = matrix.sum(axis=1)
    if not truth.sum():
        return "every pixel of the ground truth is ignored (255)"
    if not truth[1:].sum():
        return "the ground truth holds background alone"
    return None


def _summarize_curve(
    curve: ThresholdCurve, labels: Sequence[str], config: ScoreConfig, protocol: Mapping[str, str]
) -> dict[str, Any]:
    """The variants that are read off the curve, at one of the evenly spaced thresholds each, and the whole curve."""
    mious, matrices = curve.mious(config.absent), curve.matrices()
    even = np.isin(curve.thresholds, config.even_thresholds)
    chosen = {
        "best": float(curve.thresholds[int(np.nanargmax(np.where(even, mious, np.nan)))]),
        "otsu": curve.find_otsu(config.even_thresholds),
    }
    found: dict[str, Any] = {}
    for variant, threshold in chosen.items():
        place = int(np.flatnonzero(curve.thresholds == threshold)[0])
        sentence = protocol[variant].format(threshold=f"{threshold:g}")
        found[variant] = {**_describe_matrix(matrices[place], labels, config, sentence), "threshold": threshold}
    points = {"thresholds": curve.thresholds.tolist(), "miou": [round(float(value), 6) for value in mious]}
    return {**found, "curve": points}


def _describe_matrix(matrix: np.ndarray, labels: Sequence[str], config: ScoreConfig, protocol: str) -> dict[str, Any]:
    """All numbers of one matrix, NaN as None, with what they mean."""
    result = compute_scores(matrix, absent=config.absent)
    numbers = {key: _to_json(value) for key, value in result.numbers().items()}
    per_class = {name: _to_json(value) for name, value in zip(labels, result.iou.tolist(), strict=True)}
    return {**numbers, "iou": per_class, "protocol": protocol, "matrix": matrix.tolist()}


def _counted(kind: Kind) -> list[str]:
    """The variants of which every image has a mask, the plainest first."""
    return [name for name in reversed(list_variants(kind)) if VARIANTS[name].by_image]


def _read_truth(row: dict[str, Any]) -> Truth | None:
    if row["mask"] is None:
        return None
    parts = None if row["parts"] is None else decode_mask(row["parts"])
    return Truth(decode_mask(row["mask"], row["image_id"]), parts)


def _read_curve(totals: Mapping[str, np.ndarray], config: ScoreConfig, num_labels: int) -> ThresholdCurve:
    curve = ThresholdCurve(config.curve_thresholds, num_labels)
    curve.counts, curve.values = totals["curve"], totals["values"]
    return curve


def _encode_counts(counts: np.ndarray) -> dict[str, Any]:
    """(3, K) counts without the labels that do not occur."""
    labels = np.flatnonzero(counts.any(axis=0))
    return {"labels": labels.tolist(), "counts": counts[:, labels].astype(np.int64).tobytes()}


def _count_parts(parts: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(2, 256): pixels of each part, and those of them given their true class."""
    inside = (parts > 0) & (truth > 0) & (truth != 255)
    found = inside & (mask == truth)
    return np.stack([np.bincount(parts[where], minlength=256) for where in (inside, found)])


def _recall_parts(counts: np.ndarray) -> dict[str, float]:
    """Part index -> recall of its pixels."""
    return {str(part): float(counts[1, part] / counts[0, part]) for part in np.flatnonzero(counts[0])}


def _sum_totals(out: str, shards: Shards) -> dict[str, np.ndarray]:
    totals: dict[str, np.ndarray] = {}
    for shard, _ in shards:
        metadata = read_table(storage.join(out, name_part(shard))).schema.metadata
        with np.load(io.BytesIO(metadata[_TOTALS])) as arrays:
            for key in arrays.files:
                totals[key] = totals[key] + arrays[key] if key in totals else arrays[key]
    return totals


def _to_json(value: float) -> float | None:
    return None if value != value else float(value)
