"""The README's table of architectures is what `benchmarks/coverage.py` measured, for every task that is registered."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import covering
import pytest
import tiny

from nlptasks.exporting.precisions import PRECISIONS


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script."""
    folder = Path(__file__).parent / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("coverage_of_architectures", folder / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_table_that_was_measured(coverage: ModuleType) -> None:
    assert coverage.table_in_readme() == coverage.table(coverage.stored()), (
        "python tests/benchmarks/coverage.py --table"
    )


def test_every_architecture_task_and_precision_was_measured(coverage: ModuleType) -> None:
    found = coverage.stored()["architectures"]
    assert set(found) == set(coverage.NAMES) == set(tiny.BACKBONES)
    for one in found.values():
        assert set(one["precisions"]) == set(PRECISIONS)
        assert {*one["precisions"]["fp32"]["heads"], *one["refused"]} == set(covering.built_in())
        assert one["precisions"]["fp32"]["max_difference"] <= 1e-4
        assert coverage.same_results(one["precisions"]["fp32"])
