# SPDX-License-Identifier: Apache-2.0
"""The arrows between the rooms of docs/design.md: every import goes to the left, and nothing imports in a circle."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (
    ("config", "registry", "contracts", "storage", "resources"),
    ("nets", "data", "score"),
    ("methods", "refine"),
    ("engine",),
    ("recipe",),
    ("artifacts", "tracking"),
    ("cluster",),
    ("stages",),
    ("reports", "experiments", "serve"),
    ("studies",),
    ("api", "cli"),
)
"""Rooms from left to right; what stands further right may import what stands further left or beside it."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
WITHOUT = {"ray", "mlflow"}
"""What the plain library (everything left of the recipe) never imports."""
BY_NAME = {"studies/__init__.py"}
"""Files that find modules by name."""


def list_modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of the package and of the folders that join it when it is installed."""
    found = {}
    for folder, prefix in (("wsss_ray", ""), ("studies", "wsss_ray."), ("cli", "wsss_ray.")):
        for path in (root / folder).rglob("*.py"):
            dotted = prefix + ".".join(path.relative_to(root).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    return found


@cache
def parse_imports(text: str) -> list[tuple[int, str, str, bool]]:
    """(line, module, name taken from it, whether for types alone) of every import in a file, also inside functions."""
    tree = ast.parse(text)
    only_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "", node in only_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, node.module, alias.name, node in only_types) for alias in node.names]
    return found


def list_imports(path: Path, modules: dict[str, Path], types_too: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file."""
    for line, module, name, for_types in parse_imports(path.read_text(encoding="utf-8")):
        if types_too or not for_types:
            whole = f"{module}.{name}"
            yield line, whole if whole in modules else module


def find_room(module: str) -> str:
    """``wsss_ray.data.image`` -> ``data``."""
    return module.split(".")[1] if "." in module else ""


def find_faults(root: Path) -> list[str]:
    """Imports to the right, pairs of rooms that import each other, circles of files, and what is loaded by name."""
    modules = list_modules(root)
    faults, pairs = [], {}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    faults += find_strays(modules, root)
    for module, path in modules.items():
        source = find_room(module)
        place = path.relative_to(root)
        if source and source not in LEVEL:
            faults.append(f"{place}: {source!r} is no room")
        if "import_module(" in path.read_text(encoding="utf-8") and str(place) not in BY_NAME:
            faults.append(f"{place}: loads modules by name")
        for line, target in list_imports(path, modules, types_too=True):
            room = find_room(target) if target in modules else ""
            if target.split(".")[0] in WITHOUT and source and LEVEL.get(source, 0) < LEVEL["recipe"]:
                faults.append(f"{place}:{line}: {source} imports {target.split('.')[0]}")
            if source and room and room != source:
                pairs[source, room] = f"{place}:{line}"
                if LEVEL.get(room, 0) > LEVEL.get(source, 0):
                    faults.append(f"{place}:{line}: {source} imports {room}, which stands further right")
        edges[module] = {target for _, target in list_imports(path, modules, types_too=False) if target in modules}
    faults += [
        f"{where}: {one} and {two} import each other" for (one, two), where in pairs.items() if (two, one) in pairs
    ]
    return faults + [f"circle: {' -> '.join(circle)}" for circle in find_circles(edges)]


def find_strays(modules: dict[str, Path], root: Path) -> list[str]:
    """Registry entries (``Lazy("module:name")``) whose module is not there, or lies in another room."""
    faults = []
    for module, path in modules.items():
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for target in re.findall(r'Lazy\("([\w.]+):\w+"', text):
                if target not in modules or find_room(target) != find_room(module):
                    faults.append(f"{path.relative_to(root)}:{line}: {target!r} is no module of this room")
    return faults


def find_circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """A path for every module from which imports lead back to it."""
    circles = []
    for start in edges:
        waiting, seen = [[start]], set()
        while waiting:
            path = waiting.pop()
            for target in edges[path[-1]]:
                if target == start and len(path) > 1:
                    circles.append([*path, start])
                    waiting = []
                    break
                if target not in seen:
                    seen.add(target)
                    waiting.append([*path, target])
    return circles


def test_every_import_goes_to_the_left() -> None:
    assert find_faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("wsss_ray/refine/crf.py", "from wsss_ray.stages.run import Run\n", "refine imports stages"),
        ("wsss_ray/data/image.py", "def late():\n    from wsss_ray.recipe import Recipe\n", "data imports recipe"),
        ("wsss_ray/reports/compare.py", "from wsss_ray.experiments.run import run\n", "import each other"),
        ("wsss_ray/engine/train.py", "import ray\n", "engine imports ray"),
        ("wsss_ray/score/curve.py", "from wsss_ray.score.bootstrap import compare_counts\n", ""),
        ("wsss_ray/methods/cam.py", 'ODD = Lazy("wsss_ray.nets.toy:Toy")\n', "is no module of this room"),
        ("wsss_ray/nets/toy.py", 'ODD = Lazy("wsss_ray.nets.no_such:Toy")\n', "is no module of this room"),
        ("wsss_ray/config.py", "def late():\n    import wsss_ray.registry\n", "circle"),
    ],
)
def test_one_forbidden_import_is_found(file: str, text: str, fault: str, tmp_path: Path) -> None:
    for folder in ("wsss_ray", "studies", "cli"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{text}", encoding="utf-8")
    faults = find_faults(tmp_path)
    assert any(fault in one for one in faults) if fault else faults == []


def test_the_house_is_small() -> None:
    """Files of at most 400 lines, and few of them beside the rooms."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in list_modules(ROOT).values()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
    assert len(list((ROOT / "wsss_ray").glob("*.py"))) <= 8
