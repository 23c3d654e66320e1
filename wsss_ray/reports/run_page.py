# SPDX-License-Identifier: Apache-2.0
"""The page of a run as HTML: scores, steps, curves, classes, images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from wsss_ray.artifacts.record import RunFolder
from wsss_ray.reports.chart_svg import Axes, Mark, Series, draw_chart, draw_confusion
from wsss_ray.reports.closing import list_unscored
from wsss_ray.reports.images import BUDGET, Shown, draw_images
from wsss_ray.reports.layout import format_percent
from wsss_ray.reports.rendering import render, render_document
from wsss_ray.score.names import NUMBERS, STEPS, VARIANTS, choose_variant, make_title

NUM_COLOURS = 4
"""Series colours of the page's style."""


def build_run_page(run: RunFolder, budget: int = BUDGET) -> str:
    """The page of one run as HTML, with ``budget`` bytes of images; none for 0."""
    recipe = run.recipe
    data = recipe["data"]["uri"] or "synthetic images"
    facts = {
        "method": f"{recipe['method']['name']} ({recipe['method'].get('profile', 'paper')})",
        "network": recipe["net"]["backbone"],
        "data": str(data).rstrip("/").rsplit("/", 1)[-1],
        "scale": recipe["scale"],
        "seed": recipe["seed"],
        "finished": run.record.get("finished", "-"),
    }
    titled = {
        "Scores": build_score_table(run),
        "Steps": list_steps(run.record.get("steps", [])),
        "Curves": draw_curves(run),
        "Classes": draw_classes(run),
        "Confusion": draw_last_confusion(run),
    }
    sections = [
        build_headline(run),
        *(render("parts", "section", title=title, body=body) for title, body in titled.items()),
        *build_image_sections(run, budget),
        render("parts", "section", title="Recipe", body=fold_recipe(recipe)),
    ]
    return render_document(recipe["name"], facts, sections, run.name)


def find_usual(run: RunFolder) -> dict[str, tuple[str, dict[str, Any]]]:
    """Step -> (variant, numbers) that a paper would print, of every step that was scored."""
    scored = {step: run.scored(step) for step in STEPS}
    found = {step: choose_variant(step, variants) for step, variants in scored.items()}
    return {step: (variant, scored[step][variant]) for step, variant in found.items() if variant is not None}


def pick_colour(step: str) -> int:
    """The page's series colour of a step."""
    return 1 + list(STEPS).index(step) % NUM_COLOURS


def build_headline(run: RunFolder) -> Markup:
    """The number of every scored step, large, with its protocol, and why other steps have none."""
    tiles = [
        {
            **{"colour": pick_colour(step), "title": STEPS[step].title},
            **{"miou": numbers["miou"], "protocol": numbers["protocol"]},
        }
        for step, (_, numbers) in find_usual(run).items()
    ]
    missing = [f"{STEPS[step].title}: not scored: {reason}" for step, reason in list_unscored(run).items()]
    if not tiles and not missing:
        missing = ["This data has no ground truth, so nothing was scored."]
    return render("run", "headline", tiles=tiles, missing=missing)


def build_score_table(run: RunFolder) -> Markup:
    """Every scored variant with its protocol."""
    rows = [
        [make_title(step, variant), *(format_percent(values.get(key)) for key in NUMBERS), values["protocol"]]
        for step in STEPS
        for variant, values in run.scored(step).items()
    ]
    titles = ["score", *NUMBERS.values(), "protocol"]
    return render("parts", "table", titles=titles, rows=rows) if rows else Markup("")


def list_steps(steps: Sequence[dict[str, Any]]) -> Markup:
    """Every step with its time; hatched where it was loaded instead of computed."""
    if not steps:
        return Markup("")
    longest = max((step["seconds"] or 0 for step in steps), default=0) or 1
    bars = []
    for step in steps:
        seconds, reused = step["seconds"] or 0, step["reused"]
        extra = [f"{step['images_per_second']:.1f} images/s"] if step.get("images_per_second") else []
        extra += [f"{step['peak_memory_mb'] / 1024:.1f} GB"] if step.get("peak_memory_mb") else []
        extra += ["resumed: the last part of it"] if step.get("resumed") else []
        extra += ["reused"] if reused else []
        bar = {"title": step["title"], "where": f"{step['stage']}/{step['digest'][:8]}", "reused": reused}
        bars.append({**bar, "seconds": seconds, "width": 100 * seconds / longest, "extra": ", ".join(extra)})
    total = sum(step["seconds"] or 0 for step in steps)
    spent = sum(step["seconds"] or 0 for step in steps if not step["reused"])
    return render("run", "steps", bars=bars, total=total, spent=spent)


def draw_curves(run: RunFolder) -> Markup:
    """The threshold curves, and losses and average precision over the epochs."""
    charts = [draw_thresholds(step, run) for step in STEPS]
    order = [step["title"] for step in run.record.get("steps", [])]
    histories = run.record.get("history", {})
    for title in sorted(histories, key=lambda name: order.index(name) if name in order else len(order)):
        charts += draw_history(title, histories[title])
    return render("run", "curves", charts=charts) if any(charts) else Markup("")


def draw_thresholds(step: str, run: RunFolder) -> Markup:
    """The curve of mIoU over the background threshold, with the variants that stand on it; empty without a curve."""
    curve = run.record["scores"].get(step, {}).get("curve")
    if curve is None:
        return Markup("")
    marks = [
        Mark(
            values["threshold"],
            100 * values["miou"],
            f"{VARIANTS[variant].title} {values['threshold']:g}",
            pick_mark_colour(place),
        )
        for place, (variant, values) in enumerate(run.scored(step).items())
        if values.get("threshold") is not None and values["miou"] is not None
    ]
    line = Series("", curve["thresholds"], [100 * value for value in curve["miou"]], 1)
    title = f"{STEPS[step].title}: mIoU % by threshold"
    return draw_chart([line], Axes(title, "background threshold", "mIoU %", zero=True), marks)


def pick_mark_colour(place: int) -> int:
    """Colours of marks beside a line of colour 1."""
    return 2 + place % (NUM_COLOURS - 1)


def draw_history(title: str, history: Sequence[dict[str, Any]]) -> list[Markup]:
    """The losses of one training over its epochs, its average precision where it was measured, and its monitors."""
    if not history:
        return []
    epochs = [epoch["epoch"] + 1 for epoch in history]
    every = dict.fromkeys(name for epoch in history for name in epoch["losses"])
    monitors = [name for name in every if name.startswith("monitor/")]
    names = [name for name in history[0]["losses"] if name not in ("total", *monitors)]
    wanted = ["total", *names] if 1 < len(names) <= 3 else ["total"]
    lines = [
        Series(name if len(wanted) > 1 else "", epochs, [epoch["losses"][name] for epoch in history], place, dots=True)
        for place, name in enumerate(wanted, start=1)
        if all(name in epoch["losses"] for epoch in history)
    ]
    charts = [draw_chart(lines, Axes(f"{title}: loss", "epoch", "loss", whole=True))]
    ranked = [(epoch["epoch"] + 1, 100 * epoch["mean_ap"]) for epoch in history if epoch.get("mean_ap") is not None]
    if ranked:
        line = Series("", [x for x, _ in ranked], [y for _, y in ranked], 3, dots=True)
        charts.append(draw_chart([line], Axes(f"{title}: image-level mAP % on val", "epoch", "mAP %", whole=True)))
    for name in monitors:
        label, values = name.removeprefix("monitor/"), [epoch["losses"].get(name) for epoch in history]
        seen = [(x, value) for x, value in zip(epochs, values, strict=True) if value is not None]
        line = Series("", [x for x, _ in seen], [value for _, value in seen], 2, dots=True)
        charts.append(draw_chart([line], Axes(f"{title}: {label}", "epoch", label, whole=True)))
    return charts


def draw_classes(run: RunFolder) -> Markup:
    """IoU per class, one bar for every scored step."""
    found = find_usual(run)
    if not found:
        return Markup("")
    legend = [(pick_colour(step), make_title(step, variant)) for step, (variant, _) in found.items()]
    bars = [
        (label, [(pick_colour(step), values["iou"].get(label)) for step, (_, values) in found.items()])
        for label in run.labels
    ]
    return render("run", "classes", legend=legend, bars=bars)


def draw_last_confusion(run: RunFolder) -> Markup:
    """The confusion matrix of the last step that was scored."""
    for step, (variant, values) in reversed(find_usual(run).items()):
        if "matrix" in values:
            what = "rows = ground truth, columns = prediction, cells = share of the row in %"
            text = f"{make_title(step, variant)}: {what}."
            return render(
                "run", "confusion", what=text, matrix=draw_confusion(np.asarray(values["matrix"]), run.labels)
            )
    return Markup("")


def build_image_sections(run: RunFolder, budget: int) -> list[Markup]:
    """The sections of images, which share ``budget`` bytes; what a run made no artifact of has none."""
    steps = [step for step in STEPS if budget and run.artifact(STEPS[step].kind) is not None]
    sections: list[Markup] = []
    number = 0
    for step in steps:
        shown = draw_images(run, step, budget // len(steps))
        if shown:
            sections.append(build_image_section(run, step, shown, number))
            number += len(shown)
    return sections


def build_image_section(run: RunFolder, step: str, shown: Sequence[Shown], start: int) -> Markup:
    """Panels by group; each opens large, and the arrows lead to the next."""
    from wsss_ray.data.manifest import load_manifest

    palette = load_manifest(run.record["data"]).palette
    groups: dict[str, list[dict[str, Any]]] = {}
    for place, image in enumerate(shown, start=start):
        group = "by class" if image.group.startswith("class ") else image.group
        panel = {
            **{"image": image, "number": place},
            **{"before": max(start, place - 1), "after": min(start + len(shown) - 1, place + 1)},
            "swatches": [(palette[one], run.labels[one]) for one in image.labels if one < len(run.labels)],
        }
        groups.setdefault(group, []).append(panel)
    lead = "Best and worst by the mean IoU of an image's classes, which only chooses images. Select one to enlarge it."
    return render(
        "parts",
        "section",
        title=f"Images: {STEPS[step].title}",
        body=render("run", "images", groups=groups),
        lead=lead if any(image.score is not None for image in shown) else "",
    )


def fold_recipe(recipe: dict[str, Any]) -> Markup:
    """The recipe as YAML, folded."""
    return render("run", "recipe", text=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
