# SPDX-License-Identifier: Apache-2.0
"""Execute the notebooks of the documents and keep their outputs, which the pages show.

    python docs/make_notebooks.py [NAME ...]

Each runs in an empty folder, as a user who downloaded it would run it; ``%pip install`` goes beside it and leaves this
environment as it is. What speaks of this machine (its folders, what libraries say on stderr) is not kept.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).parent / "notebooks"
TIMEOUT = None
"""Seconds of a cell: no limit, since the machine may do much else."""


def execute(path: Path, folder: Path) -> NotebookNode:
    """A notebook with the outputs it has in ``folder``; CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    site = folder / ".site"
    site.mkdir(parents=True)
    places = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as its value, not as a wish: 0 is without isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env=environment)
    return notebook


def clean(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook without what differs from machine to machine."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                _cut(output, f"{folder}/")
                output.get("data", {}).pop("image/jpeg", None)  # a second copy, of PIL images
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = shrink(output.data["image/png"])
    return notebook


def shrink(png: str) -> str:
    """An image, as base64, in 128 colours."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _cut(node: NotebookNode, text: str) -> None:
    """Remove ``text`` from every string of a node."""
    for key, value in node.items():
        if isinstance(value, str):
            node[key] = value.replace(text, "")
        elif isinstance(value, dict):
            _cut(value, text)


def main() -> None:
    """Execute those named on the command line, or all."""
    chosen = sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    for name in chosen:
        path = NOTEBOOKS / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch).resolve()
            nbformat.write(clean(execute(path, folder), folder), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
