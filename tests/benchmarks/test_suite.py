# SPDX-License-Identifier: Apache-2.0
"""The benchmark suite: every module declares itself, one pair runs for real, results are valid and fit in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import registry
from benchmarks.__main__ import main
from benchmarks.claim import CPU, WALL, Claim, Given, Goal, Pair, timed
from benchmarks.report import MARKS, count_missed, list_lines, replace_block, write_markdown
from benchmarks.runner import QUICK_SECONDS, find_percentile, measure_claim, measure_pair

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_is_declared_once() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "__main__"}
    declared = [*registry.CLAIMS, *registry.COMMANDS, *registry.PARTS]
    assert sorted(declared) == sorted(set(declared))
    assert modules == set(declared)


@pytest.mark.parametrize("name", registry.CLAIMS)
def test_every_claim_says_what_it_claims(name: str) -> None:
    claim = registry.load_claim(name)
    assert claim.says
    assert " / " in claim.ratio
    assert claim.seconds > 0


def test_all_quick_claims_fit_in_ten_minutes() -> None:
    quick = [claim.seconds for claim in map(registry.load_claim, registry.CLAIMS) if claim.quick]
    assert sum(quick) <= QUICK_SECONDS < 590


@pytest.mark.parametrize("name", registry.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert f"benchmarks.{name}" in done.stdout


def test_one_claim_runs_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nafter\n", encoding="utf-8")
    assert main(["--quick", "--only", "walk", "--out", str(tmp_path / "out"), "--docs", str(page)]) == 0
    record = json.loads((tmp_path / "out" / "benchmarks.json").read_text(encoding="utf-8"))
    (result,) = record["claims"]
    assert record["command"] == "python -m benchmarks --quick --only walk"
    assert {"CPU", "cores", "Python", "torch", "ray", "numpy"} <= record["machine"].keys()
    rows = {row["measure"]: row for row in result["rows"]}
    assert rows.keys() == {CPU, WALL}
    assert rows[CPU]["low"] <= rows[CPU]["ratio"] <= rows[CPU]["high"]
    assert rows[CPU]["ratio"] > 2, "the dense matrix of 1600 cells takes longer than the stencil"
    assert "scores differ by at most" in rows[CPU]["note"]
    assert "walk: the random walk" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.endswith("after\n")
    assert "| `walk`: dense matrix / stencil | 160 x 160 |" in text


def make_pair(calls: list[str], **more: object) -> Pair:
    def side(name: str, value: float) -> object:
        def run() -> dict[str, float]:
            calls.append(name)
            return {"CPU s": value, "MB": 5.0} if name == "top" else {"CPU s": value}

        return run

    return Pair("case", top=side("top", 3.0), bottom=side("bottom", 2.0), **more)  # type: ignore[arg-type]


def test_sides_take_turns_and_their_ratio_is_judged() -> None:
    calls: list[str] = []
    pair = make_pair(calls, rounds=3, goals={"CPU s": Goal(at_most=1.4)})
    (row,) = measure_pair(pair, time.monotonic() + 60)
    assert calls == ["top", "bottom", "top", "bottom", "bottom", "top", "top", "bottom"]
    assert (row["ratio"], row["rounds"], row["kept"], row["goal"]) == (1.5, 3, False, "<= 1.4")
    assert Goal(at_least=1.5).holds(1.5)
    assert not Goal(at_least=1.5).holds(1.4)


def test_without_time_one_round_is_left() -> None:
    calls: list[str] = []
    (row,) = measure_pair(make_pair(calls, rounds=50, warm=False), time.monotonic() - 1)
    assert (row["rounds"], calls) == (1, ["top", "bottom"])


def test_percentiles_lie_between_the_values() -> None:
    assert find_percentile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert find_percentile([1.0, 2.0], 0.1) == pytest.approx(1.1)
    assert find_percentile([7.0], 0.9) == 7.0


def test_a_claim_cleans_up_behind_a_pair_that_fails(tmp_path: Path) -> None:
    seen = []

    def fail() -> dict[str, float]:
        raise RuntimeError("no")

    def measure(given: Given) -> Iterator[Pair]:
        try:
            yield Pair("case", top=fail, bottom=fail)
        finally:
            seen.append("cleaned")

    with pytest.raises(RuntimeError, match="no"):
        list(measure_claim(Claim("says", "one / other", measure, 1), Given(tmp_path)))
    assert seen == ["cleaned"]


def test_time_of_this_process_is_read() -> None:
    def work() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    reading = timed(work)()
    assert 0.04 < reading[CPU] <= reading[WALL] + 0.02


def test_failures_and_missed_goals_are_said() -> None:
    row = {"case": "a", "measure": "MB", "ratio": 2.0, "low": 1.9, "high": 2.1, "rounds": 1, "top": 4.0, "bottom": 2.0}
    claims = [
        {"name": "x", "says": "s", "ratio": "a / b", "seconds": 1.0, "error": "ended after 9 s", "rows": []},
        {
            "name": "y",
            "says": "s",
            "ratio": "a / b",
            "seconds": 1.0,
            "error": "",
            "rows": [{**row, "goal": "<= 1", "kept": False, "note": ""}],
        },
    ]
    assert count_missed(claims) == (1, 1)
    assert any("FAILED: ended after 9 s" in line for line in list_lines(claims[0]))
    assert any("<= 1: NO" in line for line in list_lines(claims[1]))
    text = write_markdown({"command": "c", "seconds": 60.0, "machine": {"CPU": "z"}, "claims": claims})
    assert "not finished: ended after 9 s" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no lines"):
        replace_block(page, "table")


def test_stopping_the_suite_stops_the_claim_under_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "crf", "--out", str(tmp_path)]
    suite = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)})

    def find_claim() -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"inside crf --scratch {tmp_path}"], capture_output=True, text=True)
        return [int(line) for line in found.stdout.split()]

    until = time.monotonic() + 60
    while not find_claim() and time.monotonic() < until:
        time.sleep(0.2)
    assert find_claim()
    suite.send_signal(signal.SIGTERM)
    assert suite.wait(30) == 128 + signal.SIGTERM
    assert find_claim() == []
