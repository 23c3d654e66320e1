# SPDX-License-Identifier: Apache-2.0
"""Many findings as few lines: what most images share is one line with a count, an example and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from wsss_ray.config import UserError
from wsss_ray.data.audit import audit_tally
from wsss_ray.data.checks import Problem
from wsss_ray.data.source import FACTS, Item, Row, Source
from wsss_ray.data.tally import Facts, Tally
from wsss_ray.data.text import GUESSED

_SHOWN = 20
_KINDS = 2
"""So many kinds of errors still make one line, where each is of more images than that on average."""
_ALIKE = 3
"""Notes of one kind that are still listed one by one."""


@dataclass
class Findings:
    """What came to light while images were read."""

    facts: list[Facts] = field(default_factory=list)
    bad: list[Problem] = field(default_factory=list)
    """Why images cannot be used, one each."""


def load_items(load: Callable[[Item], Row], items: Iterable[Item]) -> tuple[list[Row], Findings]:
    """The rows of all items that can be used, and what was found."""
    rows, findings = [], Findings()
    for item in items:
        try:
            row = load(item)
            facts = row.get(FACTS)
            rows.append(row)
        except UserError as error:
            findings.bad.append(Problem("", str(error), kind=getattr(error, "kind", "")))
            facts = getattr(error, FACTS, None)
        if facts is not None:
            findings.facts.append(facts)
    return rows, findings


@dataclass
class Counted:
    """The findings of any number of images, counted."""

    tally: Tally
    total: int
    bad: list[Problem] = field(default_factory=list)

    def add(self, findings: Findings) -> None:
        """Those of some more images."""
        for facts in findings.facts:
            self.tally.add(facts)
        self.bad += findings.bad


def judge_findings(source: Source, counted: Counted, facts: Iterable[Facts], skip_bad: bool = False) -> list[str]:
    """Notes about what is rare; UserError for what is wrong with most images, and for images that cannot be used
    unless ``skip_bad`` leaves them out. ``facts``, all that were counted, are read only where some need a second look.
    """
    bad, total = counted.bad, counted.total
    notes = audit_tally(counted.tally, facts, source.classes)
    if bad and not skip_bad:
        raise UserError(fold_errors(bad, total) + FIX + recall_guess(source))
    if bad:
        why = fold_errors(bad, total).partition("cannot be used:")[2] or str(bad[0])
        notes.append(f"left out {len(bad)} of {total} images that cannot be used: {why.strip()}")
    return notes


def recall_guess(source: Source) -> str:
    """That a text file's encoding was guessed, which may be why names do not fit; else empty."""
    guessed = [note for note in source.notes if GUESSED in note]
    return f" ({guessed[0]})" if guessed else ""


FIX = "; fix them, or leave them out with --skip-bad"


def fold_errors(problems: Sequence[Problem], total: int) -> str:
    """All errors in one message: a single line where they are of few kinds, else one line each, cut off."""
    groups: dict[str, list[str]] = {}
    for number, problem in enumerate(problems):
        groups.setdefault(problem.kind or str(number), []).append(str(problem))
    if len(problems) == 1:
        return str(problems[0])
    if len(groups) <= _KINDS and len(problems) > _KINDS * len(groups):
        same = "; ".join(f"{len(lines)} like {lines[0]}" for lines in groups.values())
        return f"{len(problems)} of {total} images cannot be used: {same}"
    lines = [line for group in groups.values() for line in group]
    more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{len(lines)} images cannot be used:\n  " + "\n  ".join(lines[:_SHOWN]) + more


def fold_warnings(problems: Sequence[Problem]) -> list[str]:
    """Warnings as notes: several of one kind become one line with a count and an example."""
    notes = []
    groups: dict[str, list[str]] = {}
    for number, problem in enumerate(problems):
        groups.setdefault(problem.kind or str(number), []).append(str(problem))
    for same in groups.values():
        notes += same if len(same) <= _ALIKE else [f"{len(same)} images, the first {same[0]}"]
    return notes
