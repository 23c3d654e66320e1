# SPDX-License-Identifier: Apache-2.0
"""The panels of a run, from its recorded artifacts alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.fake_run import fake_run, prepare
from wsss_ray.artifacts.record import open_run
from wsss_ray.config import UserError
from wsss_ray.data.manifest import open_data
from wsss_ray.reports.panels import NUM_ROWS, choose_rows, draw_panels


def test_sheets_follow_the_artifacts_there_are(tmp_path: Path) -> None:
    data = open_data(prepare(tmp_path / "data", num_images=14, size=(30, 40)))
    run = open_run(fake_run(tmp_path, "fake-1", data.uri))
    folders = {name: str(run.artifact(name)) for name in ("maps", "masks")}
    splits = {"score": "train", "val": "train"}

    def draw(*names: str) -> list[Path]:
        return draw_panels(data, splits, {name: folders[name] for name in names}, str(tmp_path / "-".join(names)))

    (both,) = draw("maps", "masks")
    (maps,) = draw("maps")
    assert both == tmp_path / "maps-masks" / "panels" / "train.png"
    widths = [Image.open(path).width for path in (maps, both)]
    # Three tiles, and one more: 180 pixels high, 4:3, with an edge of 8.
    assert widths == [3 * 248 + 8, 4 * 248 + 8]
    assert draw() == []


def test_a_split_the_data_has_not_is_refused(tmp_path: Path) -> None:
    data = open_data(prepare(tmp_path / "data"))
    run = open_run(fake_run(tmp_path, "fake-1", data.uri))
    with pytest.raises(UserError, match="no split 'val'"):
        draw_panels(data, {"score": "val", "val": "val"}, {"maps": str(run.artifact("maps"))}, str(tmp_path))


def test_rows_are_spread_evenly_over_the_shards() -> None:
    shards = [("a", 5), ("b", 0), ("c", 15)]
    chosen = choose_rows(shards)
    assert chosen[0] == ("a", 0)
    assert chosen[-1] == ("c", 14)
    assert len(set(chosen)) == NUM_ROWS
    assert choose_rows([("a", 2)]) == [("a", 0), ("a", 1)]
    assert choose_rows([]) == []
