# SPDX-License-Identifier: Apache-2.0
"""Numbers that make no sense, in recipes and on the command line, are one line that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_run import fake_run, prepare
from tests.faults.command import call
from wsss_ray.config import MOST
from wsss_ray.studies import resolve

SETTINGS = {
    "seed=-1": "seed: ",
    f"seed={2**63}": "seed: too large; give at most 9_223_372_036_854_775_807",
    "seed=true": "seed: true and false are no numbers",
    "seed=1.5": "seed: ",
    "train.epochs=0": "train.epochs: ",
    "train.epochs=100001": "train.epochs: too large; give at most 100_000",
    "train.epochs=nan": "train.epochs: ",
    "train.epochs=1e300": "train.epochs: ",
    "train.batch_size=-8": "train.batch_size: ",
    "train.batch_milestones={1: true}": "batch_milestones: true and false",
    "train.augment.crop=true": "crop: true and false are no numbers; give a number",
    "train.augment.crop=1000000": "train.augment.crop: too large; give at most 20_000",
    "train.augment.crop=": "train.augment.crop: ",
    "train.optimizer.lr=inf": "train.optimizer.lr: ",
    "train.optimizer.lr=1e10": "train.optimizer.lr: too large",
    "train.optimizer.lr=-0.1": "train.optimizer.lr: ",
    "localize.scales=[1.0, true]": "scales: true and false",
    "localize.scales=[100.0]": "localize.scales: too large; give at most 16",
    "localize.scales=[]": "localize.scales: ",
    "score.thresholds=100000000": "score.thresholds: too large",
    "resources.train_workers=1000000": "resources.train_workers: too large",
    "name=": "name: ",
    "name=''": "name: give a name of 1 to 100 characters",
    "name=../x": "name: a name begins with no dot and holds no slash",
    "name=a/b": "name: a name begins with no dot",
    f"name={'x' * 101}": "name: give a name of 1 to 100",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting: str, tmp_path: Path) -> None:
    told = call("show", "cam", "--set", setting, cwd=tmp_path)
    assert told.is_line, told
    assert SETTINGS[setting] in told.err


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (("compare", "A", "B", "--seed", "-1"), "--seed"),
        (("compare", "A", "B", "--seed", str(2**63)), "--seed"),
        (("compare", "A", "B", "--resamples", "0"), "--resamples"),
        (("compare", "A", "B", "--resamples", "10000000"), "--resamples"),
        (("export", "A", "--to", "x", "--as", "polygons", "--tolerance", "nan"), "--tolerance"),
        (("export", "A", "--to", "x", "--as", "polygons", "--tolerance", "-1"), "--tolerance"),
        (("export", "A", "--to", "x", "--as", "polygons", "--tolerance", "inf"), "--tolerance"),
        (("run", "cam", "--seed", "-1", "--plan"), "--seed"),
        (("run", "cam", "--seed", "x", "--plan"), "--seed"),
        (("study", "run", "cam.baseline", "--seeds", "1000000000"), "--seeds"),
        (("sweep", "cam", "--over", "seed=1,2", "--trials", "1000000000"), "--trials"),
        (("sweep", "cam", "--over", "seed=1,2", "--max-concurrent", "0"), "--max-concurrent"),
        (("data", "show", "D", "--images", "-1"), "--images"),
        (("ui", "--port", "70000"), "--port"),
    ],
)
def test_options(args: tuple[str, ...], option: str, tmp_path: Path) -> None:
    data = prepare(tmp_path / "data")
    runs = {name: fake_run(tmp_path / "out", f"fake-{name}", data) for name in ("A", "B")}
    told = call(*(runs.get(one, one) for one in args), cwd=tmp_path)
    assert told.is_line, told
    assert option in told.err


def test_largest_values_are_taken() -> None:
    made = resolve("cam", settings=[f"seed={MOST['seed']}", "train.epochs=100000", "name=katze & co"])
    assert (made.seed, made.train.epochs, made.name) == (MOST["seed"], 100_000, "katze & co")
