"""The house keeps its own rules: arrows point down, only a head's own file knows its task's name."""

from __future__ import annotations

import ast
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import nlptasks
from nlptasks.registry import GROUP, tasks

PACKAGE = Path(nlptasks.__file__).parent
LADDER = (
    "errors, version < config, types, storage < text, runtimes < data, metrics, backbones < generation < networks < heads < "
    "registry < inference < models < exporting < pipeline < evaluation < reporting < training < tuning, integrations, "
    "benchmarking, serving, scaling, scaffolding < cli < testing"
)
RUNGS = {name: rung for rung, names in enumerate(LADDER.split(" < ")) for name in names.split(", ")}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    return {"nlptasks": "version", "nlptasks.__main__": "testing"}.get(module) or module.split(".")[1]


def is_head(module: str) -> bool:
    return module in {one.point.value.partition(":")[0] for one in tasks().values()}


FILES = {module_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imports(tree: ast.Module) -> set[str]:
    """Modules of the house that a file imports anywhere, for type checking alone left out."""
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= submodules or {node.module}
    return {name for name in found if name.split(".")[0] == "nlptasks"}


@pytest.mark.parametrize("module", FILES)
def test_packages_import_only_from_the_left(module: str) -> None:
    own = part_of(module)
    for imported in imports(FILES[module]):
        other = part_of(imported)
        assert other == own or RUNGS[other] < RUNGS[own], f"{module} imports {imported}"
        assert not is_head(imported) or is_head(module), f"{module} imports the head {imported} by name"


def test_there_is_no_circle() -> None:
    graph = {module: imports(tree) - {module} for module, tree in FILES.items()}

    def reaches(start: str, goal: str, seen: frozenset[str]) -> bool:
        return any(
            after == goal or (after not in seen and reaches(after, goal, seen | {after})) for after in graph[start]
        )

    assert [module for module in graph if reaches(module, module, frozenset())] == []


@pytest.mark.parametrize("module", FILES)
def test_only_a_heads_own_file_knows_its_tasks_name(module: str) -> None:
    own = {name for name, one in tasks().items() if one.point.value.partition(":")[0] == module}
    foreign = set(tasks()) - own
    tree = FILES[module]
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = [node.value]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.arg):
            names = [node.arg]
        assert not foreign & set(names), f"{module}:{node.lineno} names the task {names}"


def test_every_head_is_registered_by_metadata_and_has_its_sample() -> None:
    registered = {point.value.partition(":")[0] for point in entry_points(group=GROUP)}
    own = {module.rpartition(".")[2] for module in registered if module.startswith("nlptasks.heads.")}
    assert {path.name for path in (PACKAGE / "samples").iterdir()} == own
    assert own <= {path.stem for path in (PACKAGE / "heads").glob("*.py")}


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_of_one_sitting(module: str) -> None:
    tree = FILES[module]
    assert max((node.end_lineno or 0 for node in ast.walk(tree) if hasattr(node, "end_lineno")), default=0) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{module}.{node.name}"


@pytest.mark.parametrize("module", FILES)
def test_no_pickle_and_no_code_from_files(module: str) -> None:
    pickles = {
        f"{name}.{verb}"
        for name in ("pickle", "torch", "joblib", "marshal")
        for verb in ("load", "loads", "dump", "save")
    }
    forbidden = pickles | {"eval", "exec", "yaml.load"}
    calls = {ast.unparse(node.func) for node in ast.walk(FILES[module]) if isinstance(node, ast.Call)}
    assert not calls & forbidden
