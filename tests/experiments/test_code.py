# SPDX-License-Identifier: Apache-2.0
"""Code that changes under a run is said of every step that is computed behind it, and of no other."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest

from studies import cam
from wsss_ray.artifacts.store import Artifact
from wsss_ray.experiments.code import list_changed, stamp_code
from wsss_ray.experiments.log import CodeLog
from wsss_ray.recipe import Recipe
from wsss_ray.tracking import Tracker

METHOD = "from wsss_ray.methods.cam import CAMConfig\n\nclass OwnConfig(CAMConfig):\n    pass\n"


@pytest.fixture(params=["package", "module"])
def own(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Path]:
    """A recipe whose method lies in a package, or a file, of its own; and that file, beside which others may lie."""
    name = f"own_{request.param}"
    file = tmp_path / name / "__init__.py" if request.param == "package" else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    method = importlib.import_module(name).OwnConfig()
    return cam.recipe("toy").model_copy(update={"method": method}), file


def test_files_that_are_written_added_or_removed_are_changed(own: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, file = own
    before = stamp_code(recipe)
    assert list_changed(before, stamp_code(recipe)) == []
    assert "wsss_ray/recipe.py" in before
    file.write_text(METHOD + "\n")
    name = file.relative_to(tmp_path).as_posix()
    assert list_changed(before, stamp_code(recipe)) == [name]
    file.with_name("more.py").write_text("")
    expected = [name, "own_package/more.py"] if file.name == "__init__.py" else [name]
    assert list_changed(before, stamp_code(recipe)) == expected
    file.unlink()
    assert list_changed(before, stamp_code(recipe)) == expected


def test_a_step_behind_a_change_is_warned_of(
    own: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, file = own
    name = file.relative_to(tmp_path).as_posix()
    with Tracker(str(tmp_path / "results"), "run", {}) as tracker:
        heard = CodeLog(tracker, recipe)
        with caplog.at_level(logging.WARNING):
            heard.hear_step("train", Artifact("train", "a1", "results/train/a1", {}))
            assert not caplog.records
            file.write_text(METHOD + "\n# another\n")
            heard.hear_step("localize", Artifact("localize", "b2", "results/localize/b2", {}, reused=True))
            assert not caplog.records
            heard.hear_step("score seeds", Artifact("score", "c3", "results/score/c3", {}))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"score seeds: code changed while this run went on ({name})")
        assert "remove results/score/c3" in record.getMessage()
        told = tracker._client.get_run(tracker.run_id).data.tags
        assert told["code_changed.score_seeds"] == name
        assert "code_changed.train" not in told
