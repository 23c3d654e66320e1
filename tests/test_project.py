# SPDX-License-Identifier: Apache-2.0
"""What a public project has: one version, metadata that agree, and files of its host that are valid and lead here."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from setuptools.config.pyprojecttoml import apply_configuration
from setuptools.dist import Distribution

import wsss_ray

ROOT = Path(__file__).parents[1]
SPDX = "# SPDX-License-Identifier: Apache-2.0"
TEMPLATES = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read_yaml(name: str | Path) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    """The package states it; the build reads it from there, the citation and the changelog agree."""
    assert "version" not in project
    built = apply_configuration(Distribution(), ROOT / "pyproject.toml")
    assert built.metadata.version == wsss_ray.__version__
    assert str(read_yaml("CITATION.cff")["version"]) == wsss_ray.__version__
    sections = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[:2] == ["Unreleased", wsss_ray.__version__]


def test_metadata_and_citation_agree(project: dict[str, Any]) -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert [one["name"] for one in citation["authors"]] == [one["name"] for one in project["authors"]]
    assert set(citation["keywords"]) <= set(project["keywords"])
    assert project.get("urls", {}).get("Repository") == citation.get("repository-code")
    versions = [one.rpartition(" ")[2] for one in project["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert project["requires-python"] == f">={versions[0]}"
    assert not any(one.startswith("License ::") for one in project["classifiers"]), "the SPDX expression says it"


def test_the_workflow_runs_what_the_project_checks_itself_with() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    triggers = workflow[True]  # YAML 1.1 reads the word "on" as true
    assert {"push", "pull_request"} <= triggers.keys()
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_hooks_are_the_checks_of_the_contributing_page() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        words = [word for word in shlex.split(hook["entry"]) if word != "--force-exclude"]
        assert " ".join(words) in text, hook["id"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    form = read_yaml(path)
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 1
    for part in form["body"]:
        assert part["type"] in ("markdown", "input", "textarea", "dropdown", "checkboxes")
        assert part["attributes"].get("label")
        assert (part["type"] in ("dropdown", "checkboxes")) == ("options" in part["attributes"])
    for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_there_is_a_form_for_bugs_and_one_for_methods() -> None:
    assert [path.stem for path in TEMPLATES] == ["bug", "method"]


def test_every_source_file_names_its_licence() -> None:
    """The first line, or the second below a shebang, is the SPDX one."""
    sources = [ROOT / ".ci" / "run", *ROOT.glob("*.py")]
    for folder in ("benchmarks", "cli", "docs", "examples", "studies", "tests", "wsss_ray"):
        sources += (ROOT / folder).rglob("*.py")
    assert len(sources) > 300
    without = []
    for path in sources:
        head = path.read_text(encoding="utf-8").splitlines()[:2]
        if SPDX not in (head[1:] if head and head[0].startswith("#!") else head[:1]):
            without.append(str(path.relative_to(ROOT)))
    assert without == []
