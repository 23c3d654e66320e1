# SPDX-License-Identifier: Apache-2.0
"""A seeded stream of bad inputs: recipes, folders of images, records of runs, and command lines, each a command."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.fake_run import fake_run, prepare

Call = tuple[str, ...]
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 1e308, -0.0, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x" * 5000,
        "../../x",
        "/etc/passwd",
        "\0",
        "\n",
        "é\u0301",
        "\U0001f600",
        "null",
        "1e5",
        "[",
        "{a: b",
        "a=b",
    ),
    *([], [[]], [1, "a", None], {}, {"a": 1}, {"name": "cam"}, {"name": 3}, [{}], [float("nan")]),
)
ODD_BYTES = (
    b"",
    b"\0" * 100,
    b"\xff\xfe",
    b"[" * 50_000,
    b"{" * 1000,
    b"a: &a [*a, *a]",
    b"\x89PNG\r\n\x1a\n",
    b"PAR1",
    b"<x>",
)


@dataclass(frozen=True)
class Case:
    """One command on an input that was made bad."""

    kind: str
    what: str
    """How it was made bad."""
    call: Call


class Fuzzer:
    """The cases of a seed, in folders below ``root``."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw = root, random.Random(seed)
        self.data = prepare(root / "data")
        self.runs = [fake_run(root / "out", f"fake-{name}", self.data, seed=number) for number, name in enumerate("ab")]
        self._kinds: tuple[Callable[[Path], Case], ...] = (
            self._spoil_setting,
            self._spoil_recipe,
            self._spoil_folder,
            self._spoil_record,
            self._spoil_artifact,
            self._spoil_call,
        )

    def make(self, number: int) -> Case:
        """The case of this number, its files written."""
        place = self.root / f"case-{number}"
        place.mkdir()
        return self._kinds[number % len(self._kinds)](place)

    def _spoil_setting(self, place: Path) -> Case:
        from wsss_ray.config import list_keys
        from wsss_ray.studies import names, resolve

        recipe = self.draw.choice(names())
        key = self.draw.choice(list(list_keys(resolve(recipe))))
        if self.draw.random() < 0.3:
            key = key.replace(".", self.draw.choice(("..", "", ".x.")), 1)
        value = self.draw.choice(ODD_VALUES)
        text = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        return Case("setting", text[:80], ("show", recipe, "--set", text.replace("\0", "?")))

    def _spoil_recipe(self, place: Path) -> Case:
        path = place / "recipe.yaml"
        if self.draw.random() < 0.25:
            data = self.draw.choice(ODD_BYTES)
            path.write_bytes(data)
            return Case("recipe", repr(data[:20]), self._use_recipe(path))
        from wsss_ray.recipe import dump
        from wsss_ray.studies import names, resolve

        value = yaml.safe_load(dump(resolve(self.draw.choice(names()))))
        where = self._spoil_value(value)
        text = yaml.safe_dump(value)
        if self.draw.random() < 0.2:
            text = text[: self.draw.randrange(len(text))]
            where += ", cut"
        path.write_text(text)
        return Case("recipe", where, self._use_recipe(path))

    def _use_recipe(self, path: Path) -> Call:
        return self.draw.choice((("show", str(path)), ("run", str(path), "--plan", "--out", str(path.parent / "out"))))

    def _spoil_value(self, value: Any) -> str:
        """Put something odd somewhere into nested values; where and what."""
        where = []
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                return "nothing"
            key = self.draw.choice(keys)
            where.append(str(key))
            inner = value[key]
            if isinstance(inner, (dict, list)) and inner and self.draw.random() < 0.8:
                value = inner
                continue
            action = self.draw.random()
            if action < 0.15:
                del value[key]
                return f"{'.'.join(where)} gone"
            value[key] = odd = self.draw.choice(ODD_VALUES)
            return f"{'.'.join(where)} = {str(odd)[:30]!r}"

    def _spoil_folder(self, place: Path) -> Case:
        import numpy as np

        from tests.data.drawing import save

        folder = place / "images"
        for name in ("cat", "dog"):
            save(folder / name / "1.png", np.full((8, 9), 90, np.uint8))
        odd = (
            folder
            / "cat"
            / self.draw.choice(("2.png", "a\nb.png", "=1.jpg", "é.png", ".hidden.png", "x" * 240 + ".png"))
        )
        table = folder / self.draw.choice(
            ("labels.csv", "classes.txt", "metadata.csv", "metadata.jsonl", "data.yaml", "labelmap.txt", "result.json")
        )
        what = self.draw.choice(("bytes", "table", "pipe", "link", "device", "text"))
        if what == "bytes":
            odd.write_bytes(self.draw.choice(ODD_BYTES))
        elif what == "table":
            table.write_bytes(self.draw.choice(ODD_BYTES))
        elif what == "pipe":
            os.mkfifo(odd)
        elif what == "link":
            odd.symlink_to(self.draw.choice((folder, odd, place / "nowhere")))
        elif what == "device":
            odd.symlink_to("/dev/zero")
        else:
            head = self.draw.choice(
                ("image,labels", "image", "image,labels,image", '"', "image;labels", "file_name\tlabel")
            )
            row = self.draw.choice(
                ("cat/1.png,cat", ",", "../../x.png,cat", "/etc/passwd,cat", 'cat/1.png,"cat', "x" * 9000)
            )
            table.write_text(f"{head}\n{row}\n" * self.draw.choice((1, 3)))
        options = self.draw.choice(
            ((), ("--skip-bad",), ("--set", "val_fraction=2"), ("--classes", ","), ("--max-pixels", "1"))
        )
        source = self.draw.choice(("auto", "folder", "voc", "coco", "yolo", "label_studio", "datumaro"))
        # Without a cluster: the layout, the options, the tables.
        return Case("folder", f"{source} {what} {table.name} {options}", ("fuzz-open", source, str(folder), *options))

    def _spoil_record(self, place: Path) -> Case:
        run = place / "out" / "runs" / "fake-a"
        shutil.copytree(self.runs[0], run)
        path = run / self.draw.choice(("run.json", "recipe.yaml"))
        what = self._spoil_file(path)
        return Case("record", f"{path.name}: {what}", self._use_run(str(run), place))

    def _spoil_artifact(self, place: Path) -> Case:
        out, data = place / "out", place / "data"
        shutil.copytree(self.root / "out", out)
        shutil.copytree(self.data, data)
        run = out / "runs" / "fake-a"
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "data": str(data)}))
        files = sorted(
            path for folder in (out, data) for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts
        )
        path = self.draw.choice(files)
        what = self._spoil_file(path)
        if self.draw.random() < 0.3:
            return Case("artifact", f"{path.name}: {what}", ("data", "check", str(data)))
        return Case("artifact", f"{path.parent.parent.name}/{path.name}: {what}", self._use_run(str(run), place))

    def _spoil_file(self, path: Path) -> str:
        data = path.read_bytes()
        what = self.draw.choice(("gone", "odd", "cut", "flip", "value", "folder"))
        if what == "value" and path.suffix in (".json", ".yaml"):
            value = yaml.safe_load(data)
            where = self._spoil_value(value)
            path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
            return where
        path.unlink()
        if what == "folder":
            path.mkdir()
        elif what == "odd":
            path.write_bytes(self.draw.choice(ODD_BYTES))
        elif what == "cut":
            path.write_bytes(data[: self.draw.randrange(len(data))])
        elif what != "gone":
            place = self.draw.randrange(len(data))
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << self.draw.randrange(8))]) + data[place + 1 :])
            what = "flip"
        return what

    def _use_run(self, run: str, place: Path) -> Call:
        return self.draw.choice(
            (
                ("report", run, "--out", str(place / "page.html")),
                ("compare", run, self.runs[1], "--resamples", "10"),
                ("export", run, "--to", str(place / "to")),
                ("export", run, "--to", str(place / "to"), "--as", "coco"),
                ("export", run, "--to", str(place / "to"), "--as", "onnx"),
                ("predict", "--model", run, self.data, "--out", str(place / "to")),
                ("runs", "--out", str(place / "out")),
                ("check", str(place / "out")),
                ("clean", "--unused", "--out", str(place / "out")),
            )
        )

    def _spoil_call(self, place: Path) -> Case:
        calls = (
            ("run", "cam", "--plan", "--out", "out"),
            ("sweep", "cam", "--over", "score.background=0.1,0.2", "--search", "bad"),
            ("compare", *self.runs),
            ("report", self.runs[0], "--out", "page.html"),
            ("data", "show", self.data),
            ("weights", "check", "toy_pretrained"),
            ("study", "report", "cam.baseline"),
            ("export", self.runs[0], "--to", "to"),
            ("track", "sync", "--out", "out"),
        )
        words = list(self.draw.choice(calls))
        for _ in range(self.draw.choice((1, 1, 2))):
            spot = self.draw.randrange(1, len(words) + 1)
            odd = self.draw.choice(
                ("", "-", "--", "--nope", "\n", "s3://", "file:///nowhere", "gs://x y", "/dev/null", "x" * 3000, "é")
                + ("--out=/dev/null/x", "--log-file=/dev/null/x", "--seed=9e9", "--set=a", "--scale=huge", "--over==")
            )
            if self.draw.random() < 0.5 and spot < len(words):
                words[spot] = odd
            else:
                words.insert(spot, odd)
        return Case("call", " ".join(words)[:80].replace("\n", "?"), tuple(words))
