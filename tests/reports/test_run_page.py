# SPDX-License-Identifier: Apache-2.0
"""The report page: well-formed, whole without a network, small enough, and with the right images."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.fake_run import CLASSES, fake_run, prepare
from wsss_ray import storage
from wsss_ray.artifacts.record import open_run
from wsss_ray.artifacts.tables import COUNTS_SCHEMA, read_table, write_table
from wsss_ray.config import UserError
from wsss_ray.data.image import decode_mask
from wsss_ray.data.manifest import load_manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.reports import tiles
from wsss_ray.reports.chart_svg import Axes, Mark, Series, draw_chart, draw_confusion
from wsss_ray.reports.images import BUDGET, Chosen, choose_images, draw_images, encode_image
from wsss_ray.reports.page import LIMIT, write_page
from wsss_ray.reports.run_page import build_image_section, build_run_page, draw_history
from wsss_ray.reports.ticks import find_ticks
from wsss_ray.score.names import NOT_SCORED

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Strict(HTMLParser):
    """Fails where tags do not nest; collects ids, links and image sources."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens."""
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID:
            self.stack.append(tag)
        self.ids += [values["id"]] if values.get("id") else []  # type: ignore[list-item]
        self.links += [values["href"]] if values.get("href") else []  # type: ignore[list-item]
        self.sources += [values["src"]] if values.get("src") else []  # type: ignore[list-item]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A closed tag."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        """Closes."""
        assert self.stack[-1:] == [tag], f"</{tag}> closes {self.stack[-1:]}"
        self.stack.pop()


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert not parser.stack
    return parser


@pytest.fixture
def page(tmp_path: Path) -> str:
    data = prepare(tmp_path / "data", num_images=20)
    fake_run(tmp_path, "fake-1", data, {"003"})
    write_page("fake-1", str(tmp_path / "report.html"), str(tmp_path))
    return (tmp_path / "report.html").read_text()


def test_page_is_well_formed_and_whole(page: str) -> None:
    found = parsed(page)
    assert len(found.ids) == len(set(found.ids)) > 10
    assert found.sources
    assert all(source.startswith("data:image/webp;base64,") for source in found.sources)
    targets = {link.removeprefix("#") for link in found.links}
    assert targets - {"-"} == set(found.ids)
    # No address but those inside the page.
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page)


def test_page_has_every_section_and_escapes_names(page: str) -> None:
    for title in ("Scores", "Steps", "Curves", "Classes", "Confusion", "Images: Pseudo masks", "Recipe"):
        assert f"<h2>{title}</h2>" in page, title
    assert "dog &lt;b&gt;" in page
    assert "dog <b>" not in page
    assert "refined by seeds, image labels used" in page
    assert "1 min 30 s" in page
    assert "3.0 s of it in this run" in page
    assert "prefers-color-scheme:dark" in page
    assert "width=device-width" in page


HOSTILE = "<script>x</script>\"'&"


def poison(value: Any) -> Any:
    """``value`` with a piece of HTML behind every text in it."""
    if isinstance(value, dict):
        return {key: poison(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_file_becomes_markup(tmp_path: Path) -> None:
    run = open_run(fake_run(tmp_path, "fake-1", prepare(tmp_path / "data")))
    record = run.record
    record |= {key: poison(record[key]) for key in ("scores", "steps", "classes", "finished")}
    for step in ("masks", "seeds"):
        for values in (one for one in record["scores"][step].values() if "iou" in one):
            values["iou"] = {name + HOSTILE: value for name, value in values["iou"].items()}
    losses = [
        {name + HOSTILE * (name != "total"): value for name, value in epoch["losses"].items()}
        for epoch in record["history"]["train"]
    ]
    record["history"] = {HOSTILE: [{"epoch": place, "losses": one} for place, one in enumerate(losses)]}
    page = build_run_page(replace(run, folder=run.folder + HOSTILE, recipe=poison(run.recipe)))
    parsed(page)
    assert page.count("<script") == 1, "its own"
    assert page.count("&lt;script&gt;") > 20


def test_hostile_ids_of_images_become_text(tmp_path: Path) -> None:
    run = open_run(fake_run(tmp_path, "fake-1", prepare(tmp_path / "data")))
    shown = [replace(one, image_id=one.image_id + HOSTILE) for one in draw_images(run, "masks")]
    drawn = build_image_section(run, "masks", [replace(one, group=HOSTILE) for one in shown[:1]] + shown[1:], 0)
    parsed(drawn)
    assert "<script" not in drawn
    assert drawn.count("&lt;script&gt;") > len(shown)


def test_a_browser_may_run_the_pages_own_script_alone(page: str) -> None:
    """The policy names the digest of the script as it stands on the page: any other, or another address, is refused."""
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script>")
    rules = {name: value for name, _, value in (rule.strip().partition(" ") for rule in policy.split(";"))}
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "script-src": f"'sha256-{digest}'",
    }
    assert not re.search(r"<[^>]*\son[a-z]+=", page), "no script in attributes, which the policy would refuse"


def test_why_nothing_was_scored_is_said(tmp_path: Path) -> None:
    run = open_run(fake_run(tmp_path, "fake-1", prepare(tmp_path / "data")))
    masks = run.record["scores"]["masks"]
    run.record["scores"] = {"seeds": {NOT_SCORED: f"all pixels are 255 {HOSTILE}"}, "masks": masks}
    page = build_run_page(run, 0)
    assert "CAM seeds: not scored: all pixels are 255 &lt;script&gt;" in page
    assert "Pseudo masks mIoU" in page
    reason = {NOT_SCORED: "the ground truth holds background alone"}
    run.record["scores"] = {"seeds": reason, "masks": reason}
    page = build_run_page(run, 0)
    parsed(page)
    assert page.count(": not scored: the ground truth holds background alone") == 2
    assert "no ground truth" not in page
    run.record["scores"] = {}
    assert "This data has no ground truth, so nothing was scored." in build_run_page(run, 0)


def test_each_part_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(fake_run(tmp_path, "fake-1", prepare(tmp_path / "data", num_images=20), {"003"}))
    before = draw_images(run, "masks")
    read: list[str] = []

    def count(reader: Any) -> Any:
        def call(*where: Any, **options: Any) -> Any:
            read.append("/".join(str(one) for one in where))
            return reader(*where, **options)

        return call

    monkeypatch.setattr(tiles, "read_table", count(tiles.read_table))
    monkeypatch.setattr(tiles, "read_shard_table", count(tiles.read_shard_table))
    assert draw_images(run, "masks") == before
    assert len(before) > 12
    assert len(read) == len(set(read)) == 3 * 4, "images, maps and masks of four shards"
    assert list(dict.fromkeys(one.group.split()[0] for one in before)) == ["best", "worst", "random", "class"]


def test_noise_images_of_real_size_stay_below_the_limit(tmp_path: Path) -> None:
    data = prepare(tmp_path / "data", num_images=6, size=(375, 500))
    run = open_run(fake_run(tmp_path, "fake-1", data))
    sizes = [len(uri) for one in draw_images(run, "masks") for _, uri in one.tiles]
    assert len(sizes) == 24
    assert sum(sizes) < BUDGET < LIMIT
    assert sum(len(uri) for one in draw_images(run, "masks", budget=600_000) for _, uri in one.tiles) <= 600_000


def test_tiles_show_image_truth_map_and_mask(tmp_path: Path) -> None:
    fake_run(tmp_path, "fake-1", prepare(tmp_path / "data"), {"003"})
    shown = {one.image_id: one for one in draw_images(open_run("fake-1", str(tmp_path)), "masks")}
    assert [caption for caption, _ in shown["003"].tiles] == ["image", "ground truth", "class map", "pseudo mask"]
    assert shown["003"].group == "worst"
    assert shown["003"].score == 0
    assert shown["003"].labels == (1,)
    assert shown["003"].size == (24, 32)


def seeds_only(out: Path, name: str) -> str:
    """Make a fake run one that ended at its maps: scored seeds, no masks; its folder."""
    folder = fake_run(out, name, prepare(out / "data"), {"003"})
    for part in storage.list_names(str(out / "score" / name)):
        rows = read_table(str(out / "score" / name / part)).to_pylist()
        fixed = pa.Table.from_pylist([{**row, "variant": "fixed"} for row in rows], schema=COUNTS_SCHEMA)
        write_table(fixed, str(out / "score" / f"{name}-seeds" / part))
    record = storage.read_json(f"{folder}/run.json")
    seeds = record["scores"]["seeds"]
    record["scores"] = {"seeds": {**seeds, "fixed": {**seeds["best"], "threshold": 0.7}}}
    score = {"stage": "score", "digest": f"{name}-seeds"}
    record["artifacts"] = {"maps": record["artifacts"]["maps"], "score seeds": score}
    storage.write_json(f"{folder}/run.json", record)
    return folder


def test_run_that_ends_at_its_maps_shows_seeds(tmp_path: Path) -> None:
    run = open_run(seeds_only(tmp_path, "fake-1"))
    shown = {one.image_id: one for one in draw_images(run, "seeds")}
    assert [caption for caption, _ in shown["000"].tiles] == ["image", "ground truth", "class map", "seeds at 0.7"]
    assert shown["003"].group == "worst"
    assert shown["003"].score == 0
    assert {one.group for one in shown.values()} >= {"best", "worst", "random"}
    # Its maps are 1 everywhere: at 0.7 all is the class, at 1 all is background.
    image, *_, seeds = (data for _, data in shown["000"].tiles)
    assert seeds != image
    record = storage.read_json(f"{run.folder}/run.json")
    record["scores"]["seeds"]["fixed"]["threshold"] = 1.0
    storage.write_json(f"{run.folder}/run.json", record)
    empty = next(one for one in draw_images(open_run(run.folder), "seeds") if one.image_id == "000")
    assert empty.tiles[-1] == ("seeds at 1", image)
    write_page(run.folder, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    parsed(page)
    assert "<h2>Images: CAM seeds</h2>" in page
    assert "Images: Pseudo masks" not in page


def test_unscored_seeds_stand_at_the_recipes_threshold(tmp_path: Path) -> None:
    folder = seeds_only(tmp_path, "fake-1")
    record = storage.read_json(f"{folder}/run.json")
    storage.write_json(f"{folder}/run.json", {**record, "scores": {}})
    assert [caption for caption, _ in draw_images(open_run(folder), "seeds")[0].tiles][-1] == "class map"
    text = Path(folder, "recipe.yaml").read_text()
    Path(folder, "recipe.yaml").write_text(text.replace("absent: skip", "background: 0.4"))
    assert [caption for caption, _ in draw_images(open_run(folder), "seeds")[0].tiles][-1] == "seeds at 0.4"


def test_page_keeps_its_limit(tmp_path: Path) -> None:
    """Smaller images, then fewer, then none, and a word that says so."""
    folder = fake_run(tmp_path, "fake-1", prepare(tmp_path / "data", num_images=6, size=(375, 500)))
    numbers = []
    for limit in (LIMIT, 1_000_000, 300_000, 60_000):
        told = write_page(folder, str(tmp_path / "page.html"), limit=limit)
        page = (tmp_path / "page.html").read_text()
        numbers.append(len(parsed(page).sources))
        assert len(page.encode()) <= limit
        assert ("without images" in told) == (limit == 60_000), told
    assert numbers[0] == numbers[1] == 42
    assert 0 < numbers[2] < 42
    assert numbers[3] == 0
    told = write_page(folder, str(tmp_path / "page.html"), limit=1000)
    assert "larger than the limit of 0.001 MB" in told


def test_best_and_worst_are_chosen_by_their_objects() -> None:
    # (N, 3, K): background always right; image i finds 10 i of 100 object pixels and invents none.
    counts = np.zeros((11, 3, 2), np.int64)
    counts[:, :, 0] = 1000
    counts[:, 1, 1] = 100
    counts[:, 0, 1] = counts[:, 2, 1] = 10 * np.arange(11)
    # An image without objects is right everywhere and is neither best nor worst.
    counts = np.concatenate([counts, np.array([[[1000, 0]] * 3])])
    chosen = choose_images([str(place) for place in range(12)], counts, ["background", "cat"])
    groups: dict[str, list[str]] = {}
    for one in chosen:
        groups.setdefault(one.group, []).append(one.image_id)
    assert groups["best"] == ["10", "9", "8", "7"]
    assert groups["worst"] == ["0", "1", "2", "3"]
    assert len({one.image_id for one in chosen}) == len(chosen) == 12
    assert {one.image_id: one.score for one in chosen}["5"] == pytest.approx(0.5)
    assert choose_images(["a", "b"], None, ["background"]) == [
        Chosen("a", "random", None),
        Chosen("b", "random", None),
    ]


def test_each_class_has_its_image() -> None:
    generator = np.random.default_rng(0)
    counts = np.zeros((60, 3, 4), np.int64)
    counts[:, :, 0] = 50
    for place in range(60):
        label = 1 + place % 3
        counts[place, 1, label] = counts[place, 2, label] = 10
        counts[place, 0, label] = generator.integers(0, 11)
    groups = [one.group for one in choose_images([str(p) for p in range(60)], counts, ["background", "a", "b", "c"])]
    assert groups[-3:] == ["class a", "class b", "class c"]
    assert groups.count("random") == 6


def test_data_uri_shrinks_until_it_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    large, small = encode_image(noise, 10**9), encode_image(noise, 20_000)
    assert len(small) <= 20_000 < len(large)


def test_gone_images_leave_the_rest(tmp_path: Path) -> None:
    folder = fake_run(tmp_path, "fake-1", prepare(tmp_path / "data"))
    (tmp_path / "data" / "manifest.json").unlink()
    write_page(folder, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Scores</h2>" in page
    assert "Images" not in page
    parsed(page)


def test_neither_run_nor_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run 'x'.*no results of study 'x'"):
        write_page("x", str(tmp_path / "page.html"), str(tmp_path))


def test_ticks_enclose_or_stay_inside() -> None:
    assert find_ticks(0.0, 16.3) == [0, 5, 10, 15, 20]
    assert find_ticks(1, 4, inside=True) == [1, 2, 3, 4]
    for low, high in ((0.123, 0.456), (-3.0, 7.5), (5.0, 5.0), (0.0, 1e-4)):
        found = find_ticks(low, high)
        assert found[0] <= low + 1e-9
        assert found[-1] >= high - 1e-9
        assert 2 <= len(found) <= 8


def test_charts_place_points_and_bars() -> None:
    drawn = draw_chart(
        [Series("ours", [0, 1], [10.0, 20.0], 1, [2.0, None], dots=True)], Axes("T", "x", "y", names=["a", "b"])
    )
    parsed(drawn)
    high, low = (float(value) for value in re.findall(r'class="fill1" cx="[\d.]+" cy="([\d.]+)"', drawn))
    assert high > low, "larger values stand higher"
    assert drawn.count('class="line1"') == 4, "the line, and one error bar with its two ends"
    assert draw_chart([Series("none", [], [], 1)], Axes("T", "x", "y")) == ""


def test_each_monitor_of_a_training_has_its_chart() -> None:
    """Also one that begins later, as KTSE's do after its warm-up; none is drawn among the losses."""
    losses = [{"total": 1.0, "cls": 1.0}, {"total": 0.9, "cls": 0.8, "kt": 0.1, "monitor/erased": 0.25}]
    history = [{"epoch": epoch, "losses": found} for epoch, found in enumerate(losses)]
    loss, monitor = draw_history("train", history)
    assert "train: erased" in monitor
    assert "monitor" not in loss + monitor
    assert len(draw_history("train", [{"epoch": 0, "losses": {"total": 1.0, "cls": 1.0}}])) == 1


def test_words_beside_near_marks_stand_apart() -> None:
    line = Series("", [0.0, 1.0], [0.0, 40.0], 1)
    drawn = draw_chart(
        [line], Axes("T", "x", "y"), [Mark(0.13, 34.7, "best 0.13", 2), Mark(0.2, 33.9, "method's 0.2", 1)]
    )
    heights = [float(y) for y in re.findall(r'class="mark" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert len(heights) == 2
    assert abs(heights[0] - heights[1]) > 14


@pytest.mark.parametrize("num_classes", [1, 3, 20, 80])
def test_confusion_shares_are_of_the_truth(num_classes: int) -> None:
    labels = [f"class number {place}" for place in range(num_classes + 1)]
    matrix = np.zeros((num_classes + 1, num_classes + 2), np.int64)
    matrix[0, 0], matrix[1, 0], matrix[1, 1] = 8, 3, 1
    drawn = draw_confusion(matrix, labels)
    parsed(drawn)
    assert "class number 1 → class number 0: 75.0 %" in drawn
    assert "unknown" not in drawn
    assert len(drawn) < 300_000


def test_fake_data_has_the_classes(tmp_path: Path) -> None:
    where = prepare(tmp_path / "data")
    manifest = load_manifest(where)
    assert list(manifest.classes) == CLASSES
    assert manifest.splits["train"].num_images == 12
    seen = {name: set() for name in ("labels", "mask")}
    for shard in manifest.shards_of("train"):
        for row in read_shard(where, shard.path):
            assert len(row["labels"]) == 1
            seen["labels"] |= set(row["labels"])
            seen["mask"] |= set(np.unique(decode_mask(row["mask"])).tolist())
    assert seen == {"labels": {0, 1, 2}, "mask": {0, 1, 2, 3, 255}}
