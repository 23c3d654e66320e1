# SPDX-License-Identifier: Apache-2.0
"""Some faults of the long chains in one short chain."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.chain import Chain, Whole
from tests.faults.test_damage import PARTS, damage_first, flip, truncate
from tests.faults.test_matrix import WORKING, expect_line, expect_nothing, kill_named, send

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def test_a_run_goes_on_after_anything(whole: Whole, tmp_path: Path) -> None:
    """Driver killed in train; worker killed in localize, SIGTERM in refine; a part of each damaged; then to the end."""
    chain = Chain(whole, tmp_path)
    chain.disturb("train", send(signal.SIGKILL), expect_nothing)
    for _ in range(4):
        command = chain.start()
        try:
            if chain.meet(command, "localize"):
                kill_named(*WORKING)(command)
            if chain.meet(command, "refine"):
                before = command.text
                send(signal.SIGTERM)(command)
                command.process.wait(timeout=900)
                expect_line(143, "ended by SIGTERM")(command, command.text.removeprefix(before))
                break
            chain.forget("localize")
        finally:
            command.kill()
    else:
        pytest.fail("refine was over before the signal came")
    chain.check_reused()
    damage_first(chain.find_place("localize"), flip, PARTS)
    damage_first(chain.find_place("refine"), truncate, PARTS)
    chain.finished.pop(whole.places["localize"])
    text = chain.finish().text
    assert f"{chain.find_place('localize')}: damaged" in text
    assert "computed again" in text
