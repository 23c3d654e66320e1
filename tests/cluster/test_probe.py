# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

from wsss_ray.cluster.probe import NodeAnswer, SharedPlaces, find_unreachable, judge_answer, list_versions

NOW = 1e9
GOOD = list_versions()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (NodeAnswer(GOOD, NOW + 5), ""),
        (NodeAnswer(GOOD, NOW + 75), "its clock is 65 s away from the one here; set it"),
        (NodeAnswer(GOOD, NOW - 90), "its clock is 90 s away"),
        (NodeAnswer({**GOOD, "Ray": "2.0"}, NOW), "has Ray 2.0, here is "),
        (NodeAnswer({**GOOD, "wsss-ray": "0.0.1"}, NOW), "has wsss-ray 0.0.1, here is "),
        (NodeAnswer({**GOOD, "Python": "3.9.1"}, NOW), "has Python 3.9.1, here is "),
        (NodeAnswer(GOOD, NOW, "cannot write"), "cannot write"),
    ],
)
def test_what_is_wrong_with_a_node(answer: NodeAnswer, problem: str) -> None:
    found = judge_answer(answer, NOW, NOW + 10)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_folders_that_are_reached(tmp_path: Path) -> None:
    places = SharedPlaces(str(tmp_path), (str(tmp_path),))
    assert "cannot read --out" in find_unreachable(places, "mark", "own")
    (tmp_path / "mark").write_text("another")
    assert "another file than was written" in find_unreachable(places, "mark", "own")
    (tmp_path / "mark").write_text("mark")
    assert find_unreachable(places, "mark", "own") == ""
    assert (tmp_path / "own").read_text() == "own"
    gone = SharedPlaces(str(tmp_path), (str(tmp_path / "none"),))
    assert "does not see" in find_unreachable(gone, "mark", "own")
    (tmp_path / "file").write_text("")
    assert "cannot read --out" in find_unreachable(SharedPlaces(str(tmp_path / "file")), "mark", "own")
