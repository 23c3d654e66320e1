# SPDX-License-Identifier: Apache-2.0
"""Notebooks as pages, with the outputs they were committed with (an MkDocs hook); the file itself can be downloaded."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Beside each ``NAME.ipynb`` its page ``NAME.md``, and the images of its outputs."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        notebook = nbformat.read(file.abs_src_path, as_version=4)
        place = PurePosixPath(file.src_uri)
        names = {"unique_key": place.stem, "output_files_dir": f"{place.stem}_files"}
        text, resources = MarkdownExporter().from_notebook_node(notebook, resources=names)
        files.append(File.generated(config, str(place.with_suffix(".md")), content=text))
        for name, data in resources["outputs"].items():
            files.append(File.generated(config, str(place.parent / name), content=data))
    return files
