"""``wsss report``: a run or a study as one page that needs no network: scores, road, curves, classes, images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from wsss_ray.artifacts.record import RunFolder
from wsss_ray.reports.chart_svg import Mark, Series, chart, confusion_chart
from wsss_ray.reports.images import BUDGET, KINDS, Shown, run_images
from wsss_ray.reports.layout import document, duration, percent, section, table
from wsss_ray.score.names import STEPS

TITLES = {"seeds": "Seeds", "masks": "Pseudo masks", "segmentation": "Segmentation"}


COLOURS = {"seeds": 1, "masks": 2, "segmentation": 3}


VARIANTS = {
    "fixed": "fixed threshold",
    "best": "best threshold",
    "mask": "refined",
    "single_scale": "single scale",
    "multi_scale": "multi-scale",
    "crf": "multi-scale + CRF",
}


def images(run: RunFolder, budget: int) -> list[str]:
    """The sections of images, which share ``budget`` bytes; what a run made no artifact of has none."""
    steps = [step for step, kind in KINDS.items() if budget and run.artifact(kind) is not None]
    sections: list[str] = []
    number = 0
    for step in steps:
        shown = run_images(run, step, budget // len(steps))
        if shown:
            sections.append(image_section(run, step, shown, number))
            number += len(shown)
    return sections


def run_page(run: RunFolder, budget: int = BUDGET) -> str:
    """The page of one run as HTML, with ``budget`` bytes of images; none for 0."""
    recipe = run.recipe
    data = recipe["data"]["uri"] or "generated toy images"
    facts = {
        "method": f"{recipe['method']['name']} ({recipe['method'].get('profile', 'paper')})",
        "network": recipe["net"]["backbone"],
        "data": str(data).rstrip("/").rsplit("/", 1)[-1],
        "scale": recipe["scale"],
        "seed": recipe["seed"],
        "finished": run.record.get("finished", "-"),
    }
    sections = [
        headline(run),
        section("Scores", score_table(run)),
        section("Road", road(run.record.get("steps", []))),
        section("Curves", curves(run)),
        section("Classes", classes(run)),
        section("Confusion", confusion(run)),
        *images(run, budget),
        section("Recipe", recipe_block(recipe)),
    ]
    return document(recipe["name"], facts, sections, run.name)


def usual(run: RunFolder, step: str) -> tuple[str, dict[str, Any]] | None:
    """(variant, numbers) a paper would print of a step, None where it was not scored."""
    scored = run.scored(step)
    return next(((variant, scored[variant]) for variant in STEPS[step].variants if variant in scored), None)


def headline(run: RunFolder) -> str:
    """The number of every scored step, large, with its protocol."""
    tiles = []
    for step, title in TITLES.items():
        found = usual(run, step)
        if found is not None:
            tiles.append(
                f'<div class="score s{COLOURS[step]}"><small>{title} mIoU</small><b>{percent(found[1]["miou"])}'
                f" <small>%</small></b><small>{escape(found[1]['protocol'])}</small></div>"
            )
    if not tiles:
        return '<p class="soft">This data has no ground truth, so nothing was scored.</p>'
    return f'<div class="tiles3">{"".join(tiles)}</div>'


def score_table(run: RunFolder) -> str:
    """Every scored variant with its protocol."""
    keys = {
        "miou": "mIoU %",
        "miou_foreground": "mIoU, foreground",
        "pixel_accuracy": "pixel accuracy",
        "mean_precision": "precision",
        "mean_recall": "recall",
        "precision_foreground": "precision, foreground",
        "recall_foreground": "recall, foreground",
        "coverage": "coverage",
    }
    rows = [
        [
            f"{TITLES[step]}, {VARIANTS[variant]}",
            *(percent(values.get(key)) for key in keys),
            values["protocol"],
        ]
        for step in STEPS
        for variant, values in run.scored(step).items()
    ]
    return table(["score", *keys.values(), "protocol"], rows) if rows else ""


def road(steps: Sequence[dict[str, Any]]) -> str:
    """Every step with its time; hatched where it was loaded instead of computed."""
    if not steps:
        return ""
    longest = max((step["seconds"] or 0 for step in steps), default=0) or 1
    items = []
    for step in steps:
        seconds, reused = step["seconds"] or 0, step["reused"]
        extra = [f"{step['images_per_second']:.1f} images/s"] if step.get("images_per_second") else []
        extra += [f"{step['peak_memory_mb'] / 1024:.1f} GB"] if step.get("peak_memory_mb") else []
        extra += ["reused"] if reused else []
        items.append(
            f"<li><span>{escape(step['title'])}<small>{step['stage']}/{step['digest'][:8]}</small></span>"
            f'<span class="track"><i class="{"reused" if reused else ""}" style="width:{100 * seconds / longest:.1f}%">'
            f'</i></span><span class="time">{duration(seconds)}<small>{escape(", ".join(extra))}</small></span></li>'
        )
    total = sum(step["seconds"] or 0 for step in steps)
    spent = sum(step["seconds"] or 0 for step in steps if not step["reused"])
    return (
        f'<ol class="road">{"".join(items)}</ol><p class="soft">{duration(total)} in all, {duration(spent)} of it '
        "in this run; hatched steps were loaded from earlier runs.</p>"
    )


def curves(run: RunFolder) -> str:
    """The threshold curve, and losses and average precision over the epochs."""
    parts = []
    seeds = run.record["scores"].get("seeds", {})
    if "curve" in seeds:
        thresholds, mious = seeds["curve"]["thresholds"], [100 * value for value in seeds["curve"]["miou"]]
        marks = [
            Mark(seeds[name]["threshold"], 100 * seeds[name]["miou"], f"{word} {seeds[name]['threshold']:g}", colour)
            for name, word, colour in (("best", "best", 2), ("fixed", "method's", 1))
            if name in seeds and seeds[name]["miou"] is not None
        ]
        line = Series("", thresholds, mious, 1)
        parts.append(chart([line], "Seeds: mIoU % by threshold", "background threshold", "mIoU %", marks, zero=True))
    order = [step["title"] for step in run.record.get("steps", [])]
    histories = run.record.get("history", {})
    for title in sorted(histories, key=lambda name: order.index(name) if name in order else len(order)):
        history = histories[title]
        epochs = [epoch["epoch"] + 1 for epoch in history]
        names = [name for name in history[0]["losses"] if name != "total"] if history else []
        wanted = ["total", *names] if 1 < len(names) <= 3 else ["total"]
        lines = [
            Series(
                name if len(wanted) > 1 else "", epochs, [epoch["losses"][name] for epoch in history], place, dots=True
            )
            for place, name in enumerate(wanted, start=1)
            if history and all(name in epoch["losses"] for epoch in history)
        ]
        parts.append(chart(lines, f"{title}: loss", "epoch", "loss", whole=True))
        ranked = [(epoch["epoch"] + 1, 100 * epoch["mean_ap"]) for epoch in history if epoch.get("mean_ap") is not None]
        if ranked:
            line = Series("", [x for x, _ in ranked], [y for _, y in ranked], 3, dots=True)
            parts.append(chart([line], f"{title}: image-level mAP % on val", "epoch", "mAP %", whole=True))
    return f'<div class="two">{"".join(parts)}</div>' if any(parts) else ""


def classes(run: RunFolder) -> str:
    """IoU per class, one bar for every scored step."""
    found = {step: pair for step in STEPS if (pair := usual(run, step)) is not None}
    if not found:
        return ""
    legend = "".join(
        f'<span class="key"><i class="back{COLOURS[step]}"></i>{TITLES[step]}, {VARIANTS[variant]}</span>'
        for step, (variant, _) in found.items()
    )
    items = []
    for label in run.labels:
        bars = "".join(bar(values["iou"].get(label), COLOURS[step]) for step, (_, values) in found.items())
        items.append(f'<li><span class="name" title="{escape(label)}">{escape(label)}</span><span>{bars}</span></li>')
    return f'<p>{legend}</p><ul class="classes">{"".join(items)}</ul>'


def bar(value: float | None, colour: int) -> str:
    """One horizontal bar with its number."""
    width = 0.0 if value is None else 100 * value
    return (
        f'<span class="bar"><i class="track"><i class="back{colour}" style="width:{width:.1f}%"></i></i>'
        f"<span>{percent(value)}</span></span>"
    )


def confusion(run: RunFolder) -> str:
    """The matrix of the last thing that was scored."""
    for step in reversed(list(STEPS)):
        found = usual(run, step)
        if found is not None and "matrix" in found[1]:
            chart_ = confusion_chart(np.asarray(found[1]["matrix"]), run.labels)
            what = f"{TITLES[step]}, {VARIANTS[found[0]]}"
            text = f"{what}: rows are the truth, columns the answer, cells the share of the row in %."
            return f'<p class="soft">{text}</p>{chart_}'
    return ""


def image_section(run: RunFolder, step: str, shown: Sequence[Shown], start: int) -> str:
    """Panels by group; each opens large, and the arrows lead to the next."""
    from wsss_ray.data.manifest import load_manifest

    palette = load_manifest(run.record["data"]).palette
    groups: dict[str, list[str]] = {}
    for place, image in enumerate(shown, start=start):
        group = "by class" if image.group.startswith("class ") else image.group
        groups.setdefault(group, []).append(panel(image, place, start, start + len(shown), run.labels, palette))
    title = {"seeds": "seeds", "masks": "pseudo masks", "segmentation": "predictions"}[step]
    lead = "Best and worst by the mean IoU of an image's classes, which only chooses images. Touch one to enlarge it."
    body = "".join(
        f'<h3>{escape(name.capitalize())}</h3><div class="panels">{"".join(panels)}</div>'
        for name, panels in groups.items()
    )
    return section(f"Images: {title}", body, lead if any(image.score is not None for image in shown) else "")


def panel(
    image: Shown, number: int, first: int, last: int, labels: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> str:
    """One image's tiles, opened by its own address (``:target``), so that it works without a script."""
    height, width = image.size
    tiles = "".join(
        f'<span><img src="{data}" alt="{escape(caption)}" style="aspect-ratio:{width}/{height}" loading="lazy">'
        f"<span>{escape(caption)}</span></span>"
        for caption, data in image.tiles
    )
    swatches = "".join(
        f'<span><i class="swatch" style="background:rgb{palette[label]}"></i>{escape(labels[label])}</span>'
        for label in image.labels
        if label < len(labels)
    )
    score = f"<span>IoU {percent(image.score)}</span>" if image.score is not None else ""
    before, after = max(first, number - 1), min(last - 1, number + 1)
    return (
        f'<div><figure class="panel" id="p{number}"><a class="open" href="#p{number}" '
        f'aria-label="{escape(image.image_id)}, large">{tiles}</a>'
        f"<figcaption><b>{escape(image.image_id)}</b>{score}{swatches}</figcaption>"
        f'<nav><a href="#p{before}" aria-label="before">←</a><a href="#p{after}" aria-label="next">→</a>'
        '<a href="#-" aria-label="close">✕ close</a></nav></figure></div>'
    )


def recipe_block(recipe: dict[str, Any]) -> str:
    """The recipe as YAML, folded."""
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return f"<details><summary>recipe.yaml: runs again with 'wsss run'</summary><pre>{escape(text)}</pre></details>"
