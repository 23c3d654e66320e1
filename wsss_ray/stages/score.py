"""The score step, the only one that reads ground truth: one integer matrix per result, and the whole threshold curve
in one pass."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.store import Artifact
from wsss_ray.artifacts.tables import COUNTS_SCHEMA, decode_maps, part_name, read_table
from wsss_ray.cluster.join import Machines
from wsss_ray.cluster.shards import run_parts
from wsss_ray.data.image import decode_mask
from wsss_ray.data.manifest import Manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.score.bootstrap import stack_counts
from wsss_ray.score.config import ScoreConfig
from wsss_ray.score.confusion import compute_scores, count_confusion, make_matrix
from wsss_ray.score.curve import ThresholdCurve

Kind = Literal["maps", "masks", "predictions"]
VARIANTS: dict[str, tuple[str, ...]] = {
    "maps": ("fixed",),
    "masks": ("mask",),
    "predictions": ("single_scale", "multi_scale", "crf"),
}
"""What is scored of each kind of artifact."""
PROTOCOLS: dict[Kind, tuple[str, ...]] = {
    "maps": ("fixed", "best"),
    "masks": VARIANTS["masks"],
    "predictions": VARIANTS["predictions"],
}
"""The variants whose numbers are reported of each kind."""
_TOTALS = b"wsss.totals"


class ScoreWorker:
    """Results of a shard against its truth; the sums of the shard travel in the table's metadata."""

    def __init__(self, data: str, results: str, kind: Kind, config: dict[str, Any], num_labels: int) -> None:
        self.data, self.results, self.kind, self.num_labels = data, results, kind, num_labels
        self.config = ScoreConfig.model_validate(config)

    def table(self, shard: str) -> pa.Table:
        """One row of ``COUNTS_SCHEMA`` for every image with truth and every variant."""
        truths = {row["image_id"]: row for row in read_shard(self.data, shard, columns=["image_id", "mask", "parts"])}
        matrices = {variant: make_matrix(self.num_labels) for variant in VARIANTS[self.kind]}
        curve = ThresholdCurve(self.config.curve_thresholds, self.num_labels)
        parts = np.zeros((2, 256), dtype=np.int64)
        rows = []
        for row in read_table(storage.join(self.results, part_name(shard))).to_pylist():
            truth_row = truths[row["image_id"]]
            if truth_row["mask"] is None:
                continue
            truth = decode_mask(truth_row["mask"], row["image_id"])
            for variant, mask in self._masks(row, truth, curve):
                matrix = count_confusion(truth, mask, self.num_labels, row["image_id"])
                matrices[variant] += matrix
                rows.append({"image_id": row["image_id"], "variant": variant, **_sparse(stack_counts(matrix))})
                if truth_row["parts"] is not None and variant in ("fixed", "mask"):
                    parts += _part_counts(decode_mask(truth_row["parts"]), truth, mask)
        buffer = io.BytesIO()
        counts = curve.counts if self.kind == "maps" else np.zeros(0, dtype=np.int64)
        np.savez_compressed(buffer, curve=counts, parts=parts, **matrices)  # type: ignore[arg-type]
        table = pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)
        return table.replace_schema_metadata({_TOTALS: buffer.getvalue()})

    def _masks(self, row: dict[str, Any], truth: np.ndarray, curve: ThresholdCurve) -> Iterator[tuple[str, np.ndarray]]:
        if self.kind == "maps":
            maps = decode_maps(row)
            full = maps.full()
            curve.add(truth, maps.classes, full, maps.image_id)
            assert self.config.background is not None
            yield "fixed", make_mask(pick_winners(add_constant_background(full, self.config.background)), maps.classes)
            return
        for variant in VARIANTS[self.kind]:
            data = row["mask" if variant == "mask" else variant]
            if data is not None:
                yield variant, decode_mask(data, row["image_id"])


def score(
    title: str,
    data: str,
    shards: Sequence[tuple[str, int]],
    results: str,
    kind: Kind,
    config: ScoreConfig,
    manifest: Manifest,
    protocol: Mapping[str, str],
    out: str,
    machines: Machines,
) -> dict[str, Any]:
    """Score ``results`` against the truth of ``shards``; {"scores": {variant: numbers with their protocol}} for the
    record."""
    num_labels = len(manifest.classes) + 1
    factory = partial(ScoreWorker, data, results, kind, config.model_dump(mode="json"), num_labels)
    run_parts(title, factory, shards, out, machines)
    totals = _sum_totals(out, [part_name(name) for name, _ in shards])
    return {"scores": summary(totals, kind, ["background", *manifest.classes], config, protocol)}


def rescored(
    artifact: Artifact, kind: Kind, names: Sequence[str], config: ScoreConfig, protocol: Mapping[str, str]
) -> dict[str, Any]:
    """What ``score`` reports with another ``background`` or ``absent``, from a finished score artifact's counts alone.

    ``names`` are all labels, background first. Recall of parts is left out. KeyError where ``config.background`` is not
    on the artifact's curve.
    """
    parts = [name for name in storage.list_names(artifact.uri) if name.endswith(".parquet")]
    totals = _sum_totals(artifact.uri, parts)
    settings = config.model_copy(update={"at": tuple(artifact.record["config"]["score"].get("at", ()))})
    if kind == "maps":
        curve = _curve(totals, settings, len(names))
        place = np.flatnonzero(curve.thresholds == config.background)
        if not len(place):
            raise KeyError(f"threshold {config.background} is not on the curve of {artifact.uri}")
        totals["fixed"] = curve.matrices()[int(place[0])]
    totals["parts"] = np.zeros_like(totals["parts"])
    return summary(totals, kind, names, settings, protocol)


def _curve(totals: Mapping[str, np.ndarray], config: ScoreConfig, num_labels: int) -> ThresholdCurve:
    curve = ThresholdCurve(config.curve_thresholds, num_labels)
    curve.counts = totals["curve"]
    return curve


def summary(
    totals: Mapping[str, np.ndarray], kind: Kind, names: Sequence[str], config: ScoreConfig, protocol: Mapping[str, str]
) -> dict[str, Any]:
    """{variant: numbers with their protocol} from the summed matrices and curve of an artifact."""
    found: dict[str, Any] = {}
    for variant in VARIANTS[kind]:
        if totals[variant].sum():
            found[variant] = report(totals[variant], names, config, protocol[variant])
    if kind == "maps" and "fixed" in found:
        curve = _curve(totals, config, len(names))
        mious = curve.mious(config.absent)
        place = int(np.nanargmax(np.where(np.isin(curve.thresholds, config.even_thresholds), mious, np.nan)))
        threshold = float(curve.thresholds[place])
        found["best"] = report(curve.matrices()[place], names, config, protocol["best"].format(threshold=threshold))
        found["best"]["threshold"] = threshold
        found["fixed"]["threshold"] = config.background
        found["curve"] = {
            "thresholds": curve.thresholds.tolist(),
            "miou": [round(float(value), 6) for value in mious],
        }
    recalls = _part_recall(totals["parts"])
    for variant in ("fixed", "mask"):
        if variant in found and recalls:
            found[variant]["part_recall"] = recalls
    return found


def report(matrix: np.ndarray, names: Sequence[str], config: ScoreConfig, protocol: str) -> dict[str, Any]:
    """All numbers of one matrix, NaN as None, with what they mean."""
    result = compute_scores(matrix, absent=config.absent)
    numbers = {key: _number(value) for key, value in result.numbers().items()}
    per_class = {name: _number(value) for name, value in zip(names, result.iou.tolist(), strict=True)}
    return {**numbers, "iou": per_class, "protocol": protocol, "matrix": matrix.tolist()}


def flat_metrics(name: str, found: dict[str, Any]) -> dict[str, float | None]:
    """A score record as flat metrics: ``seeds/fixed/miou``, ``seeds/fixed/iou/dog`` ..."""
    flat: dict[str, float | None] = {}
    for variant, values in found.items():
        if "protocol" not in values:
            continue
        for key, value in values.items():
            if isinstance(value, (int, float)):
                flat[f"{name}/{variant}/{key}"] = value
        for label, value in values["iou"].items():
            flat[f"{name}/{variant}/iou/{label}"] = value
        for part, value in values.get("part_recall", {}).items():
            flat[f"{name}/{variant}/recall_of_part/{part}"] = value
    return flat


def curve_metrics(found: dict[str, Any]) -> list[tuple[float, float]]:
    """(threshold, mIoU) points of a seed score."""
    curve = found.get("curve", {"thresholds": [], "miou": []})
    return list(zip(curve["thresholds"], curve["miou"], strict=True))


def _sparse(counts: np.ndarray) -> dict[str, Any]:
    labels = np.flatnonzero(counts.any(axis=0))
    return {"labels": labels.tolist(), "counts": counts[:, labels].astype(np.int64).tobytes()}


def _part_counts(parts: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(2, 256): pixels of each part, and those of them given their true class."""
    inside = (parts > 0) & (truth > 0) & (truth != 255)
    found = inside & (mask == truth)
    return np.stack([np.bincount(parts[where], minlength=256) for where in (inside, found)])


def _part_recall(counts: np.ndarray) -> dict[str, float]:
    """Part index -> recall of its pixels (toy: 1 head, 2 body)."""
    return {str(part): float(counts[1, part] / counts[0, part]) for part in np.flatnonzero(counts[0])}


def _sum_totals(out: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    totals: dict[str, np.ndarray] = {}
    for name in names:
        metadata = read_table(storage.join(out, name)).schema.metadata
        with np.load(io.BytesIO(metadata[_TOTALS])) as arrays:
            for key in arrays.files:
                totals[key] = totals[key] + arrays[key] if key in totals else arrays[key]
    return totals


def _number(value: float) -> float | None:
    return None if value != value else float(value)
