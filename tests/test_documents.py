# SPDX-License-Identifier: Apache-2.0
"""What the documents name exists: code paths, commands with their options and settings, studies; and their wording."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from wsss_ray.cli.main import app
from wsss_ray.methods import METHODS
from wsss_ray.registry import OWN
from wsss_ray.studies import build_study, resolve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
CODE_PATH = re.compile(r"\b((?:wsss_ray|studies|cli|benchmarks|docs|tests|examples)/[\w./-]+)(?::([A-Za-z_][\w.]*))?")
WORDS = re.compile(r"\b(pictures?|roads?|(?<!random )walks?|walking)\b(?!\.py)", re.IGNORECASE)
OWN_METHODS = [name for name in METHODS if METHODS.origin(name) == OWN]
PLACEHOLDER = re.compile(r"<[^>]*>|\*")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(text: str) -> Iterator[str]:
    """Every line of fenced blocks and every inline code of a page."""
    for block in FENCE.findall(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()[1:-1]
        yield from lines
    yield from INLINE.findall(FENCE.sub("", text))


def names_in(path: Path) -> set[str]:
    """``function``, ``Class``, ``Class.method`` and ``CONSTANT`` of a module, nested names with dots."""

    def found(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from found(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))

    return set(found(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def commands_of(text: str) -> Iterator[list[str]]:
    """The arguments of every ``wsss ...`` on a page."""
    for code in code_of(text):
        if "wsss " not in code:
            continue
        for part in re.split(r"&&|\|\||;(?= )| > ", code):
            words = shlex.split(part, comments=True)
            place = next((k for k, word in enumerate(words) if word.rsplit("/", 1)[-1] == "wsss"), None)
            if place is not None and all("=" in word or k >= place for k, word in enumerate(words[:place])):
                yield [word for word in words[place + 1 :] if word != "..."]
            elif place is not None and "--" in words[:place]:
                yield words[place + 1 :]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's full name and its parameters; raises where an option or command does not exist."""
    command: Any = get_command(app)
    context = command.make_context("wsss", [], resilient_parsing=True)
    names: list[str] = []
    rest = arguments
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
    try:
        parsed = command.make_context(names[-1], list(rest), parent=context)
    except Exception as error:
        if type(error).__name__ != "MissingParameter":
            raise
        # A command that is only mentioned: `wsss data saliency`.
        parsed = command.make_context(names[-1], list(rest), parent=context, resilient_parsing=True)
    return " ".join(names), parsed.params


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_code_path_exists(page: Path) -> None:
    lines = [code for code in code_of(page.read_text(encoding="utf-8")) if not PLACEHOLDER.search(code)]
    assert missing_in(lines) == []


def missing_in(lines: list[str]) -> list[str]:
    """Paths, and names behind a path's colon, that do not exist."""
    missing = []
    for path, name in (found for line in lines for found in CODE_PATH.findall(line)):
        where = ROOT / path.rstrip("/.")
        if not where.exists():
            missing.append(path)
        elif name and name not in names_in(where):
            missing.append(f"{path}:{name}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    for arguments in commands_of(page.read_text(encoding="utf-8")):
        if not arguments or arguments == ["--help"] or arguments[0].isupper():
            continue
        if arguments[0].startswith("-"):
            options = [option for one in get_command(app).params for option in one.opts]
            assert arguments[0] in options, f"{name_of(page)}: wsss {arguments[0]}: no such option"
            continue
        try:
            name, given = parse(arguments)
        except Exception as error:
            raise AssertionError(f"{name_of(page)}: wsss {shlex.join(arguments)}: {error}") from error
        check_settings(name, given)


def check_settings(name: str, given: dict[str, Any]) -> None:
    """Recipes, their settings and studies that a command names are real."""
    study = given.get("name", "")
    if name in ("study run", "study report", "report") and study and not study.isupper() and "/" not in study:
        build_study(study)
    recipe = given.get("recipe") or ""
    if name not in ("run", "show", "sweep") or not recipe or recipe.isupper() or recipe.endswith(".yaml"):
        return
    if recipe == "own" and recipe not in METHODS:
        return  # the example, a package of its own
    settings = list(given.get("set_") or ())
    for axis in given.get("over") or ():
        key, _, values = axis.partition("=")
        settings.append(f"{key}={re.split('[,:]|[.][.]', values)[0]}")
    resolve(recipe, scale=given.get("scale") or "toy", profile=given.get("profile"), settings=settings)


def test_a_wrong_option_setting_or_path_is_found() -> None:
    with pytest.raises(Exception, match="--sacle"):
        parse(["run", "cam", "--sacle", "toy"])
    with pytest.raises(Exception, match="epochz"):
        check_settings(*parse(["run", "cam", "--set", "train.epochz=3"]))
    assert [*commands_of("```bash\nA=b wsss run cam   # x\nray job submit -- wsss run eps\n```")] == [
        ["run", "cam"],
        ["run", "eps"],
    ]
    cam = "wsss_ray/methods/cam.py"
    assert missing_in([f"{cam}:CAM.maps", f"{cam}:CAM.map", "docs/start.md", "docs/stop.md"]) == [
        f"{cam}:CAM.map",
        "docs/stop.md",
    ]


def test_readme_is_short_and_keeps_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    for mark in ("run", "test"):
        assert re.search(rf"^<!-- {mark} -->\n```bash\n[^\n]+\n```$", text, re.MULTILINE), mark


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_one_word_for_one_thing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = " ".join(re.sub(r"^::: .*", "", INLINE.sub("", FENCE.sub("", text)), flags=re.MULTILINE).split())
    found = WORDS.findall(prose)
    assert not found, f"{name_of(page)}: {found}"


@pytest.mark.parametrize("method", sorted(OWN_METHODS))
def test_settings_of_a_method_are_fields_of_it(method: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| setting \|.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert tables
    for line in "\n".join(tables).splitlines():
        for name in INLINE.findall(line.split("|")[1]):
            fields: Any = METHODS[method].model_fields
            for part in name.split("."):
                assert part in fields, f"{method} has no setting {name}"
                fields = getattr(fields[part].annotation, "model_fields", {})


def test_images_of_the_documents_are_small_and_there() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            image = page.parent / target
            assert image.is_file(), f"{name_of(page)}: {target}"
            assert image.stat().st_size <= 150_000, target


def test_links_of_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (ROOT / target).exists(), target


def test_citation_is_complete() -> None:
    value = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert value["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "version"} <= value.keys()


@pytest.mark.parametrize("name", ["docs/extending.md", "docs/reference/index.md"])
def test_python_of_the_page_runs(name: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


def test_the_example_is_quoted_as_it_is() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for language, name in (("py", "own_method.py"), ("toml", "pyproject.toml")):
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        source = (ROOT / "examples" / "own_method" / name).read_text(encoding="utf-8")
        assert blocks
        assert all(block in source for block in blocks), name


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason="formulas are drawn where the extra 'docs' is installed")
    spec = importlib.util.spec_from_file_location("mathml", ROOT / "docs" / "mathml.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        for formula in re.findall(r"\$\$(.+?)\$\$", page.read_text(encoding="utf-8"), re.DOTALL):
            drawn = hook.on_page_content(f'<div class="arithmatex">\\[{html.escape(formula)}\\]</div>')
            assert "<math" in drawn
            assert "\\" not in drawn, f"{page.name}: {formula}"
