# SPDX-License-Identifier: Apache-2.0
"""The one environment of templates: what it escapes, what it refuses, and that no page is put together elsewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from markupsafe import Markup, escape

from wsss_ray.reports.rendering import render, render_document

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "wsss_ray" / "reports" / "templates"
HOSTILE = "</style><script>x</script>\"'&{{ 7 * 7 }}{% raw %}"


def test_every_value_is_escaped_and_none_is_a_template() -> None:
    page = render_document(HOSTILE, {HOSTILE: HOSTILE}, [render("parts", "notes", texts=[HOSTILE])], HOSTILE)
    assert page.count(str(escape(HOSTILE))) == 6
    assert HOSTILE not in page
    assert "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert page.count("<script") == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1, max_size=3))
def test_cells_of_tables_are_text(rows: list[list[str]]) -> None:
    table = render("parts", "table", titles=["a", "b"], rows=rows)
    cells = re.findall(r'<td class="\w*" data-name="[ab]">(.*?)</td>', table, re.DOTALL)
    assert [Markup(cell).unescape() for cell in cells] == [
        Markup(escape(cell)).unescape() for row in rows for cell in row
    ]
    assert not any("<" in cell or ">" in cell for cell in cells)


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="rows"):
        render("parts", "table", titles=["a"])
    with pytest.raises(UndefinedError, match="miou"):
        render("run", "headline", tiles=[{"title": "t", "colour": 1}], missing=[])


def test_templates_are_installed_with_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    files = [path.relative_to(TEMPLATES.parent).as_posix() for path in TEMPLATES.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert [name for name in files if not any(fnmatch(name, glob) for glob in data["wsss_ray.reports"])] == []


def test_no_module_writes_html_and_nothing_switches_escaping_off() -> None:
    found = []
    for path in (*(ROOT / "wsss_ray").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                tags = re.findall(r"</(?:div|p|span|table|td|li|svg|section|b|figure|html)>", node.value)
                found += [f"{path.relative_to(ROOT)}:{node.lineno}"] if tags else []
    assert found == []
    for path in TEMPLATES.glob("*.html"):
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", path.read_text(encoding="utf-8")), path.name
