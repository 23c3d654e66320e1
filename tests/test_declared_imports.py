# SPDX-License-Identifier: Apache-2.0
"""What the packages import is what pyproject.toml declares: no more, no less, and what is optional says its extra."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from wsss_ray.nets.weight_registry import WEIGHTS

ROOT = Path(__file__).parents[1]
PACKAGES = ("wsss_ray", "cli", "studies")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_DEVELOPERS = ("dev", "docs")
NOT_INSTALLED = {"pillow_heif": "pillow-heif", "torchvision": "torchvision"}
"""Modules whose distribution need not be here to be known."""
COMPILED = ROOT / "wsss_ray" / "refine" / "dense_crf"
"""Kernels in numba: the folder itself is imported only where numba is there."""


def normalize(requirement: str) -> str:
    """The name of a distribution in one spelling."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


DECLARED = {normalize(one) for one in PROJECT["dependencies"]}
EXTRAS = {
    name: {normalize(one) for one in needed} - {"wsss-ray"}
    for name, needed in PROJECT["optional-dependencies"].items()
    if name not in FOR_DEVELOPERS
}


def list_imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(top-level module, whether it is imported with the file) of every import in it; those for types alone count."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            lazy = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            lazy = lazy or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                yield from ((alias.name.partition(".")[0], not lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                yield str(child.module).partition(".")[0], not lazy
            yield from walk(child, lazy)

    yield from walk(tree, False)


def find_imports() -> dict[str, dict[Path, bool]]:
    """Distribution -> file -> whether it is imported with the file, of all that is neither ours nor Python's."""
    known = packages_distributions()
    found: dict[str, dict[Path, bool]] = defaultdict(dict)
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for module, at_once in list_imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module in sys.stdlib_module_names or module == "wsss_ray":
                continue
            names = [NOT_INSTALLED[module]] if module in NOT_INSTALLED else known.get(module, [f"{module} of nothing"])
            # MLflow and its parts install one module; the first that is declared is meant.
            named = [normalize(name) for name in names]
            wanted = DECLARED.union(*EXTRAS.values())
            name = next((name for name in named if name in wanted), named[0])
            found[name][path] = found[name].get(path, False) or at_once
    return found


IMPORTS = find_imports()
IMPORTED_BY_TORCH = {"onnx"}
"""By its exporter."""


def test_what_is_imported_is_declared() -> None:
    undeclared = IMPORTS.keys() - DECLARED.union(*EXTRAS.values())
    assert {name: [str(path.relative_to(ROOT)) for path in IMPORTS[name]] for name in undeclared} == {}


def test_what_is_declared_is_imported() -> None:
    """Packages that hold nothing but weights are found by their files."""
    weights = {normalize(entry.package) for entry in WEIGHTS.values() if entry.package}
    assert DECLARED.union(*EXTRAS.values()) - IMPORTS.keys() - weights == IMPORTED_BY_TORCH


def test_what_is_optional_is_imported_late_and_names_its_extra() -> None:
    for name in set().union(*EXTRAS.values()) & IMPORTS.keys() - DECLARED:
        outside = {path: at_once for path, at_once in IMPORTS[name].items() if COMPILED not in path.parents}
        assert not any(outside.values()), f"{name} is imported with {[str(path) for path in outside]}"
        rooms = {path.parent for path in IMPORTS[name]} | {path.parent.parent for path in IMPORTS[name]}
        texts = "".join(path.read_text(encoding="utf-8") for room in rooms for path in room.glob("*.py"))
        extras = [extra for extra, names in EXTRAS.items() if name in names]
        assert any(f"wsss-ray[{extra}]" in texts for extra in extras), f"nothing says that {name} is of {extras}"


def test_imports_are_found_wherever_they_stand() -> None:
    code = (
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c.d import E\n"
        "try:\n    import f\nexcept ImportError:\n    pass\ndef g():\n    from h import i\nfrom . import j\n"
    )
    assert dict(list_imports(ast.parse(code))) == {"a": True, "typing": True, "c": False, "f": True, "h": False}
    assert [normalize(one) for one in ("PyYAML>=6", "ray[data,tune]>=2", "mkdocstrings[python]")] == [
        "pyyaml",
        "ray",
        "mkdocstrings",
    ]
