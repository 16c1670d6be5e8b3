"""Inputs and outputs of exported graphs: wrong inputs are refused by name, and outputs are passed on without a copy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answering import check_same, check_threads, opened
from onnxruntime import OrtValue

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.errors import BackendError
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.sources import StoredSource
from nlptasks.models.folder import ModelFolder
from nlptasks.models.model import load_model
from nlptasks.runtimes.base import ENCODE, Tensors
from nlptasks.runtimes.onnx import OnnxRuntime

STEP = "translation.step"


@pytest.fixture(scope="module")
def writer(backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with a head that generates text."""
    place = tmp_path_factory.mktemp("writer")
    rows = "".join(json.dumps({"source": f"ada {n}", "target": f"Ada {n}"}) + "\n" for n in range(9))
    (place / "pairs.jsonl").write_text(rows)
    options = {"decoder_layers": 1, "max_new_tokens": 6}
    target = nlptasks.Target("translation", "translation", str(place / "pairs.jsonl"), options=options)
    settings = TrainSettings(backbone=str(backbones / "bert"), epochs=1, precision="fp32", batch_tokens=64)
    nlptasks.train(target, output=place / "model", settings=settings)
    nlptasks.export(place / "model")
    return place / "model"


@pytest.mark.parametrize("backend", ["torch", "onnx:fp32"])
def test_many_threads_get_their_own_texts(writer: Path, backend: str) -> None:
    texts = [f"{'saw ' * number}Ada {letter}" for number, letter in enumerate("abcdefghijklmnop")]
    check_threads(opened(writer, backend, "translation", num_beams=2), texts, kinds=16)


# R8: wrong inputs

Change = Callable[[dict[str, Any]], object]


def turned(name: str, how: Callable[[Any], Any]) -> Change:
    """Replace one input."""
    return lambda given: given.update({name: how(given[name])})


def put(number: int) -> Callable[[Any], Any]:
    """Replace the first number."""

    def how(array: Any) -> Any:
        changed = array.copy()
        changed.flat[0] = number
        return changed

    return how


NOT_ENCODE: dict[str, tuple[str, Change]] = {
    "int32": ("input 'ids': is of int32, expected int64", turned("ids", lambda ids: ids.astype(np.int32))),
    "uint64": ("input 'ids': is of uint64, expected int64", turned("ids", lambda ids: ids.astype(np.uint64))),
    "float mask": ("input 'mask': is of float32, expected int64", turned("mask", lambda mask: mask.astype(np.float32))),
    "bool mask": ("input 'mask': is of bool, expected int64", turned("mask", lambda mask: mask == 1)),
    "vector": ("input 'ids': has 1 axes, expected 2", turned("ids", lambda ids: ids[0])),
    "cube": ("input 'mask': has 3 axes, expected 2", turned("mask", lambda mask: mask[None])),
    "number": ("input 'types': has 0 axes, expected 2", turned("types", lambda types: np.array(0))),
    "extra": ("the inputs: are ids, mask, more, types, expected ids, mask, types;", lambda given: given.update(more=1)),
    "missing": ("the inputs: are ids, types, expected ids, mask, types;", lambda given: given.pop("mask")),
    "nothing": ("the inputs: are none, expected ids, mask, types;", lambda given: given.clear()),
    "too large": ("input 'ids': has values from 1 to 300, expected 0 to 299", turned("ids", put(300))),
    "negative": ("input 'ids': has values from -1 to 1, expected 0 to 299", turned("ids", put(-1))),
    "mask of 2": ("input 'mask': has values from 1 to 2, expected 0 to 1", turned("mask", put(2))),
    "types of 2": ("input 'types': has values from 0 to 2, expected 0 to 1", turned("types", put(2))),
    "list": ("input 'ids': is list, expected a numpy array of int64", turned("ids", lambda ids: ids.tolist())),
    "tensor": ("input 'ids': is Tensor, expected a numpy array", turned("ids", torch.from_numpy)),
    "other tensor": (
        r"input 'ids': is tensor\(float\) with 2 axes, expected int64 with 2",
        turned("ids", lambda ids: OrtValue.ortvalue_from_numpy(ids.astype(np.float32), "cpu")),
    ),
    "other axes": (
        r"input 'mask': is tensor\(int64\) with 1 axes, expected int64 with 2",
        turned("mask", lambda mask: OrtValue.ortvalue_from_numpy(mask[0], "cpu")),
    ),
    "None": ("input 'mask': is NoneType, expected a numpy array", turned("mask", lambda mask: None)),
}
NOT_STEP: dict[str, tuple[str, Change]] = {
    "int32": ("input 'tokens': is of int32, expected int64", turned("tokens", lambda tokens: tokens.astype(np.int32))),
    "float rows": ("input 'rows': is of float64, expected int64", turned("rows", lambda rows: rows.astype(float))),
    "vector": ("input 'tokens': has 1 axes, expected 3", turned("tokens", lambda tokens: tokens[0, 0])),
    "integer states": (
        "input 'cross_key_0': is of int64, expected float32",
        turned("cross_key_0", lambda states: states.astype(np.int64)),
    ),
    "flat cache": ("input 'past_value_0': has 3 axes, expected 4", turned("past_value_0", lambda past: past[0])),
    "extra": ("the inputs: are .*more.*, expected cross_key_0", lambda given: given.update(more=1)),
    "missing": ("the inputs: are .*, expected cross_key_0, .*past_key_0", lambda given: given.pop("past_key_0")),
    "inputs of another": ("the inputs: are ids, mask", lambda given: (given.clear(), given.update(ids=1, mask=1))),
    "too large": ("input 'tokens': has values from .* to 99999, expected 0 to ", turned("tokens", put(99999))),
    "negative": ("input 'tokens': has values from -1 to .*, expected 0 to ", turned("tokens", put(-1))),
    "row from the end": ("input 'rows': has values from -1 to .*, expected 0 to ", turned("rows", put(-1))),
    "mask of 2": ("input 'mask': has values from 0 to 2, expected 0 to 1", turned("mask", put(2))),
    "list": ("input 'rows': is list, expected a numpy array of int64", turned("rows", lambda rows: rows.tolist())),
}
UNFIT_ENCODE: dict[str, Change] = {
    "other rows": turned("mask", lambda mask: mask[:1]),
    "other length": turned("mask", lambda mask: mask[:, :-1]),
    "too long": lambda given: given.update({name: np.tile(array, (1, 99)) for name, array in given.items()}),
}
UNFIT_STEP: dict[str, Change] = {
    "row too large": turned("rows", put(99)),
    "other states": turned("cross_key_0", lambda states: states[:, :, :, :-1]),
}


@cache
def step_inputs(model: Path) -> dict[str, Any]:
    [first, *_] = load_model(ModelFolder.open(model)).further_graphs()[STEP].samples()
    return {name: tensor.numpy() for name, tensor in first.items()}


def inputs_of(model: Path, graph: str) -> dict[str, Any]:
    """Return inputs that a graph accepts."""
    if graph == STEP:
        return step_inputs(model)
    ones = np.ones((2, 5), dtype=np.int64)
    return {"ids": ones, "mask": ones.copy(), "types": 0 * ones}


def refusal(writer: Path, graph: str, change: Change) -> BackendError:
    """Return the error for changed inputs; before and afterwards the graph accepts them unchanged."""
    pipe = opened(writer, "onnx:fp32")
    runtime, good = pipe._engine.runtime, inputs_of(writer, graph)
    numbers = {name: runtime.fetch(value) for name, value in runtime.run(graph, good).items()}
    bad = dict(good)
    change(bad)
    with pytest.raises(BackendError) as caught:
        runtime.run(graph, bad)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    for name, value in runtime.run(graph, good).items():
        np.testing.assert_array_equal(runtime.fetch(value), numbers[name])
    return caught.value


def cases(*tables: tuple[str, dict[str, Any]]) -> list[Any]:
    return [pytest.param(graph, case, id=f"{graph} {name}") for graph, table in tables for name, case in table.items()]


@pytest.mark.parametrize(("graph", "case"), cases((ENCODE, NOT_ENCODE), (STEP, NOT_STEP)))
def test_a_wrong_input_is_named(writer: Path, graph: str, case: tuple[str, Change]) -> None:
    message, change = case
    refused = str(refusal(writer, graph, change))
    assert re.match(message, refused)
    assert "onnxruntime" not in refused  # not its own message


@pytest.mark.parametrize(("graph", "change"), cases((ENCODE, UNFIT_ENCODE), (STEP, UNFIT_STEP)))
def test_inputs_that_do_not_fit_each_other_are_our_error(writer: Path, graph: str, change: Change) -> None:
    assert re.match(
        rf"the graph {graph}: fails on the cpu \(.*; use smaller batches", str(refusal(writer, graph, change))
    )


def test_floats_of_another_size_are_converted(writer: Path) -> None:
    pipe = opened(writer, "onnx:fp32")
    runtime, good = pipe._engine.runtime, inputs_of(writer, STEP)
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in good.items()}
    one, two = (runtime.fetch(runtime.run(STEP, given)["logits"]) for given in (good, wide))
    np.testing.assert_array_equal(one, two)


# Outputs stay on the device until they are fetched


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("rows", [[2, 0, 2], [1], []], ids=str)
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 4, 5)], ids=str)
def test_rows_are_selected_on_the_device_of_the_tensor(
    writer: Path, kind: Any, rows: list[int], shape: tuple[int, ...]
) -> None:
    runtime = opened(writer, "onnx:fp32")._engine.runtime
    array = (np.arange(np.prod(shape)) / 8).reshape(shape).astype(kind)
    tensor = OrtValue.ortvalue_from_numpy(array, "cpu")
    taken = runtime.take(tensor, np.array(rows, dtype=np.int64))
    assert isinstance(taken, OrtValue)
    assert taken.data_type() == tensor.data_type()
    found = runtime.fetch(taken)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array[rows].astype(np.float32))
    np.testing.assert_array_equal(runtime.fetch(tensor), array)


@pytest.fixture
def passages(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[list[int]]]:
    """Arrays that are passed to ONNX Runtime, and the shapes of the outputs that are fetched."""
    given: list[Any] = []
    fetched: list[list[int]] = []
    make, fetch = OrtValue.ortvalue_from_numpy, OrtValue.numpy

    def making(array: Any, *device: Any) -> OrtValue:
        given.append(array)
        return make(array, *device)

    def fetching(self: OrtValue) -> Any:
        fetched.append(self.shape())
        return fetch(self)

    monkeypatch.setattr(OrtValue, "ortvalue_from_numpy", staticmethod(making))
    monkeypatch.setattr(OrtValue, "numpy", fetching)
    return given, fetched


@pytest.mark.parametrize("beams", [1, 3])
def test_outputs_are_passed_to_the_next_graph_without_a_copy(writer: Path, beams: int, passages: Any) -> None:
    given, fetched = passages
    pipe = opened(writer, "onnx:fp32", "translation", num_beams=beams)
    texts = ["Ada saw Rome.", "Bob left Paris and Rome.", "Dan"]
    found = pipe(texts)
    assert len(fetched) > 2
    assert {len(shape) for shape in fetched} == {2}  # logits [R,V]; states and caches have four axes
    states = [array for array in given if array.ndim == 4]
    assert states
    assert all(array.size == 0 for array in states)  # the empty cache
    check_same(found, opened(writer, "torch", "translation", num_beams=beams)(texts), tolerance=1e-4)


def test_in_fp16_caches_are_passed_on_in_fp16(writer: Path, tmp_path: Path, passages: Any) -> None:
    given, fetched = passages
    exported = StoredSource(ModelFolder.open(writer), ["translation"]).exported("fp32")
    files = {graph: Path(shutil.copy(path, tmp_path)) for graph, path in exported.files.items()}
    for path in exported.files.values():
        shutil.copy(f"{path}.data", tmp_path)
        PRECISIONS["fp16"].convert(tmp_path / path.name)  # type: ignore[misc]
    runtime = OnnxRuntime(files, device="cpu", precision="fp16", outputs=exported.outputs, specs=exported.specs)
    run, kinds = runtime.run, {}

    def noting(graph: str, inputs: Tensors, heads: Any = None) -> Tensors:
        outputs = run(graph, inputs, heads)
        kinds.update({name.rpartition(".")[2]: value.data_type() for name, value in outputs.items()})
        return outputs

    runtime.run = noting  # type: ignore[method-assign]
    pipe = opened(writer, "onnx:fp32", "translation", num_beams=3)
    pipe._engine = replace(pipe._engine, runtime=runtime)
    assert all(text.text for text in pipe(["Ada saw Rome.", "Bob left Paris and Rome.", "Dan"]))
    assert kinds.pop("logits") == "tensor(float)"
    assert set(kinds.values()) == {"tensor(float16)"}
    assert {name.partition("_")[0] for name in kinds} == {"cross", "present"}
    assert {len(shape) for shape in fetched} == {2}
    assert not any(array.size for array in given if array.ndim == 4)
