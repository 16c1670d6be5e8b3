"""Rules of the code base: packages import from the left only, heads import no PyTorch, only a head's file names its task."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from torch import nn

import nlptasks
from nlptasks.heads.base import Head
from nlptasks.networks.base import Network
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
    """Return the modules of the library that a file imports anywhere, except for type checking."""
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


def test_there_is_no_import_cycle() -> None:
    graph = {module: imports(tree) - {module} for module, tree in FILES.items()}

    def reaches(start: str, goal: str, seen: frozenset[str]) -> bool:
        return any(
            after == goal or (after not in seen and reaches(after, goal, seen | {after})) for after in graph[start]
        )

    assert [module for module in graph if reaches(module, module, frozenset())] == []


IMPORT_ALL = """
import importlib, sys


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            raise ImportError(f"imports {name}")


sys.meta_path.insert(0, Refusing())
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, error)
"""


def test_heads_import_neither_torch_nor_transformers() -> None:
    heads = [module for module in FILES if part_of(module) == "heads"]
    assert len(heads) > 6
    command = [sys.executable, "-c", IMPORT_ALL, *heads]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def members(cls: type) -> tuple[set[str], set[str]]:
    """Return the members that a subclass must define, and all its public names, inherited ones included."""
    required: set[str] = set(cls.__abstractmethods__)  # type: ignore[attr-defined]
    names = set(dir(cls))
    for base in cls.__mro__[: cls.__mro__.index(nn.Module) if issubclass(cls, nn.Module) else None]:
        declared = set(vars(base).get("__annotations__", ()))
        required |= {name for name in declared if not hasattr(cls, name)}
        names |= declared | (_set_in_init(base) if base.__module__.startswith("nlptasks.") else set())
    return required, {name for name in names if not name.startswith("_")}


def _set_in_init(cls: type) -> set[str]:
    """Return the attributes that `__init__` sets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    return {
        target.attr for target in targets if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
    }


def test_the_contract_of_a_head_stays_small() -> None:
    required, names = members(Head)
    assert {"Config", "schema", "read", "decode"} <= required
    assert len(required) <= 11, sorted(required)
    assert {"config", "calibration"} <= names
    assert len(names) <= 18, sorted(names)


def test_the_contract_of_a_network_stays_small() -> None:
    required, names = members(Network)
    assert {"outputs", "forward", "loss"} <= required
    assert len(required) <= 8, sorted(required)
    own = names - set(dir(nn.Module)) - set(nn.Module.__annotations__)
    assert "hf_module" in own
    assert len(own) <= 12, sorted(own)


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
def test_files_and_functions_are_short(module: str) -> None:
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
