# SPDX-License-Identifier: Apache-2.0
"""All steps on generated images: what is made, what is reused, what is bit-identical, what never reads truth."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsss_ray import storage
from wsss_ray.artifacts.record import FinishedRun
from wsss_ray.artifacts.store import Store
from wsss_ray.artifacts.usage import remove
from wsss_ray.data.manifest import load_manifest, write_manifest
from wsss_ray.experiments.clean import list_unused
from wsss_ray.experiments.log import log_scores
from wsss_ray.experiments.plan import plan_run
from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.recipe import Recipe, dump, load, override

pytestmark = pytest.mark.usefixtures("ray_cluster")

SEEDS = ("miou", "recall", "precision")


@pytest.fixture(scope="module")
def first(ray_cluster: None, tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run."""
    return run(tiny, RunOptions(str(tmp_path_factory.mktemp("first"))))


def test_a_plan_says_what_is_reused_and_what_is_to_do(first: FinishedRun, tiny: Recipe) -> None:
    out = first.folder.rsplit("/", 2)[0]
    plan = plan_run(tiny, out)
    assert [(step.title, step.stage, step.digest) for step in plan.steps] == [
        (title, artifact.stage, artifact.digest) for title, artifact in first.steps
    ]
    assert plan.to_do == []
    assert plan.seconds == 0
    other = plan_run(override(tiny, ["refine.threshold=0.31"]), out)
    assert [step.title for step in other.to_do] == ["refine", "score masks", "segment", "predict", "score segmentation"]
    assert other.seconds is not None
    assert other.seconds > 0
    fresh = plan_run(override(tiny, ["data.toy.seed=5"]), out)
    assert [step.title for step in fresh.to_do] == [title for title, _ in first.steps]
    assert {step.title for step in fresh.steps if step.digest is not None} == {"data"}


def test_cleaning_spares_what_runs_need(first: FinishedRun, tiny: Recipe) -> None:
    out = first.folder.rsplit("/", 2)[0]
    assert list_unused(out) == []
    store = Store(out)
    lost = store.folder("refine", "0123456789abcdef")
    storage.write_bytes(storage.join(lost, "part.parquet"), b"left over")
    started = override(tiny, ["refine.threshold=0.77"])
    unfinished = storage.join(out, "runs", "cam-00000000")
    storage.write_bytes(storage.join(unfinished, "recipe.yaml"), dump(started).encode())
    planned = next(step for step in plan_run(started, out).steps if step.title == "refine")
    needed = store.folder("refine", str(planned.digest))
    storage.write_bytes(storage.join(needed, "part.parquet"), b"half of it")
    assert [one.folder for one in list_unused(out)] == [lost]
    assert list_unused(out, older_than=3600) == []
    with store.lock("refine", "0123456789abcdef"):
        assert remove(list_unused(out)) == []
    assert [one.folder for one in remove(list_unused(out))] == [lost]
    assert not storage.exists(lost)
    assert storage.exists(needed)
    shutil.rmtree(unfinished)
    assert [one.folder for one in remove(list_unused(out))] == [needed]
    assert plan_run(tiny, out).to_do == []


def test_every_step_leaves_its_scores(first: FinishedRun) -> None:
    assert set(first.scores) == {"seeds", "masks", "segmentation"}
    assert set(first.scores["seeds"]) == {"fixed", "best", "otsu", "curve"}
    assert set(first.scores["segmentation"]) == {"single_scale", "multi_scale", "crf"}
    for found in first.scores.values():
        for values in found.values():
            if "protocol" in values:
                assert 0 <= values["miou"] <= 1
    best = first.scores["seeds"]["best"]
    assert best["miou"] == pytest.approx(max(first.scores["seeds"]["curve"]["miou"]), abs=1e-6)
    assert best["miou"] >= first.scores["seeds"]["fixed"]["miou"] - 1e-9
    assert "ground truth" in best["protocol"]


def test_training_takes_the_time_of_its_epochs(first: FinishedRun) -> None:
    """Of one of the first versions, whose epochs have no time, that of the step."""
    trained = [artifact.record for _, artifact in first.steps if artifact.stage == "train"]
    whole = sum(record["seconds"] for record in trained)
    assert 0 < first.train_seconds < whole
    old = deepcopy(first)
    for _, artifact in old.steps:
        for epoch in artifact.record.get("history", []):
            del epoch["seconds"]
    assert old.train_seconds == pytest.approx(whole)


def test_matrix_counts_every_pixel_of_the_split(first: FinishedRun) -> None:
    counted = sum(sum(row) for row in first.scores["seeds"]["fixed"]["matrix"])
    assert counted == 24 * 64 * 64


def test_panels_and_files(first: FinishedRun) -> None:
    folder = Path(first.folder)
    assert (folder / "recipe.yaml").is_file()
    assert (folder / "run.json").is_file()
    assert {path.name for path in (folder / "panels").iterdir()} == {"train.png", "val.png"}


def test_second_run_computes_nothing_whatever_the_workers(first: FinishedRun, tiny: Recipe) -> None:
    others = override(tiny, ["resources.inference_workers=1", "resources.loader_threads=1"])
    again = run(others, RunOptions(str(Path(first.folder).parent.parent)))
    assert all(artifact.reused for artifact in again.artifacts.values())


def test_later_settings_leave_earlier_steps_alone(first: FinishedRun, tiny: Recipe) -> None:
    out = str(Path(first.folder).parent.parent)
    other = run(override(tiny, ["refine={name: seeds, threshold: 0.3}", "segment=null"]), RunOptions(out))
    assert other.artifacts["network"].reused
    assert other.artifacts["maps"].reused
    assert not other.artifacts["masks"].reused


def test_how_maps_are_read_trains_nothing(first: FinishedRun, tiny: Recipe) -> None:
    out = str(Path(first.folder).parent.parent)
    windowed = run(override(tiny, ["method.window=32", "method.window_stride=16", "segment=null"]), RunOptions(out))
    assert windowed.artifacts["network"].reused
    assert not windowed.artifacts["maps"].reused
    assert windowed.artifacts["maps"].record["content"] != first.artifacts["maps"].record["content"]


def test_what_is_watched_changes_no_weight(first: FinishedRun, tiny: Recipe) -> None:
    """mAP every other epoch, seeds in every one; no mask is read without asking."""
    out = str(Path(first.folder).parent.parent)
    watching = override(tiny, ["train.validate_every=2", "train.validate_seeds=4", "refine=null", "segment=null"])
    watched, plain = run(watching, RunOptions(out)), first.history["train"]
    epochs = watched.history["train"]
    assert not watched.artifacts["network"].reused
    assert [epoch["mean_ap"] is None for epoch in epochs] == [True, False]
    assert epochs[-1]["mean_ap"] == plain[-1]["mean_ap"]
    assert [epoch["losses"] for epoch in epochs] == [epoch["losses"] for epoch in plain]
    assert not any(key.startswith("seed_") for epoch in plain for key in epoch)
    assert [all(0 <= epoch.get(f"seed_{name}", -1) <= 1 for name in SEEDS) for epoch in epochs] == [True, True]


def test_half_finished_step_goes_on(first: FinishedRun, tiny: Recipe) -> None:
    """Parts that were finished before a kill are not made again; the missing ones come out the same."""
    maps = first.artifacts["maps"]
    folder = storage.find_local(maps.uri)
    assert folder is not None
    parts = sorted(folder.glob("*.parquet"))
    kept, lost = parts[0], parts[-1]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    (folder / "artifact.json").unlink()
    again = run(tiny, RunOptions(str(Path(first.folder).parent.parent)))
    assert not again.artifacts["maps"].reused
    assert (maps.record["resumed"], again.artifacts["maps"].record["resumed"]) == (False, True)
    assert kept.stat().st_mtime_ns == before
    assert again.artifacts["maps"].record["content"] == maps.record["content"]


def test_damaged_files_are_found_and_made_again(
    first: FinishedRun, tiny: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in weights, maps and an image shard: said, and that step alone computed again, to the bit."""
    out = Path(first.folder).parent.parent
    # A second threshold reads the network's maps, whose shards and images are read then as well.
    other = override(tiny, ["refine.threshold=0.29", "segment=null"])
    damaged = [flip_bit(out / "data", "*.parquet"), flip_bit(Path(first.artifacts["maps"].uri), "*.parquet")]
    made = run(other, RunOptions(str(out)))
    assert [name for name in damaged if name in caplog.text] == damaged
    assert made.artifacts["maps"].record["content"] == first.artifacts["maps"].record["content"]
    assert made.artifacts["network"].reused
    weights = flip_bit(Path(first.artifacts["network"].uri), "model.safetensors")
    caplog.clear()
    again = run(override(tiny, ["localize.scales=[0.9]", "refine=null", "segment=null"]), RunOptions(str(out)))
    assert weights in caplog.text
    assert not again.artifacts["network"].reused
    assert again.artifacts["network"].record["content"] == first.artifacts["network"].record["content"]


def flip_bit(folder: Path, pattern: str) -> str:
    """Flip a bit in the middle of the first such file; its name."""
    path = sorted(folder.rglob(pattern))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path.name


def test_broken_parts_of_an_unfinished_step_are_made_again(first: FinishedRun, tiny: Recipe) -> None:
    """As a power cut or a full disk leave them: empty, or with a flipped bit."""
    maps = first.artifacts["maps"]
    folder = storage.find_local(maps.uri)
    assert folder is not None
    parts = sorted(folder.glob("*.parquet"))
    parts[0].write_bytes(b"")
    flip_bit(folder, parts[-1].name)
    (folder / "artifact.json").unlink()
    again = run(tiny, RunOptions(str(Path(first.folder).parent.parent)))
    assert again.artifacts["maps"].record["content"] == maps.record["content"]


def test_recipe_alone_decides_every_bit(first: FinishedRun, tmp_path: Path) -> None:
    """The saved recipe, run elsewhere with other workers on the same images with every mask taken away, makes the
    same networks, maps, masks and predictions: they follow from the recipe, and only scores read ground truth."""
    out = Path(first.folder).parent.parent
    source = next((out / "data").iterdir())
    blind = tmp_path / "blind"
    blind.mkdir()
    manifest = load_manifest(str(source))
    for shard in manifest.shards:
        table = pq.read_table(source / shard.path)
        place = table.schema.get_field_index("mask")
        table = table.set_column(place, table.schema.field(place), pa.nulls(table.num_rows, pa.binary()))
        pq.write_table(table, blind / shard.path)
    shards = tuple(replace(shard, digest=storage_digest(blind / shard.path), num_masks=0) for shard in manifest.shards)
    splits = {name: info.model_copy(update={"has_masks": False}) for name, info in manifest.splits.items()}
    write_manifest(manifest.model_copy(update={"shards": shards, "splits": splits, "has_masks": False}), str(blind))
    saved = load(Path(first.folder) / "recipe.yaml")
    others = ["resources.inference_workers=1", "resources.loader_threads=1"]
    made = run(override(saved, [f"data.uri={blind}", *others]), RunOptions(str(tmp_path / "out")))
    assert made.scores == {}
    for name in ("network", "maps", "masks", "segmenter", "predictions"):
        assert not made.artifacts[name].reused
        assert made.artifacts[name].record["content"] == first.artifacts[name].record["content"], name


def storage_digest(path: Path) -> str:
    """SHA-256 of a file."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_mlflow_holds_the_run(first: FinishedRun) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path(first.folder).parent.parent / 'mlflow.db'}")
    logged = client.get_run(first.mlflow_run)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["method.name"] == "cam"
    assert logged.data.tags["scale"] == "toy"
    assert logged.data.metrics["seeds/fixed/miou"] == pytest.approx(first.scores["seeds"]["fixed"]["miou"])
    history = client.get_metric_history(first.mlflow_run, "train/loss/cls")
    assert [point.step for point in history] == [0, 1]
    assert {file.path for file in client.list_artifacts(first.mlflow_run, "panels")} == {
        "panels/train.png",
        "panels/val.png",
    }


def test_curve_has_one_value_a_step(first: FinishedRun) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path(first.folder).parent.parent / 'mlflow.db'}")
    history = client.get_metric_history(first.mlflow_run, "seeds/miou_at_threshold_percent")
    curve = first.scores["seeds"]["curve"]
    assert {point.step: point.value for point in history} == dict(enumerate(curve["miou"]))
    assert len(history) == len(curve["thresholds"]) == 100


def test_thresholds_between_whole_per_cents_do_not_stand_in_their_neighbours_place() -> None:
    class Seen:
        def __init__(self) -> None:
            self.points: dict[int, float | None] = {}

        def log_metrics(self, values: dict[str, float | None], step: int = 0) -> None:
            for name, value in values.items():
                if name.endswith("threshold_percent"):
                    self.points[step] = value

    for thresholds, kept in (
        ([(0.33, 0.1), (0.3333, 0.2), (0.336, 0.3), (0.34, 0.4)], {33: 0.1, 34: 0.4}),
        ([(0.328, 0.1), (0.33, 0.2), (0.5, 0.3)], {33: 0.2, 50: 0.3}),
    ):
        seen = Seen()
        curve = {"thresholds": [at for at, _ in thresholds], "miou": [miou for _, miou in thresholds]}
        log_scores(seen, "seeds", {"curve": curve})  # type: ignore[arg-type]
        assert seen.points == kept
