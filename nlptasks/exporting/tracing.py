"""From a module to an ONNX graph in fp32: what is traced, on which inputs, and the engines that can.

Engines, in this order: the exporter of transformers, with attention, norms and activations fused where that is wanted, then
with eager attention (T5 needs it, and ONNX Runtime runs its products faster on CPUs than what others become), then with the
model's own, then PyTorch's own exporter. Which one is taken is not decided here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nlptasks.backbones.graph import Graph
from nlptasks.heads.base import Head
from nlptasks.inference.batching import random_batch
from nlptasks.models.model import Model
from nlptasks.runtimes.base import ENCODE
from nlptasks.types import Ints

SHAPES = ((1, 1), (1, 7), (3, 16), (7, 33))
"""Batch and length of the inputs of `encode` that are compared, beside the longest."""

_TRACED = (2, 8)
"""Batch and length of those that it is traced on: an axis that is 1 long would be taken for fixed."""

_LABELS = "C"
"""The letter of an axis that has a score for each label."""

_Axes = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Traceable:
    """A graph, and what it takes to trace it and to compare what came of it.

    Attributes:
        name: of the graph.
        module: from named tensors to named tensors.
        traced: the same with an argument for each input, as exporters want it.
        samples: inputs; it is traced on the first.
        axes: for each input, the axes whose length may change.
        counts: says which values of an output count, by its name and the inputs.
        labels: the outputs whose last axis has a score for each label or token: the best one is the answer.
        trunk: the part whose attention can be another one, if any.
    """

    name: str
    module: nn.Module
    traced: nn.Module
    samples: Sequence[Mapping[str, Tensor]]
    axes: Mapping[str, tuple[int, ...]]
    counts: Callable[[str, np.ndarray, Mapping[str, Tensor]], np.ndarray]
    labels: frozenset[str]
    trunk: Any

    @property
    def free_axes(self) -> _Axes:
        """The axes that may change, as exporters want them."""
        return {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in self.axes.items()}


def traceables(model: Model) -> dict[str, Traceable]:
    """Every graph of a model."""
    return {
        ENCODE: _encode_of(model),
        **{name: further(name, graph) for name, graph in model.further_graphs().items()},
    }


def _encode_of(model: Model) -> Traceable:
    info = model.backbone.info
    shapes = [_TRACED, *SHAPES, (1, info.max_tokens)]
    return Traceable(
        name=ENCODE,
        module=model,
        traced=_Encode(model).eval(),
        samples=[_tensors(random_batch(info, shape, seed)) for seed, shape in enumerate(shapes)],
        axes=dict.fromkeys(info.inputs, (0, 1)),
        counts=partial(_real, model.heads),
        labels=frozenset(_labels(model.heads)),
        trunk=model.backbone.trunk,
    )


def further(name: str, graph: Graph) -> Traceable:
    """A graph that a head adds."""
    return Traceable(
        name=name,
        module=graph,
        traced=_Further(graph).eval(),
        samples=graph.samples(),
        axes=graph.axes,
        counts=_all,
        labels=frozenset(graph.labels),
        trunk=graph.trunk,
    )


def _labels(heads: Mapping[str, Head]) -> Iterator[str]:
    for name, head in heads.items():
        yield from (f"{name}.{output}" for output, axes in head.outputs.items() if axes.endswith(_LABELS))


def _real(heads: Mapping[str, Head], output: str, value: np.ndarray, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """What an output [B,...] gives for real tokens: what it gives for padding is never read."""
    head, _, name = output.rpartition(".")
    axes = heads[head].outputs[name]
    return value.swapaxes(1, axes.index("S"))[inputs["mask"].numpy() == 1] if "S" in axes else value


def _all(output: str, value: np.ndarray, inputs: Mapping[str, Tensor]) -> np.ndarray:
    return value


def _tensors(arrays: Mapping[str, Ints]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Encode(nn.Module):
    """The graph `encode` with one argument for each input, as exporters want it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.config = model.backbone.info.config
        self.device = torch.device("cpu")

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> dict[str, Tensor]:
        batch = {"ids": ids, "mask": mask}
        if types is not None:
            batch["types"] = types
        outputs: dict[str, Tensor] = self.model(batch)
        return outputs


class _Further(nn.Module):
    """A graph of a head, the same way."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.whole = graph  # not `graph`, which tracers call theirs

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.whole(given)
        return outputs


class _States(nn.Module):
    """Stands for a head, and gives what it would read."""

    outputs: ClassVar[Mapping[str, str]] = {"states": "BSH"}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"states": states}

    def graphs(self) -> Mapping[str, Graph]:
        """None."""
        return {}


def bare(model: Model) -> Model:
    """The model's backbone without its heads; its states are what it gives."""
    return Model(model.backbone, {"backbone": cast(Head, _States())}, {}).eval()


def with_one_head(model: Model, name: str) -> Model:
    """The model with one of its heads."""
    branches = {name: model.branches[name]} if name in model.branches else {}
    return Model(model.backbone, {name: model.heads[name]}, {}, branches).eval()


@dataclass(frozen=True)
class Engine:
    """A way to write a graph to a file.

    Attributes:
        name: for people.
        write: writes it.
        attention: the implementation of attention that is traced; None for the model's own.
    """

    name: str
    write: Callable[[Traceable, Path], None]
    attention: str | None = None

    def __call__(self, graph: Traceable, path: Path) -> None:
        """Write a graph to ``path``, and its weights to ``path`` with ``.data`` behind it."""
        with _attention(graph.trunk, self.attention), _quiet(), _without_stack_traces():
            self.write(graph, path)


def engines(fusions: str | None) -> tuple[Engine, ...]:
    """The engines that are tried, in order.

    Args:
        fusions: of the execution provider whose fused operators are wanted: ``cuda``; None for the standard's operators.
    """
    fused = (Engine(f"transformers, fused for {fusions}", partial(_by_transformers, fusions)),) if fusions else ()
    return (*fused, *_PLAIN)


def _by_transformers(fusions: str | None, graph: Traceable, path: Path) -> None:
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    exporter = OnnxExporter()
    config = OnnxConfig(dynamic=True, dynamic_shapes=graph.free_axes, ort_fusions=fusions)
    program = exporter.export(graph.traced, dict(graph.samples[0]), config=config).program
    _drop_stack_traces(program)
    exporter.save_program(program, path)


def _by_torch(graph: Traceable, path: Path) -> None:
    program = torch.onnx.export(
        graph.traced, kwargs=dict(graph.samples[0]), dynamic_shapes=graph.free_axes, dynamo=True, verbose=False
    )
    assert program is not None
    with torch.no_grad():
        names = list(graph.traced(**graph.samples[0]))
    for output, name in zip(program.model.graph.outputs, names, strict=True):
        output.name = name  # PyTorch's exporter names them as it likes
    _drop_stack_traces(program.model)
    program.save(str(path), external_data=True)


def _drop_stack_traces(program: Any) -> None:
    """Take from each operator the lines of code that it comes from: they name folders of whoever exports it."""
    for graph in (program.graph, *program.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


_PLAIN = (
    Engine("transformers, eager attention", partial(_by_transformers, None), "eager"),
    Engine("transformers", partial(_by_transformers, None)),
    Engine("torch, eager attention", _by_torch, "eager"),
)


@contextlib.contextmanager
def _attention(trunk: Any, name: str | None) -> Iterator[None]:
    """The model, if there is one, with another attention implementation, if a name is given."""
    if trunk is None or name is None:
        yield
        return
    before = trunk.config._attn_implementation
    trunk.set_attn_implementation(name)
    try:
        yield
    finally:
        trunk.set_attn_implementation(before)


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Without gathering the lines of code that each operator comes from, which is a tenth of the work."""
    config: Any = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)  # PyTorch has not always had it
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings: whether the graph is right is measured."""
    loggers = [logging.getLogger(name) for name in ("transformers", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
