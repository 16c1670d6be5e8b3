"""Tracing modules into ONNX graphs in fp32.

The engines are tried in this order: the exporter of transformers with fused attention, norms and activations if they are wanted;
then with eager attention (T5 needs it, and ONNX Runtime runs its matrix products faster on CPUs than what the others become);
then with the model's own attention; then PyTorch's own exporter. The exporter decides which result is kept.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlptasks.backbones.graph import Graph
from nlptasks.inference.batching import random_batch
from nlptasks.models.model import Model
from nlptasks.networks.base import Network
from nlptasks.runtimes.base import ENCODE, GraphSpec
from nlptasks.types import Ints

SHAPES = ((1, 1), (1, 7), (3, 16), (7, 33))
"""Batch size and length of the inputs of `encode` that are compared, besides the longest."""

_TRACED = (2, 8)
"""Batch size and length of the inputs that are traced: an axis of size 1 would become constant."""

_LABELS = "C"
"""Letter of an axis with a score for each label."""

_Axes = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Traceable:
    """A graph with what is needed to trace it and to compare the result.

    Attributes:
        name: name of the graph.
        module: module from named tensors to named tensors.
        traced: the same module with one argument for each input, as exporters need it.
        samples: inputs; the graph is traced on the first.
        spec: the inputs.
        counts: returns the values of an output that are compared, for the output's name, its value and the inputs.
        labels: outputs whose last axis has a score for each label or token, so that the best one is the answer.
        base_model: the Hugging Face model whose attention implementation can be changed, or None.
    """

    name: str
    module: nn.Module
    traced: nn.Module
    samples: Sequence[Mapping[str, Tensor]]
    spec: GraphSpec
    counts: Callable[[str, np.ndarray, Mapping[str, Tensor]], np.ndarray]
    labels: frozenset[str]
    base_model: Any

    @property
    def free_axes(self) -> _Axes:
        """The axes whose size may change, as exporters need them."""
        return {
            name: {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(sizes) if size is None}
            for name, sizes in self.spec.sizes.items()
        }


def traceables(model: Model) -> dict[str, Traceable]:
    """Return every graph of a model."""
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
        spec=GraphSpec(dict.fromkeys(info.inputs, (None, None)), info.limits),
        counts=partial(_of_tokens, model.outputs),
        labels=frozenset(_labels(model.outputs)),
        base_model=model.backbone.base_model,
    )


def further(name: str, graph: Graph) -> Traceable:
    """Return a further graph of a network."""
    return Traceable(
        name=name,
        module=graph,
        traced=_Further(graph).eval(),
        samples=graph.samples(),
        spec=graph.spec(),
        counts=_all,
        labels=frozenset(graph.labels),
        base_model=graph.base_model,
    )


def _labels(outputs: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for head, own in outputs.items():
        yield from (f"{head}.{output}" for output, axes in own.items() if axes.endswith(_LABELS))


def _of_tokens(
    outputs: Mapping[str, Mapping[str, str]], name: str, value: np.ndarray, inputs: Mapping[str, Tensor]
) -> np.ndarray:
    """Return the values of an output [B,...] for real tokens; those for padding are never read."""
    head, _, output = name.partition(".")
    axes = outputs[head][output]
    return value.swapaxes(1, axes.index("S"))[inputs["mask"].numpy() == 1] if "S" in axes else value


def _all(name: str, value: np.ndarray, inputs: Mapping[str, Tensor]) -> np.ndarray:
    return value


def _tensors(arrays: Mapping[str, Ints]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Encode(nn.Module):
    """The graph `encode` with one argument for each input."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.config = model.backbone.base_model.config
        self.device = torch.device("cpu")

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> dict[str, Tensor]:
        batch = {"ids": ids, "mask": mask}
        if types is not None:
            batch["types"] = types
        outputs: dict[str, Tensor] = self.model(batch)
        return outputs


class _Further(nn.Module):
    """A further graph with one argument for each input."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.whole = graph  # the name `graph` is used by tracers

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.whole(given)
        return outputs


class _States(Network):
    """Stands in for a network and returns the hidden states."""

    outputs: Mapping[str, str] = {"states": "BSH"}
    targets: Mapping[str, str] = {}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"states": states}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def bare(model: Model) -> Model:
    """Return the model's backbone without its heads, with its hidden states as outputs."""
    return Model(model.backbone, {}, {"backbone": _States()}, {}).eval()


def with_one_head(model: Model, name: str) -> Model:
    """Return the model with one of its heads."""
    branches = {name: model.branches[name]} if name in model.branches else {}
    return Model(model.backbone, {name: model.heads[name]}, {name: model.networks[name]}, {}, branches).eval()


@dataclass(frozen=True)
class Engine:
    """A way to write a graph to a file.

    Attributes:
        name: name for people.
        write: function that writes it.
        attention: attention implementation that is traced; None for the model's own.
    """

    name: str
    write: Callable[[Traceable, Path], None]
    attention: str | None = None

    def __call__(self, graph: Traceable, path: Path) -> None:
        """Write a graph to ``path``, and its weights to ``path`` + ``.data``."""
        with _attention(graph.base_model, self.attention), _quiet(), _without_stack_traces():
            self.write(graph, path)


def engines(fusions: str | None) -> tuple[Engine, ...]:
    """Return the engines to try, in order.

    Args:
        fusions: execution provider whose fused operators are wanted, such as ``cuda``; None for standard operators.
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
        output.name = name  # PyTorch's exporter chooses other names
    _drop_stack_traces(program.model)
    program.save(str(path), external_data=True)


def _drop_stack_traces(program: Any) -> None:
    """Remove the lines of code that each operator comes from: they name folders of the machine that exports."""
    for graph in (program.graph, *program.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


_PLAIN = (
    Engine("transformers, eager attention", partial(_by_transformers, None), "eager"),
    Engine("transformers", partial(_by_transformers, None)),
    Engine("torch, eager attention", _by_torch, "eager"),
)


@contextlib.contextmanager
def _attention(base_model: Any, name: str | None) -> Iterator[None]:
    """Change the attention implementation of a model in the block, if there is a model and a name."""
    if base_model is None or name is None:
        yield
        return
    before = base_model.config._attn_implementation
    base_model.set_attn_implementation(name)
    try:
        yield
    finally:
        base_model.set_attn_implementation(before)


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Do not collect the lines of code that each operator comes from, which takes a tenth of the time."""
    config: Any = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)  # older versions of PyTorch do not have it
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own warnings: whether the graph is right is measured."""
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
