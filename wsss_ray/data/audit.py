# SPDX-License-Identifier: Apache-2.0
"""What only a whole data set shows: masks that contradict the image labels, images that come twice, grey too dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from wsss_ray.config import UserError
from wsss_ray.data.files import short_list
from wsss_ray.data.image import IGNORE
from wsss_ray.data.tally import Examples, Facts, MaskTally, Tally, group_doubled

_MOST = 0.5
"""What is wrong with more than this part of the images is systematic."""
_FEW = 3


def audit_tally(tally: Tally, facts: Iterable[Facts], classes: Sequence[str]) -> list[str]:
    """Notes about what is rare; UserError for what is wrong with most images, with the likely reason and the fix.

    ``facts`` are those that were counted; they are read again only where images of equal bytes are among them.
    """
    notes = [*_check_palettes(tally), *_check_grey(tally)]
    doubled = set(tally.contents)
    notes += _note_doubles(group_doubled(facts, doubled), classes) if doubled else []
    notes += _check_masks(tally, classes)
    notes += _find_unshown(tally, classes)
    outside, several = tally.outside, tally.several
    if outside.count > _MOST * tally.images:
        raise UserError(
            f"the shapes of {outside.count} of {tally.images} images reach far beyond their image, the first is "
            f"{outside.ids[0]}: are they drawn for another size? Export them again, or cut them off with "
            "--set outside=cut"
        )
    if outside.count:
        notes.append(f"{outside.count} images have shapes that reach far beyond them, cut off: {_names(outside)}")
    if several.count:
        notes.append(f"{several.count} files hold several frames, of which the first is used: {_names(several)}")
    return notes


def _names(examples: Examples) -> str:
    return short_list(examples.ids)


def _check_palettes(tally: Tally) -> list[str]:
    """Palettes in no table mean their indices only where every mask gives an index the same colour."""
    if tally.clash is not None:
        other, one = tally.clash
        raise UserError(
            f"the masks of {other} and {one} give an index and a colour in two ways (the palettes "
            "were reduced); put a labelmap.txt (CLASS:red,green,blue a line) beside the masks, or give "
            "--set masks_by=index if the indices are right"
        )
    if not tally.palettes:
        return []
    return [f"{tally.palettes} masks have a palette of their own; their indices were read as the classes in order"]


def _check_grey(tally: Tally) -> list[str]:
    dark = tally.dark
    if not dark.count:
        return []
    what = f"{dark.count} of {tally.deep} images of more than 8 bits use less than a sixteenth of their range"
    fix = "if they hold 12 bits in 16, give --set grey_range=0:4095"
    if dark.count > _MOST * tally.deep and not tally.range_given:
        raise UserError(f"{what}: {_names(dark)} would be black; {fix}, else --set grey_range=0:65535 keeps them so")
    return [f"{what}: {_names(dark)} will be nearly black; {fix}"]


def _note_doubles(groups: Iterable[list[Facts]], classes: Sequence[str]) -> list[str]:
    """Images of equal bytes that lie in two splits or carry two labels."""
    across, labelled = [], []
    for group in groups:
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


def _check_masks(tally: Tally, classes: Sequence[str]) -> list[str]:
    """Masks against image labels, over all images and in every split that is large enough to tell."""
    notes = _compare_masks(tally.masks, classes)
    for split, own in sorted(tally.by_split.items()):
        if _FEW <= own.images < tally.masks.images:
            try:
                _compare_masks(own, classes)
            except UserError as error:
                raise UserError(f"split {split!r}: {error}") from None
    return notes


def _find_unshown(tally: Tally, classes: Sequence[str]) -> list[str]:
    """Classes that image labels name and no mask shows, though other classes are shown."""
    found = [
        f"{name!r} ({tally.named[label]} images)"
        for label, name in enumerate(classes)
        if tally.named[label] >= _FEW and label not in tally.shown
    ]
    if not found:
        return []
    return [f"no mask shows {short_list(found)}: its score will mean nothing; are its masks missing?"]


def _compare_masks(tally: MaskTally, classes: Sequence[str]) -> list[str]:
    if not tally.images:
        return []
    kinds = tally.kinds
    empty, extra, lacking = kinds["empty"].count, kinds["extra"].count, kinds["lacking"].count
    most_labelled = _MOST * max(1, tally.labelled)
    if tally.images - tally.read > _MOST * tally.images or empty > most_labelled:
        raise UserError(_why_empty(tally, classes))
    if extra > _MOST * tally.read or lacking > most_labelled:
        raise UserError(_why_other(tally, kinds["extra" if extra >= lacking else "lacking"], classes))
    swapped = _find_swap(tally, classes)
    if swapped:
        raise UserError(swapped + (_suggest(tally, classes) or _tell_binary(tally, classes) or _MANUAL))
    return _rare(tally, classes)


def _why_empty(tally: MaskTally, classes: Sequence[str]) -> str:
    """The masks show no class at all, or values that mean nothing."""
    found, empty = tally.raw, tally.kinds["empty"]
    values = ", ".join(map(str, sorted(found)))
    if holding := tally.kinds["unknown"].count:
        unknown = [value for value in found if value != IGNORE and value > len(classes)]
        return (
            f"masks of {holding} of {tally.images} images hold {_listed(unknown)}, which is none of the "
            f"{len(classes)} classes ({short_list(classes)}), the first is {tally.kinds['unknown'].ids[0]}; list every "
            "class in the order of the indices (--classes NAME,NAME,...), or state them:"
            f"{_suggest(tally, classes)[1:] or ' --set mask_values=VALUE:CLASS,...'}"
        )
    if not empty.count:
        unread = tally.kinds["unread"]
        return (
            f"masks of {unread.count} of {tally.images} images hold values without a meaning (of {values}), the first "
            f"is {unread.ids[0]}; state them: --set mask_values=VALUE:CLASS,..."
        )
    first = empty.ids[0]
    if set(found) == {IGNORE}:
        return (
            f"masks of {empty.count} of {tally.images} images are {IGNORE} everywhere, which is ignored, the first is "
            f"{first}: give the folder of the right masks, --set mask_values={IGNORE}:CLASS, or --set masks=none"
        )
    if set(found) <= {0, IGNORE} and IGNORE in found:
        name = classes[0] if len(classes) == 1 else "CLASS"
        return (
            f"masks of {empty.count} of {tally.images} images show no class (values {values}), the first is {first}: "
            f"masks of 0 and 255 mean one class; give --set mask_values=255:{name}"
            + ("" if len(classes) == 1 else f" with one of {short_list(classes)}, or --set masks=none")
        )
    return (
        f"masks of {empty.count} of {tally.images} images show no class (values {values}), the first is {first}; "
        "give the folder of the right masks, or --set masks=none"
    )


def _why_other(tally: MaskTally, wrong: Examples, classes: Sequence[str]) -> str:
    """The masks show other classes than the labels say."""
    example = wrong.first[0]
    shown = _words(tuple(sorted(example.shown)), classes)
    says = f"{example.image_id} is labelled {_words(example.labels, classes)}, its mask shows {shown}"
    hint = _suggest(tally, classes) or _tell_binary(tally, classes) or _MANUAL
    return f"masks of {wrong.count} of {tally.images} images contradict their labels ({says}){hint}"


def _tell_binary(tally: MaskTally, classes: Sequence[str]) -> str:
    """That masks of foreground and background cannot score several classes; empty for other masks."""
    found = tally.raw.keys() - {0, IGNORE}
    if len(found) != 1 or len(classes) == 1:
        return ""
    return f": the masks hold only {found.pop()} and tell no classes apart; give --set masks=none"


_MANUAL = ": check the order of the classes (--classes NAME,NAME,...) or state them (--set mask_values=VALUE:CLASS,...)"


def _find_swap(tally: MaskTally, classes: Sequence[str]) -> str | None:
    """A class that another one stands for in most of its images."""
    for label, name in enumerate(classes):
        of_class = tally.with_mask[label]
        others = Counter({other: count for (named, other), count in sorted(tally.instead.items()) if named == label})
        if of_class >= 2 and others:
            other, count = others.most_common(1)[0]
            if count > _MOST * of_class:
                shown = classes[other] if other < len(classes) else f"index {other + 1}"
                return f"masks of {count} of {of_class} images labelled {name!r} show {shown!r} instead"
    return None


def _suggest(tally: MaskTally, classes: Sequence[str]) -> str:
    """What the stored values mean if every class goes with the value it shares its images with; empty if unclear."""
    values = tally.raw
    everywhere = [value for value, count in sorted(values.items()) if count == tally.images]
    meaning: dict[int, str] = {}
    for label, name in enumerate(classes):
        own = tally.named[label]
        if not own:
            continue
        shared = {value: tally.together[label, value] for value in sorted(values) if value not in meaning}
        agreement = {value: both / (own + values[value] - both) for value, both in shared.items()}
        best = max(agreement, key=lambda value: agreement[value], default=None)
        if best is None or agreement[best] < 0.8:
            return ""
        meaning[best] = name
    background = next((value for value in everywhere if value not in meaning), None)
    if background is None or not meaning:
        return ""
    others = values.keys() - {0, IGNORE} - meaning.keys()
    if background == 0 and not others and sorted(meaning) == list(range(1, len(classes) + 1)):
        return f": are they in another order? Give --classes {','.join(meaning[value] for value in sorted(meaning))}"
    stated = {**meaning, **({background: "background"} if background else {})}
    stated |= {value: "ignore" for value in values if value not in stated and value not in (0, IGNORE)}
    pairs = ",".join(f"{value}:{stated[value]}" for value in sorted(stated))
    sure = f"if {background} is the background, " if background else ""
    return f": {sure}give --set mask_values={pairs}"


def _rare(tally: MaskTally, classes: Sequence[str]) -> list[str]:
    notes = []
    kinds = tally.kinds
    for name, what in (
        ("ignored", "are ignored everywhere"),
        ("blank", "show no class though their labels name some"),
    ):
        if kinds[name].count:
            notes.append(f"{kinds[name].count} masks {what}: {_names(kinds[name])}")
    if extra := kinds["extra"].count:
        notes.append(f"{extra} masks show a class that their labels lack: {_differ(kinds['extra'], classes, True)}")
    if partly := kinds["partly"].count:
        what = f"{partly} images have a label that their mask does not show"
        notes.append(f"{what}: {_differ(kinds['partly'], classes, False)}")
    return notes


def _differ(examples: Examples, classes: Sequence[str], extra: bool) -> str:
    """The first images with the classes by which mask and labels differ."""
    return short_list(
        f"{one.image_id} ({_words(tuple(sorted(one.shown - one.named if extra else one.named - one.shown)), classes)})"
        for one in examples.first
    )


def _words(labels: tuple[int, ...] | None, classes: Sequence[str]) -> str:
    names = [classes[label] if label < len(classes) else f"index {label + 1}" for label in labels or ()]
    return short_list(names) or "nothing"


def _listed(values: Iterable[int]) -> str:
    return short_list(sorted(values))
