"""The floors of the house: no import upward, no cycle between files, no file that is too long."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT


LONGEST = 600
FLOORS = {
    "hf_cots._errors": 0,
    "hf_cots.models": 1,
    "hf_cots.data": 2,
    "hf_cots.conversion": 2,
    "hf_cots.search": 3,
    "hf_cots.serve": 4,
    "hf_cots.evaluation.results": 4,
    "hf_cots.evaluation.rendering": 4.1,
    "hf_cots.evaluation.retrieval": 4.2,
    "hf_cots.evaluation.tasks": 4.3,
    "hf_cots.evaluation.diagnostics": 4.3,
    "hf_cots.export": 5,
    "hf_cots.training": 5,
    "hf_cots.demo": 6,
    "hf_cots.train": 6,
    "hf_cots.train_dvae": 6,
    "hf_cots.distill_text": 6,
    "hf_cots": 7,  # cli, __init__, __main__
    "benchmarks": 8,
}


def floor_of(module: str) -> float:
    """The floor of the longest prefix."""
    names = module.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next(FLOORS[prefix] for prefix in prefixes if prefix in FLOORS)


def find_modules(root: Path) -> dict[str, Path]:
    """Every Python file below `src` and `benchmarks`, by its dotted name."""
    modules = {}
    for top in (root / "src", root):
        for path in sorted(top.glob("hf_cots/**/*.py" if top.name == "src" else "benchmarks/**/*.py")):
            names = path.relative_to(top).with_suffix("").parts
            modules[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return modules


def find_imports(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that a file imports, wherever in it: at the top, in functions, for type checkers only."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*parent, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                name = f"{source}.{alias.name}"
                found.add(name if name in modules else source)
    return found & modules.keys() - {module}


def find_problems(root: Path) -> list[str]:
    """What breaks the rules, in words."""
    modules = find_modules(root)
    graph = {module: find_imports(module, path, modules) for module, path in modules.items()}
    problems = [
        f"upward: {module} imports {imported}"
        for module, imports in graph.items()
        for imported in sorted(imports)
        if floor_of(imported) > floor_of(module)
    ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append(f"cycle: {' <- '.join(error.args[1])}")
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules.items()}
    return problems + [f"long: {module} has {n} lines" for module, n in lengths.items() if n > LONGEST]


def test_the_package_keeps_its_floors():
    assert len(find_modules(ROOT)) > 80
    assert find_problems(ROOT) == []


@pytest.mark.parametrize(
    ("planted", "problems"),
    [
        ({}, []),
        ({"models/a.py": "def f():\n    from ..data import b\n"}, ["upward: hf_cots.models.a imports hf_cots.data.b"]),
        ({"data/b.py": "import hf_cots.cli\n"}, ["upward: hf_cots.data.b imports hf_cots.cli"]),
        (
            {"data/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .c import C\n"},
            ["cycle: hf_cots.data.b <- hf_cots.data.c <- hf_cots.data.b"],
        ),
        ({"models/a.py": "\n" * (LONGEST + 1)}, [f"long: hf_cots.models.a has {LONGEST + 1} lines"]),
    ],
)
def test_a_planted_problem_is_found(tmp_path, planted, problems):
    files = {
        "models/a.py": "",
        "data/b.py": "",
        "data/c.py": "from ..models import a\nfrom .b import B\n",
        "cli.py": "",
    }
    for name, text in (files | planted).items():
        path = tmp_path / "src" / "hf_cots" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert find_problems(tmp_path) == problems
