# SPDX-License-Identifier: Apache-2.0
"""The closing table of a run, from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_run import fake_run, prepare
from wsss_ray import storage
from wsss_ray.artifacts.record import open_run
from wsss_ray.cli.output import print_parts
from wsss_ray.reports.closing import describe_run, list_scores


def test_every_score_has_its_protocol(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, "fake-1", prepare(tmp_path / "data"))
    record = storage.read_json(f"{folder}/run.json")
    record["scores"]["masks"]["mask"]["part_recall"] = {"1": 0.25, "2": 0.5, "7": 0.75}
    storage.write_json(f"{folder}/run.json", record)
    assert list_scores(open_run(folder)) == [
        ("image-level mAP (train)", "50.0", "val, after epoch 2"),
        ("CAM seeds, best threshold: mIoU", "100.0", "train, threshold 0.5 chosen on train ground truth"),
        ("Pseudo masks, refined: mIoU", "100.0", "train, refined by seeds, image labels used"),
        ("  recall on heads", "25.0", "synthetic parts"),
        ("  recall on bodies", "50.0", "synthetic parts"),
        ("  recall on part 7", "75.0", "synthetic parts"),
    ]


def test_it_says_where_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_run(tmp_path, "fake-1", prepare(tmp_path / "data"))
    run = open_run(folder)
    run.recipe["name"] = "[/fake]"
    print_parts(describe_run(run))
    printed = capsys.readouterr().out
    for text in ("[/fake] (toy, seed 0)", f"{folder}/panels", f"wsss report {folder}", f"wsss compare {folder} OTHER"):
        assert text in printed
