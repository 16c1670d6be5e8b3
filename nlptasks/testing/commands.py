"""The checks of the test kit on the command line: every command, on the sample data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from nlptasks.cli.main import main
from nlptasks.data.datasets import load_data
from nlptasks.heads.base import sample_folder, without_gold
from nlptasks.registry import head_class

_ROWS = 3


def check_commands(task: str, backbone: Path, model: Path) -> None:
    """Train, show, evaluate, predict here and in a new process, export, and predict with the export.

    Args:
        task: the registered task.
        backbone: folder of a small backbone.
        model: the new model's folder.
    """
    run("train", task, "-o", model, "--backbone", backbone, "--epochs", 1, "--precision", "fp32", "--device", "cpu")
    assert task in run("show", model)
    assert task in run("tasks", task)
    cls = head_class(task)
    sample = sample_folder(cls)
    evaluation = json.loads(run("evaluate", model, f"{task}={sample}", "--json"))
    assert {"head", "split", "main_metric", "metrics"} <= set(evaluation), evaluation
    assert evaluation["main_metric"] in evaluation["metrics"], evaluation
    rows = model.with_suffix(".jsonl")
    train = load_data(sample, cls.schema.formats, {}).parts["train"]
    given = [without_gold(row, cls.schema).fields for row in train[:_ROWS]]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    here = run("predict", model, "--input", rows, "--json")
    assert len(here.splitlines()) == len(given), here
    command = [sys.executable, "-m", "nlptasks", "predict", str(model), "--input", str(rows), "--json"]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert there == here, "a new process gives other results"
    assert run("predict", model, "--input", rows)
    run("export", model)
    exported = run("predict", model, "--input", rows, "--json", "--backend", "onnx")
    check_alike([json.loads(line) for line in exported.splitlines()], [json.loads(line) for line in here.splitlines()])


def run(*arguments: object) -> str:
    """Run a command, which must succeed, and return its standard output."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"nlptasks {' '.join(map(str, arguments))} ended with {done.exit_code}:\n{done.output}"
    return done.stdout


def check_alike(one: Any, two: Any, *, tolerance: float = 1e-3, where: str = "results") -> None:
    """Check that two results are equal except for rounding.

    Args:
        one: data read from JSON.
        two: the same.
        tolerance: largest difference of two numbers.
        where: for messages.
    """
    if isinstance(one, dict) and isinstance(two, dict):
        assert set(one) == set(two), f"{where}: {sorted(one)} and {sorted(two)}"
        for name in one:
            check_alike(one[name], two[name], tolerance=tolerance, where=f"{where}.{name}")
    elif isinstance(one, list) and isinstance(two, list):
        assert len(one) == len(two), f"{where}: {len(one)} and {len(two)} items"
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            check_alike(left, right, tolerance=tolerance, where=f"{where}[{number}]")
    elif isinstance(one, float) and isinstance(two, float):
        assert abs(one - two) <= tolerance, f"{where}: {one} and {two}"
    else:
        assert one == two, f"{where}: {one!r} and {two!r}"
