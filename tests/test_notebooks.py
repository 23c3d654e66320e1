# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the documents run, end with something seen, and were committed with outputs of no one machine."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsss_ray.api import messages

nbformat = pytest.importorskip("nbformat", reason="notebooks run where the extra 'dev' is installed")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|work|Users|usr|opt)/")
SHOWN = {
    "first_run": ("dataframe", "image/png", "CAM", "classes", "normalize", "threshold 0.2 fixed by the method"),
    "own_pictures": ("disc", "square", "image/png", "nothing was scored"),
    "own_method": ("peak 0.1", "image/png", "peak"),
}
"""What stands in the outputs of a notebook."""
SMALLER = {
    "first_run": {
        "num_train=200": "num_train=48",
        '"train.augment.crop": 88': '"train.epochs": 2, "train.augment.crop": 88',
        '"segment.train.augment.crop": 88': '"segment.train.epochs": 1, "segment.train.augment.crop": 88',
    },
    "own_pictures": {
        "range(80)": "range(32)",
        '"train.epochs": 5': '"train.epochs": 2',
        '"segment.train.epochs": 4': '"segment.train.epochs": 1',
    },
    "own_method": {'num_train": 96': 'num_train": 32', '"train.epochs": 6': '"train.epochs": 1'},
}
"""What a notebook says -> what its test runs instead."""


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "docs" / "make_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def list_outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWN)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_ends_with_something_seen(path: Path, tmp_path: Path) -> None:
    """With fewer images and epochs than the page has, every cell as it stands there."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for number, smaller in SMALLER[path.stem].items():
            cell.source = cell.source.replace(number, smaller)
    text = "".join(cell.source for cell in notebook.cells)
    assert all(smaller in text for smaller in SMALLER[path.stem].values())
    nbformat.write(notebook, tmp_path / path.name)
    check_outputs(load_maker().execute(tmp_path / path.name, tmp_path / "run"), path.stem)


@pytest.mark.timeout(600)
def test_messages_stand_below_the_cell(tmp_path: Path) -> None:
    """Progress as plain lines on stdout."""
    call = 'import wsss_ray as wsss\nwsss.prepare("toy", out="data", num_train=8, num_val=4, size=48);'
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(call)]), tmp_path / "short.ipynb")
    notebook = load_maker().execute(tmp_path / "short.ipynb", tmp_path / "run")
    said = "".join(one["text"] for one in list_outputs(notebook) if one.get("name") == "stdout")
    assert "prepare: 12/12 images" in said


def test_messages_go_where_logging_sends_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the cell in a notebook that set nothing up; nowhere else by our own doing."""
    log = logging.getLogger("wsss_ray.stages")
    monkeypatch.setattr(logging.getLogger("wsss_ray"), "propagate", False)
    for notebook, shown in ((False, ""), (True, "made\n")):
        monkeypatch.setattr(messages, "_is_notebook", lambda answer=notebook: answer)
        with messages.show_in_cell():
            log.info("made")
        assert capsys.readouterr().out == shown
    monkeypatch.setattr(logging.getLogger("wsss_ray"), "handlers", [logging.NullHandler()])
    with messages.show_in_cell():
        log.info("made")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_shows_outputs_of_no_one_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    check_outputs(notebook, path.stem)
    assert not ABSOLUTE.findall(json.dumps(notebook))
    assert not [output for output in list_outputs(notebook) if output.get("name") == "stderr"]
    assert path.stat().st_size < 1_000_000


def check_outputs(notebook: Any, name: str) -> None:
    """Every cell ran without an error, the expected words are there, and an image is among the last outputs."""
    outputs = list_outputs(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [output for output in outputs if output.output_type == "error"]
    text = json.dumps(outputs)
    for word in SHOWN[name]:
        assert word in text, word
    shown = {kind for output in list_outputs(notebook)[-3:] for kind in output.get("data", {})}
    assert "image/png" in shown
