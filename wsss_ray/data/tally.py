# SPDX-License-Identifier: Apache-2.0
"""What a whole data set shows, counted image by image: nothing is kept in memory per image but a few names."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from wsss_ray.data.image import IGNORE
from wsss_ray.data.masks import Colour
from wsss_ray.data.repeats import Repeats

_KEPT = 4
"""Examples of a kind: one more than a list shows, so that it says that there are more."""
_DARK = 15
"""Of 255: images that never get brighter hold 12 bits in 16, most likely."""


@dataclass(frozen=True)
class Facts:
    """What was seen of one image while it was prepared."""

    image_id: str
    splits: tuple[str, ...] = ()
    labels: tuple[int, ...] | None = None
    raw: tuple[int, ...] | None = None
    """Stored values of its mask; None without a mask."""
    values: tuple[int, ...] | None = None
    """Class indices of its mask, 0 and 255 among them; None where it could not be read or there is none."""
    palette: tuple[tuple[int, Colour], ...] = ()
    """Colours of a palette that is in no table."""
    content: str = ""
    """Digest of the image file, in hexadecimal."""
    brightest: int | None = None
    """Of 255, for images of more than 8 bits."""
    range_given: bool = False
    """The range of grey values was stated by the user."""
    frames: int = 1
    outside: bool = False
    """Shapes of an annotation reach far beyond the image."""

    @property
    def shown(self) -> frozenset[int]:
        """The classes, from 0, that its mask shows."""
        return frozenset(value - 1 for value in self.values or () if value not in (0, IGNORE))

    @property
    def named(self) -> frozenset[int]:
        """The classes, from 0, that its labels name."""
        return frozenset(self.labels or ())


@dataclass
class Examples:
    """How many images are of a kind, and the first of them by id, whatever the order they come in."""

    count: int = 0
    first: list[Facts] = field(default_factory=list)

    def add(self, facts: Facts) -> None:
        """One more of the kind."""
        self.count += 1
        if len(self.first) < _KEPT or facts.image_id < self.first[-1].image_id:
            bisect.insort(self.first, facts, key=lambda one: one.image_id)
            del self.first[_KEPT:]

    @property
    def ids(self) -> list[str]:
        """The first few, sorted."""
        return [one.image_id for one in self.first]


@dataclass
class MaskTally:
    """Masks beside the image labels, of images that have both."""

    num_classes: int
    images: int = 0
    read: int = 0
    """Masks whose values have a meaning."""
    labelled: int = 0
    """Of these, those of images with a label."""
    kinds: dict[str, Examples] = field(default_factory=lambda: defaultdict(Examples))
    """unread, empty, extra, lacking, partly, ignored, blank, unknown."""
    raw: Counter[int] = field(default_factory=Counter)
    """Stored value -> images."""
    named: Counter[int] = field(default_factory=Counter)
    """Class -> images labelled with it."""
    together: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(class, stored value) -> images that have both."""
    with_mask: Counter[int] = field(default_factory=Counter)
    """Class -> images labelled with it whose mask could be read."""
    instead: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(class that is named and not shown, class that is shown and not named) -> images."""

    def add(self, one: Facts) -> None:
        """One more image with a mask and labels."""
        self.images += 1
        raw, named, shown = set(one.raw or ()), one.named, one.shown
        self.raw.update(raw)
        self.named.update(named)
        self.together.update((label, value) for label in named for value in raw)
        if any(value != IGNORE and value > self.num_classes for value in raw):
            self.kinds["unknown"].add(one)
        if one.values is None:
            self.kinds["unread"].add(one)
            return
        self.read += 1
        ignored = set(one.values) == {IGNORE}
        if ignored:
            self.kinds["ignored"].add(one)
        if shown - named:
            self.kinds["extra"].add(one)
        if not named:
            return
        self.labelled += 1
        self.with_mask.update(named)
        self.instead.update((label, other) for label in named - shown for other in shown - named)
        if not shown:
            self.kinds["empty"].add(one)
            if not ignored:
                self.kinds["blank"].add(one)
        if named - shown:
            self.kinds["lacking"].add(one)
            if shown:
                self.kinds["partly"].add(one)


@dataclass
class Tally:
    """All images of a data set."""

    num_classes: int
    images: int = 0
    masks: MaskTally = field(init=False)
    by_split: dict[str, MaskTally] = field(default_factory=dict)
    palettes: int = 0
    """Masks with a palette that is in no table."""
    colours: dict[int, tuple[Colour, str]] = field(default_factory=dict)
    """Index -> the colour that a mask gives it, and whose."""
    owners: dict[Colour, tuple[int, str]] = field(default_factory=dict)
    clash: tuple[str, str] | None = None
    """Two images whose palettes give an index or a colour in two ways."""
    deep: int = 0
    """Images of more than 8 bits."""
    dark: Examples = field(default_factory=Examples)
    range_given: bool = False
    outside: Examples = field(default_factory=Examples)
    several: Examples = field(default_factory=Examples)
    named: Counter[int] = field(default_factory=Counter)
    """Class -> images with a readable mask that are labelled with it."""
    shown: set[int] = field(default_factory=set)
    """Classes, from 0, that a mask shows though its image is labelled with them."""
    contents: Repeats = field(default_factory=Repeats)
    """The digests of the files."""

    def __post_init__(self) -> None:
        self.masks = MaskTally(self.num_classes)

    def add(self, one: Facts) -> None:
        """One more image."""
        self.images += 1
        if one.content:
            self.contents.add(one.content)
        if one.palette:
            self._add_palette(one)
        if one.brightest is not None:
            self.deep += 1
            self.range_given |= one.range_given
            if one.brightest <= _DARK:
                self.dark.add(one)
        if one.outside:
            self.outside.add(one)
        if one.frames > 1:
            self.several.add(one)
        if one.values is not None:
            self.named.update(one.named)
            self.shown |= one.named & one.shown
        if one.raw is not None and one.labels is not None:
            self.masks.add(one)
            for split in one.splits:
                self.by_split.setdefault(split, MaskTally(self.num_classes)).add(one)

    def _add_palette(self, one: Facts) -> None:
        self.palettes += 1
        for value, colour in one.palette:
            first = self.colours.setdefault(value, (colour, one.image_id))
            owner = self.owners.setdefault(colour, (value, one.image_id))
            if self.clash is None and (first[0] != colour or owner[0] != value):
                self.clash = (first[1] if first[0] != colour else owner[1], one.image_id)


def group_doubled(facts: Iterable[Facts], doubled: set[str]) -> list[list[Facts]]:
    """Images of equal bytes, in groups of two and more, sorted by id; ``doubled`` holds their digests."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        if one.content in doubled:
            groups[one.content].append(one)
    found = [sorted(group, key=lambda one: one.image_id) for group in groups.values()]
    return sorted(found, key=lambda group: group[0].image_id)
