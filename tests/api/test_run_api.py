# SPDX-License-Identifier: Apache-2.0
"""What a finished run says in Python: tables, maps, masks, panels, and one clear line where something is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

import wsss_ray as wsss
from tests.fake_run import fake_run, prepare
from wsss_ray.experiments.plan import Plan
from wsss_ray.recipe import Recipe, override

HEAVY = ("torch", "ray", "pandas", "numpy", "mlflow", "pydantic", "typer")


def test_import_takes_no_library_with_it() -> None:
    asked = f"import sys, wsss_ray; print([name for name in {HEAVY} if name in sys.modules], len(dir(wsss_ray)))"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("[] ")


def test_every_name_is_there_and_no_module_takes_its_place() -> None:
    assert set(wsss.__all__) <= set(dir(wsss))
    for name in wsss.__all__:
        assert callable(getattr(wsss, name)), name
    assert wsss.Recipe is Recipe
    assert wsss.recipe("cam").name == "cam"
    with pytest.raises(AttributeError, match="nonesuch"):
        getattr(wsss, "nonesuch")  # noqa: B009


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run by hand: every image's pseudo mask is right but that of image 003."""
    root = tmp_path_factory.mktemp("api")
    return fake_run(root, "fake-aaaa", prepare(root / "prepared"), wrong={"003"})


@pytest.fixture(scope="module")
def run(folder: str) -> wsss.Run:
    return wsss.Run(folder)


def test_tables_hold_what_was_recorded(run: wsss.Run) -> None:
    scores = run.scores
    assert list(scores.index) == [("seeds", "best"), ("masks", "mask")]
    recorded = run.record["scores"]["masks"]["mask"]
    assert scores.loc[("masks", "mask"), "miou"] == recorded["miou"]
    assert scores.loc[("masks", "mask"), "protocol"] == "train, refined by seeds, image labels used"
    assert scores.loc[("seeds", "best"), "threshold"] == 0.5
    classes = run.per_class()
    assert list(classes.index) == ["background", "cat", "dog <b>", "katze & co"]
    assert list(classes.columns) == ["seeds", "masks"]
    assert classes["masks"].to_dict() == recorded["iou"]
    assert classes["masks"].mean() == pytest.approx(recorded["miou"])
    assert list(run.per_class("seeds").columns) == ["best"]
    assert run.curve()["seeds"].to_dict() == {0.0: 0.1, 0.25: 0.3, 0.5: recorded["miou"], 0.75: 0.2}
    history = run.history
    assert list(history.index) == [("train", 1), ("train", 2)]
    assert history["loss/total"].tolist() == [2.0, 1.0]
    assert history.loc[("train", 2), "mean_ap"] == 0.5


def test_maps_and_masks_of_an_image(run: wsss.Run) -> None:
    maps = run.maps("003")
    assert list(maps) == ["cat"]
    assert maps["cat"].shape == (24, 32)
    assert maps["cat"].dtype == np.float32
    mask = run.mask("001")
    assert mask.shape == (24, 32)
    assert set(np.unique(mask)) == {0, 2}
    assert not run.mask("003").any()


def test_panels_are_of_the_images_asked_for(run: wsss.Run) -> None:
    two, four = run.show(2), run.show(4)
    assert isinstance(two, Image.Image)
    assert two.height < four.height
    assert run.show(["003", "001"]).tobytes() != run.show(["001", "003"]).tobytes()


def test_what_a_notebook_shows_is_escaped(run: wsss.Run) -> None:
    assert "masks mask" in repr(run)
    page = run._repr_html_()
    assert "fake-aaaa" in page
    assert "<table" in page
    data = wsss.Data(run.record["data"])
    assert "dog &lt;b&gt;" in data._repr_html_()
    assert "<b>" not in data._repr_html_().replace("<p><b>", "")
    assert data.counts["train"].tolist() == [4, 4, 4]
    assert data.splits == {"train": 12}
    assert data.ids() == [f"{number:03d}" for number in range(12)]
    assert data.image("003").size == (32, 24)
    assert data.show(2).height < data.show(4).height


def test_one_line_says_what_is_wrong(run: wsss.Run, folder: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for ask, words in (
        (lambda: run.mask("0033"), ("0033", "did you mean 003?")),
        (lambda: run.maps("zzz"), ("zzz", "12", "000")),
        (lambda: run.show(["zzz"]), ("zzz", "train")),
        (lambda: run.show(2, split="val"), ("val", "train")),
        (lambda: run.per_class("segmentation"), ("segmentation", "seeds, masks")),
        (lambda: wsss.Run("nonesuch", out=Path(folder).parent.parent), ("nonesuch", "fake-aaaa")),
        (lambda: wsss.Data(missing), (missing, "manifest.json")),
        (lambda: wsss.prepare(missing, tmp_path / "out"), (missing, "no such folder")),
        (lambda: wsss.recipe("camm"), ("camm", "did you mean cam?")),
        (lambda: wsss.recipe("cam", data=missing), (missing, "manifest.json")),
        (lambda: wsss.recipe("cam", scale="huge"), ("huge", "small")),
        (lambda: wsss.recipe("cam", **{"train.epoch": 3}), ("train.epoch", "did you mean")),
        (lambda: wsss.recipe("cam", **{"trian.epochs": 3}), ("trian", "did you mean train?")),
        (lambda: wsss.recipe("cam", **{"train.epochs": "many"}), ("train.epochs", "many")),
        (lambda: wsss.load(missing), (missing, "no model here")),
        (lambda: wsss.run(wsss.recipe("cam"), tmp_path, callbacks=[print]), ("callbacks", "wsss.Listener")),
    ):
        with pytest.raises(wsss.UserError) as refused:
            ask()
        line = str(refused.value)
        assert len(line.splitlines()) == 1
        assert "--set" not in line
        for word in words:
            assert word in line
    assert not list(tmp_path.iterdir())


def make_images(root: Path) -> Path:
    (root / "mine").mkdir()
    for place in range(10):
        Image.fromarray(np.full((20, 30, 3), 20 * place, np.uint8)).save(root / "mine" / f"{place}.png")
    lines = [f"{place}.png,{'cat' if place % 2 else 'dog'}" for place in range(10)]
    (root / "mine" / "labels.csv").write_text("\n".join(["image,labels", *lines, ""]))
    return root / "mine"


def test_a_folder_is_prepared_once(ray_cluster: None, tmp_path: Path) -> None:
    folder, out = make_images(tmp_path), tmp_path / "out"
    data = wsss.prepare(folder, out)
    assert sorted(data.classes) == ["cat", "dog"]
    assert sum(data.splits.values()) == 10
    before = (out / "manifest.json").stat().st_mtime_ns
    again = wsss.prepare(folder, out)
    assert again.uri == data.uri
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(wsss.UserError, match="of other files or options"):
        wsss.prepare(folder, out, val_fraction=0.5)
    (folder / "0.png").unlink()
    with pytest.raises(wsss.UserError, match="of other files or options"):
        wsss.prepare(folder, out)
    with pytest.raises(wsss.UserError, match="lies inside"):
        wsss.prepare(folder, folder / "inner")
    recipe = wsss.recipe("cam", data=data)
    assert recipe.data.uri == str(out)
    assert recipe.scale == "small"


class Heard(wsss.Listener):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def hear_start(self, run: object) -> None:
        self.said.append("start")

    def hear_epoch(self, title: str, epoch: object) -> None:
        self.said.append(f"epoch of {title}")

    def hear_step(self, title: str, artifact: object) -> None:
        self.said.append(title)

    def hear_end(self, finished: object) -> None:
        self.said.append("end")


def test_a_run_joins_the_session_that_is_there_and_leaves_it(ray_cluster: None, tiny: Recipe, tmp_path: Path) -> None:
    session = ray.get_runtime_context().get_job_id()
    bars = ray.data.DataContext.get_current().enable_progress_bars
    seeds = override(tiny, ["refine=null", "segment=null"])
    plan = wsss.plan(seeds, tmp_path)
    assert isinstance(plan, Plan)
    assert set(plan.table["state"]) == {"to compute"}
    heard = Heard()
    run = wsss.run(seeds, tmp_path, callbacks=[heard])
    assert heard.said == ["data", "start", *["epoch of train"] * 2, "train", "localize", "score seeds", "end"]
    assert ray.get_runtime_context().get_job_id() == session
    assert ray.data.DataContext.get_current().enable_progress_bars == bars
    assert list(run.scores.index.get_level_values("step").unique()) == ["seeds"]
    assert run.recipe == wsss.Run(run.name, tmp_path).recipe
    done = wsss.plan(run.recipe, tmp_path)
    assert set(done.table["state"]) == {"reused"}
    assert "nothing to compute" in done._repr_html_()
    assert "nothing to compute" in repr(done)
