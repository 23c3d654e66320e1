# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged while a run lies still, killed in the middle of the next step: what is damaged is found, said,
and made again by the same command, and nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.chain import LAST, TITLES, Chain, Whole, run_beside
from tests.faults.processes import Command

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
PARTS = ("*.parquet", "model.safetensors", "checkpoints/*-model.safetensors")
RECORDS = ("artifact.json", "checkpoints/checkpoint.json", "shard-*.parquet.json")


def truncate(path: Path) -> None:
    """Half of it is left."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncate, PARTS),
    "flipped": (flip, PARTS),
    "record": (flip, RECORDS),
}
"""How a file is damaged, and which."""


def damage_first(folder: Path, change: Callable[[Path], None], patterns: tuple[str, ...]) -> list[Path]:
    """Damage the first file of each form in a step's folder; which they were."""
    found = [min(folder.glob(pattern)) for pattern in patterns if list(folder.glob(pattern))]
    for path in found:
        change(path)
    return found


def test_damaged_files_are_made_again(whole: Whole, tmp_path: Path) -> None:
    """Of the step that is finished, and of the one that is not."""
    run_beside(lambda name: damage_all(name, whole, tmp_path / name), DAMAGES)


def expect_again(chain: Chain, steps: list[str]) -> None:
    """These are made again, or will be."""
    for step in steps:
        chain.finished.pop(chain.whole.places[step], None)


def damage_all(name: str, whole: Whole, folder: Path) -> None:
    """One kind of damage, in every step."""
    change, patterns = DAMAGES[name]
    chain = Chain(whole, folder)
    before: list[tuple[str, Path]] = []
    said: list[str] = []

    def hurt(command: Command, step: str) -> None:
        """Kill the command in the middle of a step, see what it said, and damage two steps."""
        command.process.send_signal(signal.SIGKILL)
        command.process.wait()
        command.kill()
        # A training reads the cache beside it: what is wrong with a shard is found by the first step that reads it.
        expect_again(chain, [step for step, folder in before if f"{folder}: damaged" in command.text])
        chain.check_reused()
        said.append(command.text)
        place = list(whole.places).index(step)
        hit = damage_first(chain.find_place(step), change, patterns)
        assert hit or name == "record"
        if place:
            finished = list(whole.places)[place - 1]
            assert damage_first(chain.find_place(finished), change, patterns)
            chain.finished.pop(whole.places[finished])
            before.append((finished, chain.find_place(finished)))

    for step in [*TITLES, LAST]:
        for _ in range(4):
            command = chain.start()
            try:
                met = chain.meet(command, step)
                hurt(command, step) if met else chain.forget(step)
            finally:
                command.kill()
            if met:
                break
        assert met, step
    expect_again(chain, [step for step, folder in before if f"{folder}: damaged" not in "".join(said)])
    said.append(chain.finish().text)
    for number, (finished, folder) in enumerate(before):
        text = "".join(said[number + 2 :])
        assert f"{folder}" in text, (finished, text)
        assert "computed again" in text
        assert "Traceback" not in text
