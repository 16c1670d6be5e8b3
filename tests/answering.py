"""What tests of exports and runtimes share: models that are copied and asked, and answers that are compared."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from nlptasks.cli.main import main
from nlptasks.pipeline import Pipeline, pipeline

TEXTS = [
    "Ada Smith saw London .",
    "Bob left",
    "",
    "Cleo Smith left Paris . " * 30,
    "Dan saw Berlin and Rome .",
    "saw . " * 90 + "Ada Smith",
]


def run(*words: object) -> Result:
    """What the command line says."""
    return CliRunner().invoke(main, [str(word) for word in words])


def copied(source: Path, target: Path) -> Path:
    """A copy of a model, that may be changed."""
    shutil.copytree(source, target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(model: Path, backend: str, heads: str | None = None, **options: Any) -> Pipeline:
    """A model on the CPU, with options of its only head."""
    return pipeline(
        heads, model=model, backend=backend, device="cpu", options={str(heads): options} if options else None
    )


def check_same(one: Any, two: Any, *, tolerance: float = 1e-5) -> None:
    """Compare answers: all the same, but for rounding of the numbers."""
    ours, theirs = [], []
    assert _without_numbers(one, ours) == _without_numbers(two, theirs)
    assert ours == pytest.approx(theirs, abs=tolerance)


def numbers_of(result: Any) -> list[float]:
    """The scores in an answer, in order."""
    found: list[float] = []
    _without_numbers(result, found)
    return found


def _without_numbers(result: Any, numbers: list[float]) -> Any:
    """An answer with its numbers taken out, into a list."""
    if isinstance(result, float):
        numbers.append(result)
        return "a number"
    if is_dataclass(result):
        result = vars(result)
    if isinstance(result, dict):
        return {name: _without_numbers(own, numbers) for name, own in result.items()}
    if isinstance(result, list | tuple):
        return [_without_numbers(own, numbers) for own in result]
    return result


def check_threads(pipe: Pipeline, texts: Sequence[str], *, kinds: int, threads: int = 16) -> None:
    """Ask from many threads at once, each its own texts in its own order, and compare with one after another.

    Args:
        pipe: the pipeline.
        texts: what is asked; there are as many different answers to it as this is to show anything.
        kinds: the number of these.
        threads: how many.
    """
    expected = [pipe(text) for text in texts]
    assert len({str(found) for found in expected}) >= kinds
    found: dict[int, list[tuple[int, Any]]] = {number: [] for number in range(threads)}
    together = threading.Barrier(threads)

    def work(number: int) -> None:
        together.wait(60)
        for turn in range(3):
            index = (number + 5 * turn) % len(texts)
            found[number].append((index, pipe(texts[index])))
        indexes = [(number + step) % len(texts) for step in range(4)]
        found[number] += zip(indexes, pipe([texts[index] for index in indexes]), strict=True)

    started = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for own in found.values():
        assert len(own) == 7
        for index, answer in own:
            check_same(answer, expected[index])


def rewritten(path: Path, number: float) -> None:
    """Write a graph anew with one number in all its matrices."""
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, number, dtype=np.float32), weight.name))
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
