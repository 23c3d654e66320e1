# SPDX-License-Identifier: Apache-2.0
"""What is counted image by image is what a look at all images at once would say, in any order."""

from __future__ import annotations

import errno
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_ray.config import UserError
from wsss_ray.data.audit import audit_tally
from wsss_ray.data.repeats import Repeats
from wsss_ray.data.tally import Examples, Facts, Tally, group_doubled
from wsss_ray.storage import is_disk_full

CLASSES = ["cat", "dog", "owl"]
LABELS = st.none() | st.sets(st.integers(0, 2), max_size=3).map(lambda found: tuple(sorted(found)))
VALUES = st.sets(st.sampled_from([0, 1, 2, 3, 4, 255]), min_size=1, max_size=4).map(lambda found: tuple(sorted(found)))


@st.composite
def draw_facts(draw: st.DrawFn) -> list[Facts]:
    found = []
    for number in range(draw(st.integers(1, 12))):
        raw = draw(st.none() | VALUES)
        readable = raw is not None and draw(st.booleans())
        found.append(
            Facts(
                f"p{number:02d}",
                draw(st.sampled_from([("train",), ("val",), ("train", "val")])),
                draw(LABELS),
                raw,
                raw if readable else None,
                content=f"{draw(st.integers(0, 20)):016x}",
                frames=draw(st.integers(1, 2)),
                outside=draw(st.integers(0, 9)) == 0,
            )
        )
    return found


def judge(facts: list[Facts]) -> list[str] | str:
    tally = Tally(len(CLASSES))
    for one in facts:
        tally.add(one)
    try:
        return audit_tally(tally, facts, CLASSES)
    except UserError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(draw_facts(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(facts: list[Facts], order: random.Random) -> None:
    shuffled = facts.copy()
    order.shuffle(shuffled)
    assert judge(shuffled) == judge(facts)


@settings(max_examples=150, deadline=None)
@given(draw_facts())
def test_counts_are_those_of_a_look_at_all(facts: list[Facts]) -> None:
    tally = Tally(len(CLASSES))
    for one in facts:
        tally.add(one)
    with_both = [one for one in facts if one.raw is not None and one.labels is not None]
    read = [one for one in with_both if one.values is not None]
    labelled = [one for one in read if one.labels]
    masks = tally.masks
    assert (masks.images, masks.read, masks.labelled) == (len(with_both), len(read), len(labelled))
    assert masks.kinds["empty"].ids == [one.image_id for one in labelled if not one.shown][:4]
    assert masks.kinds["extra"].count == sum(bool(one.shown - one.named) for one in read)
    assert masks.kinds["lacking"].count == sum(bool(one.named - one.shown) for one in labelled)
    assert masks.together[1, 2] == sum(1 in one.named and 2 in (one.raw or ()) for one in with_both)
    assert masks.instead[0, 1] == sum(0 in one.named - one.shown and 1 in one.shown - one.named for one in labelled)
    for split, own in tally.by_split.items():
        assert own.images == sum(split in one.splits for one in with_both)
    contents = Counter(one.content for one in facts)
    groups = group_doubled(facts, set(tally.contents))
    assert sorted(group[0].content for group in groups) == sorted(name for name, many in contents.items() if many > 1)
    assert sum(map(len, groups)) == sum(many for many in contents.values() if many > 1)


def test_a_million_images_of_one_kind_are_a_number_and_four_names() -> None:
    examples = Examples()
    for number in reversed(range(5_000)):
        examples.add(Facts(f"{number:04d}"))
    assert examples.count == 5_000
    assert examples.ids == ["0000", "0001", "0002", "0003"]


@given(st.lists(st.text(max_size=3) | st.sampled_from(["a", "", "\0", "\udcff", "ä"]), max_size=40))
def test_repeated_texts(texts: list[str]) -> None:
    repeats = Repeats()
    for text in texts:
        repeats.add(text)
    assert sorted(repeats) == sorted(text for text, many in Counter(texts).items() if many > 1)


def test_texts_are_not_kept_in_memory() -> None:
    repeats, before = Repeats(), read_resident_mb()
    for number in range(300_000):
        repeats.add(f"image {number % 299_999:058d}")
    assert list(repeats) == [f"image {0:058d}"]
    assert read_resident_mb() - before < 12, "the texts alone are 19 MB"


def test_a_full_temporary_folder_is_a_full_disk() -> None:
    repeats = Repeats()
    repeats._base.execute("PRAGMA max_page_count = 20")  # noqa: SLF001
    with pytest.raises(OSError, match="temporary folder") as found:
        add_all(repeats, 100_000)
    assert found.value.errno == errno.ENOSPC
    assert is_disk_full(found.value)


def add_all(repeats: Repeats, number: int) -> None:
    for place in range(number):
        repeats.add(f"{place:058d}")


def read_resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
