# SPDX-License-Identifier: Apache-2.0
"""What only a whole data set shows: masks that contradict the image labels, images that come twice, grey too dark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wsss_ray.config import UserError
from wsss_ray.data.files import short_list
from wsss_ray.data.image import IGNORE
from wsss_ray.data.masks import Colour

_MOST = 0.5
"""What is wrong with more than this part of the images is systematic."""
_FEW = 3
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
    """Digest of the image file."""
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


def audit_facts(facts: Sequence[Facts], classes: Sequence[str]) -> list[str]:
    """Notes about what is rare; UserError for what is wrong with most images, with the likely reason and the fix."""
    notes = [*_check_palettes(facts), *_check_grey(facts), *_find_doubles(facts, classes)]
    notes += _check_masks([one for one in facts if one.raw is not None and one.labels is not None], classes)
    notes += _find_unshown([one for one in facts if one.values is not None], classes)
    outside = [one.image_id for one in facts if one.outside]
    if len(outside) > _MOST * len(facts):
        raise UserError(
            f"the shapes of {len(outside)} of {len(facts)} images reach far beyond their image, the first is "
            f"{outside[0]}: are they drawn for another size? Export them again, or cut them off with --set outside=cut"
        )
    if outside:
        notes.append(f"{len(outside)} images have shapes that reach far beyond them, cut off: {short_list(outside)}")
    several = [one.image_id for one in facts if one.frames > 1]
    if several:
        notes.append(f"{len(several)} files hold several frames, of which the first is used: {short_list(several)}")
    return notes


def _check_palettes(facts: Iterable[Facts]) -> list[str]:
    """Palettes in no table mean their indices only where every mask gives an index the same colour."""
    colours: dict[int, tuple[Colour, str]] = {}
    owners: dict[Colour, tuple[int, str]] = {}
    count = 0
    for one in facts:
        count += bool(one.palette)
        for value, colour in one.palette:
            first = colours.setdefault(value, (colour, one.image_id))
            owner = owners.setdefault(colour, (value, one.image_id))
            if first[0] != colour or owner[0] != value:
                other = first[1] if first[0] != colour else owner[1]
                raise UserError(
                    f"the masks of {other} and {one.image_id} give an index and a colour in two ways (the palettes "
                    "were reduced); put a labelmap.txt (CLASS:red,green,blue a line) beside the masks, or give "
                    "--set masks_by=index if the indices are right"
                )
    return (
        [f"{count} masks have a palette of their own; their indices were read as the classes in order"] if count else []
    )


def _check_grey(facts: Iterable[Facts]) -> list[str]:
    deep = [one for one in facts if one.brightest is not None]
    dark = [one.image_id for one in deep if (one.brightest or 0) <= _DARK]
    if not dark:
        return []
    what = f"{len(dark)} of {len(deep)} images of more than 8 bits use less than a sixteenth of their range"
    fix = "if they hold 12 bits in 16, give --set grey_range=0:4095"
    if len(dark) > _MOST * len(deep) and not any(one.range_given for one in deep):
        raise UserError(
            f"{what}: {short_list(dark)} would be black; {fix}, else --set grey_range=0:65535 keeps them so"
        )
    return [f"{what}: {short_list(dark)} will be nearly black; {fix}"]


def _find_doubles(facts: Iterable[Facts], classes: Sequence[str]) -> list[str]:
    """Images of equal bytes that lie in two splits or carry two labels."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        if one.content:
            groups[one.content].append(one)
    across, labelled = [], []
    for group in groups.values():
        first = group[0]
        for other in group[1:]:
            pair = f"{first.image_id} = {other.image_id}"
            if set(first.splits) != set(other.splits):
                across.append(f"{pair} ({'/'.join(first.splits)}, {'/'.join(other.splits)})")
            if first.labels != other.labels:
                labelled.append(f"{pair} ({_words(first.labels, classes)} and {_words(other.labels, classes)})")
    notes = []
    if across:
        notes.append(
            f"{len(across)} images lie in two splits under two names, which makes scores too good: {short_list(across)}"
        )
    if labelled:
        notes.append(f"{len(labelled)} images of equal bytes carry different labels: {short_list(labelled)}")
    return notes


def _check_masks(facts: list[Facts], classes: Sequence[str]) -> list[str]:
    """Masks against image labels, over all images and in every split that is large enough to tell."""
    notes = _compare_masks(facts, classes)
    splits = {split for one in facts for split in one.splits}
    for split in sorted(splits):
        own = [one for one in facts if split in one.splits]
        if _FEW <= len(own) < len(facts):
            try:
                _compare_masks(own, classes)
            except UserError as error:
                raise UserError(f"split {split!r}: {error}") from None
    return notes


def _find_unshown(facts: list[Facts], classes: Sequence[str]) -> list[str]:
    """Classes that image labels name and no mask shows, though other classes are shown."""
    found = []
    for label, name in enumerate(classes):
        images = [one for one in facts if label in (one.labels or ())]
        if len(images) >= _FEW and not any(label in one.shown for one in images):
            found.append(f"{name!r} ({len(images)} images)")
    if not found:
        return []
    return [f"no mask shows {short_list(found)}: its score will mean nothing; are its masks missing?"]


def _compare_masks(facts: list[Facts], classes: Sequence[str]) -> list[str]:
    if not facts:
        return []
    read = [one for one in facts if one.values is not None]
    labelled = [one for one in read if one.labels]
    empty = [one for one in labelled if not one.shown]
    extra = [one for one in read if one.shown - set(one.labels or ())]
    lacking = [one for one in labelled if set(one.labels or ()) - one.shown]
    if len(facts) - len(read) > _MOST * len(facts) or len(empty) > _MOST * max(1, len(labelled)):
        raise UserError(_why_empty(facts, empty, classes))
    if len(extra) > _MOST * len(read) or len(lacking) > _MOST * max(1, len(labelled)):
        wrong = extra if len(extra) >= len(lacking) else lacking
        raise UserError(_why_other(facts, wrong, classes))
    swapped = _find_swap(labelled, classes)
    if swapped:
        raise UserError(swapped + (_suggest(facts, classes) or _tell_binary(facts, classes) or _MANUAL))
    return _rare(read, empty, extra, lacking, classes)


def _why_empty(facts: list[Facts], empty: list[Facts], classes: Sequence[str]) -> str:
    """The masks show no class at all, or values that mean nothing."""
    found = Counter(value for one in facts for value in one.raw or ())
    unknown = [value for value in found if value != IGNORE and value > len(classes)]
    values = ", ".join(map(str, sorted(found)))
    if unknown:
        holding = [one.image_id for one in facts if set(one.raw or ()) & set(unknown)]
        return (
            f"masks of {len(holding)} of {len(facts)} images hold {_listed(unknown)}, which is none of the "
            f"{len(classes)} classes ({short_list(classes)}), the first is {holding[0]}; list every class in the order "
            f"of the indices (--classes NAME,NAME,...), or state them:"
            f"{_suggest(facts, classes)[1:] or ' --set mask_values=VALUE:CLASS,...'}"
        )
    first = empty[0].image_id
    if set(found) == {IGNORE}:
        return (
            f"masks of {len(empty)} of {len(facts)} images are {IGNORE} everywhere, which is ignored, the first is "
            f"{first}: give the folder of the right masks, --set mask_values={IGNORE}:CLASS, or --set masks=none"
        )
    if set(found) <= {0, IGNORE} and IGNORE in found:
        name = classes[0] if len(classes) == 1 else "CLASS"
        return (
            f"masks of {len(empty)} of {len(facts)} images show no class (values {values}), the first is {first}: "
            f"masks of 0 and 255 mean one class; give --set mask_values=255:{name}"
            + ("" if len(classes) == 1 else f" with one of {short_list(classes)}, or --set masks=none")
        )
    return (
        f"masks of {len(empty)} of {len(facts)} images show no class (values {values}), the first is {first}; "
        "give the folder of the right masks, or --set masks=none"
    )


def _why_other(facts: list[Facts], wrong: list[Facts], classes: Sequence[str]) -> str:
    """The masks show other classes than the labels say."""
    example = wrong[0]
    shown = _words(tuple(sorted(example.shown)), classes)
    says = f"{example.image_id} is labelled {_words(example.labels, classes)}, its mask shows {shown}"
    hint = _suggest(facts, classes) or _tell_binary(facts, classes) or _MANUAL
    return f"masks of {len(wrong)} of {len(facts)} images contradict their labels ({says}){hint}"


def _tell_binary(facts: list[Facts], classes: Sequence[str]) -> str:
    """That masks of foreground and background cannot score several classes; empty for other masks."""
    found = {value for one in facts for value in one.raw or () if value not in (0, IGNORE)}
    if len(found) != 1 or len(classes) == 1:
        return ""
    return f": the masks hold only {found.pop()} and tell no classes apart; give --set masks=none"


_MANUAL = ": check the order of the classes (--classes NAME,NAME,...) or state them (--set mask_values=VALUE:CLASS,...)"


def _find_swap(facts: list[Facts], classes: Sequence[str]) -> str | None:
    """A class that another one stands for in most of its images."""
    for label, name in enumerate(classes):
        of_class = [one for one in facts if label in (one.labels or ())]
        lacking = [one for one in of_class if label not in one.shown]
        others = Counter(other for one in lacking for other in one.shown - set(one.labels or ()))
        if len(of_class) >= 2 and others:
            other, count = others.most_common(1)[0]
            if count > _MOST * len(of_class):
                shown = classes[other] if other < len(classes) else f"index {other + 1}"
                return f"masks of {count} of {len(of_class)} images labelled {name!r} show {shown!r} instead"
    return None


def _suggest(facts: list[Facts], classes: Sequence[str]) -> str:
    """What the stored values mean if every class goes with the value it shares its images with; empty if unclear."""
    images: dict[int, set[str]] = defaultdict(set)
    for one in facts:
        for value in one.raw or ():
            images[value].add(one.image_id)
    everywhere = [value for value, names in images.items() if len(names) == len(facts)]
    meaning: dict[int, str] = {}
    for label, name in enumerate(classes):
        own = {one.image_id for one in facts if label in (one.labels or ())}
        if not own:
            continue
        agreement = {
            value: len(own & names) / len(own | names) for value, names in images.items() if value not in meaning
        }
        best = max(agreement, key=lambda value: agreement[value], default=None)
        if best is None or agreement[best] < 0.8:
            return ""
        meaning[best] = name
    background = next((value for value in everywhere if value not in meaning), None)
    if background is None or not meaning:
        return ""
    others = images.keys() - {0, IGNORE} - meaning.keys()
    if background == 0 and not others and sorted(meaning) == list(range(1, len(classes) + 1)):
        return f": are they in another order? Give --classes {','.join(meaning[value] for value in sorted(meaning))}"
    stated = {**meaning, **({background: "background"} if background else {})}
    stated |= {value: "ignore" for value in images if value not in stated and value not in (0, IGNORE)}
    pairs = ",".join(f"{value}:{stated[value]}" for value in sorted(stated))
    sure = f"if {background} is the background, " if background else ""
    return f": {sure}give --set mask_values={pairs}"


def _rare(
    read: list[Facts], empty: list[Facts], extra: list[Facts], lacking: list[Facts], classes: Sequence[str]
) -> list[str]:
    notes = []
    ignored = [one.image_id for one in read if set(one.values or ()) == {IGNORE}]
    blank = [one.image_id for one in empty if one.image_id not in set(ignored)]
    for found, what in ((ignored, "are ignored everywhere"), (blank, "show no class though their labels name some")):
        if found:
            notes.append(f"{len(found)} masks {what}: {short_list(found)}")
    if extra:
        notes.append(
            f"{len(extra)} masks show a class that their labels lack: {short_list(_differ(extra, classes, True))}"
        )
    partly = [one for one in lacking if one.shown]
    if partly:
        what = f"{len(partly)} images have a label that their mask does not show"
        notes.append(f"{what}: {short_list(_differ(partly, classes, False))}")
    return notes


def _differ(facts: list[Facts], classes: Sequence[str], extra: bool) -> list[str]:
    lines = []
    for one in facts[: _FEW + 1]:
        labels = frozenset(one.labels or ())
        lines.append(
            f"{one.image_id} ({_words(tuple(sorted(one.shown - labels if extra else labels - one.shown)), classes)})"
        )
    return lines + [""] * max(0, len(facts) - len(lines))


def _words(labels: tuple[int, ...] | None, classes: Sequence[str]) -> str:
    names = [classes[label] if label < len(classes) else f"index {label + 1}" for label in labels or ()]
    return short_list(names) or "nothing"


def _listed(values: Iterable[int]) -> str:
    return short_list(sorted(values))
