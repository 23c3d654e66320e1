# SPDX-License-Identifier: Apache-2.0
"""What a bar says where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from wsss_ray.cluster import progress
from wsss_ray.cluster.progress import Bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time it is for a bar."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("before", [0, 50, 99])
def test_what_was_done_before_is_no_speed(before: int, clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wsss_ray"), Bar("localize", 100) as bar:
        bar.keep(before)
        clock[0] += 10
        bar.advance(1)
    shown = f"localize: {before + 1}/100 images 0.1/s" + (" resumed" if before else "")
    assert caplog.messages[-1] == shown
