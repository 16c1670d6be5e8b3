"""The house keeps its own rules: arrows point down, only a head's own file knows its task's name."""

from __future__ import annotations

import ast
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import nlptasks
from nlptasks.registry import GROUP, tasks

PACKAGE = Path(nlptasks.__file__).parent
ROWS = [
    {f"nlptasks{name}" for name in ("", ".errors", ".types")},
    {
        f"nlptasks.{name}"
        for name in (
            "registry",
            "config",
            "text",
            "tags",
            "scores",
            "probabilities",
            "related",
            "tokenizer",
            "textscores",
        )
    }
    | {f"nlptasks.{name}" for name in ("lines", "jsontext", "docbin", "files", "fields", "plain")}
    | {f"nlptasks.{name}" for name in ("disk", "folders", "weights", "hub", "architecture", "signals")},
    {f"nlptasks.{name}" for name in ("sharing", "backbone", "pretrained", "layers", "heads", "heads.base", "losses")}
    | {
        f"nlptasks.{name}"
        for name in (
            "decoder",
            "search",
            "stepping",
            "vocabulary",
            "origins",
            "generationconfig",
            "generative",
            "causal",
        )
    },
    set(),  # the heads, which nobody imports by name
    {f"nlptasks.{name}" for name in ("data", "checks", "batching", "manifest", "model", "engine", "measuring")}
    | {
        f"nlptasks.{name}"
        for name in ("defaults", "dropout", "schedule", "optimization", "checkpoint", "lesson", "loop")
    }
    | {
        f"nlptasks.{name}"
        for name in (
            "runtime",
            "runtime.cutting",
            "runtime.guarding",
            "runtime.pytorch",
            "runtime.providers",
            "runtime.onnx",
        )
    },
    {f"nlptasks.{name}" for name in ("card", "editing", "exporting", "importing", "pipeline", "evaluation")}
    | {
        f"nlptasks.{name}"
        for name in ("destinations", "identity", "trial", "training", "benchmarking", "ways", "scaffold")
    }
    | {f"nlptasks.{name}" for name in ("precisions", "tracing", "parity", "proof", "packing")},
    {f"nlptasks.{name}" for name in ("spacy_component", "spacy_settings", "documents", "attributes")},
]
HEADS, TOP = 3, 7


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(module: str) -> int:
    if module.startswith(("nlptasks.cli", "nlptasks.testing")) or module == "nlptasks.__main__":
        return TOP
    if module.startswith("nlptasks.heads.") and module != "nlptasks.heads.base":
        return HEADS
    return next(number for number, row in enumerate(ROWS) if module in row)


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
def test_arrows_point_down(module: str) -> None:
    own = row_of(module)
    for imported in imports(FILES[module]):
        assert row_of(imported) <= own, f"{module} imports {imported}, which stands above it"
        assert row_of(imported) != HEADS or own == HEADS, f"{module} imports the head {imported} by name"


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
    heads = {module for module in FILES if row_of(module) == HEADS}
    assert heads == {module for module in registered if module.startswith("nlptasks.")}
    assert {path.name for path in (PACKAGE / "samples").iterdir()} == {module.rpartition(".")[2] for module in heads}


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
