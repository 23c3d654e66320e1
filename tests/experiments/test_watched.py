"""Seeds scored while a localizer trains on Ray: in every epoch's record, and no mask read without asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss_ray.experiments.run import RunOptions, run
from wsss_ray.recipe import Recipe, override

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_records_hold_recall_and_precision_where_asked(tiny: Recipe, tmp_path: Path) -> None:
    short = override(tiny, ["segment=null", "refine={name: seeds}", "train.validate_images=0"])
    plain = run(short, RunOptions(str(tmp_path))).artifacts["network"]
    watched = run(override(short, ["train.validate_seeds=4"]), RunOptions(str(tmp_path))).artifacts["network"]
    assert not any(key.startswith("seed_") for epoch in plain.record["history"] for key in epoch)
    assert len(watched.record["history"]) == short.train.epochs
    for epoch in watched.record["history"]:
        assert 0 <= epoch["seed_miou"] <= 1
        assert 0 <= epoch["seed_recall"] <= 1
        assert 0 <= epoch["seed_precision"] <= 1
    assert [epoch["losses"] for epoch in watched.record["history"]] == [
        epoch["losses"] for epoch in plain.record["history"]
    ]
