# SPDX-License-Identifier: Apache-2.0
"""What is said of a failure: one line, and a traceback where the program is to blame."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss_ray.config import UserError
from wsss_ray.experiments import sweep_trial
from wsss_ray.experiments.failures import LONGEST, describe_failure
from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
from wsss_ray.experiments.sweep_outcomes import SweepFolder
from wsss_ray.experiments.sweep_run import _Recorder
from wsss_ray.experiments.sweep_space import parse_space
from wsss_ray.studies import resolve


def test_only_what_is_not_the_users_has_a_traceback() -> None:
    assert describe_failure(UserError("a: wrong; fix it\nmore")) == ("a: wrong; fix it", "")
    try:
        raise KeyError("x")
    except KeyError as error:
        reason, trace = describe_failure(error)
    assert reason == "KeyError: 'x'"
    assert trace.startswith("Traceback")
    assert "test_failures.py" in trace
    step = describe_failure(RuntimeError("train: a worker failed\n  File x\n\nIndexError: 7"))[0]
    assert step == "RuntimeError: train: a worker failed IndexError: 7"
    assert describe_failure(ValueError())[0] == "ValueError: no message"
    assert len(describe_failure(ValueError("x" * 1000))[0]) == LONGEST


def test_the_traceback_of_a_trial_is_printed_once_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(sweep_trial, "run", broken)
    made = plan_sweep(resolve("cam"), parse_space(["score.background=0.2,0.3"]), SweepOptions())
    context = sweep_trial.Context(
        recipe=made.recipe, out=str(tmp_path), parent="parent", share=1, metric=made.metric, seeds=(0,), folder=""
    )
    outcomes = sweep_trial._run_group(context, [(point, 0) for point in made.list_points()], sweep_trial._Watch())
    assert [(one.state, one.reason) for one in outcomes] == [("failed", "KeyError: 'lost'")] * 2
    folder = SweepFolder(str(tmp_path / "sweep"), "stamp")
    recorder = _Recorder(made, folder, [], "parent")
    recorder.add(outcomes)
    said = caplog.text
    assert said.count("Traceback (most recent call last)") == 1
    assert "in _run_group" in said
    kept, _ = folder.load()
    assert [one.reason for one in kept] == ["KeyError: 'lost'"] * 2
    assert not any(one.traceback for one in [*kept, *recorder.outcomes])
