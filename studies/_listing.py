# SPDX-License-Identifier: Apache-2.0
"""What the papers' files declare, read from their text: listing names then imports no method and no torch."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STUDIES = "STUDIES"
RECIPE = "recipe"


@dataclass(frozen=True)
class Paper:
    """One file of this folder."""

    name: str
    summary: str
    """First paragraph of its docstring."""
    has_recipe: bool
    """Whether it has a function ``recipe``."""
    studies: dict[str, str]
    """What its ``STUDIES`` lists: key -> first paragraph of the docstring of its function."""


@cache
def read_papers(folders: tuple[str, ...]) -> dict[str, Paper]:
    """The files of the folders of a package by name; those that begin with ``_`` are no papers."""
    found = sorted((info.name, folder) for folder in folders for info in pkgutil.iter_modules([folder]))
    return {name: _read_paper(name, Path(folder) / f"{name}.py") for name, folder in found if not name.startswith("_")}


def _read_paper(name: str, path: Path) -> Paper:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    functions = {node.name: _read_summary(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    studies = {key: functions.get(function, "") for key, function in _read_studies(tree.body)}
    return Paper(name, _read_summary(tree), RECIPE in functions, studies)


def _read_summary(node: ast.Module | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].replace("``", "").split())


def _read_studies(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(key, name of the function) of each entry of ``STUDIES``; an entry is a function or a ``partial`` of one."""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == STUDIES:
            assert isinstance(node.value, ast.Dict), "STUDIES is written as one dictionary"
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                function = value.args[0] if isinstance(value, ast.Call) else value
                assert isinstance(key, ast.Constant)
                yield str(key.value), function.id if isinstance(function, ast.Name) else ""
