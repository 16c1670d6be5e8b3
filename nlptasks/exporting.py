"""Exporting a model to ONNX: one graph `encode` with every head, and those that heads add, checked before they are kept.

Engines, in this order: the exporter of transformers, with the model's own attention, then with eager attention (T5 needs it),
then PyTorch's own exporter. The first one whose graph gives the model's numbers is taken.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlptasks import __version__
from nlptasks.batching import random_batch
from nlptasks.disk import sealed, sha256, written_beside
from nlptasks.errors import BackendError, ModelError, UsageError, first_line, listing
from nlptasks.heads.base import Graph, further_graphs
from nlptasks.manifest import EXPORTS, REPORT
from nlptasks.model import Model, ModelFolder
from nlptasks.runtime.onnx import OnnxRuntime
from nlptasks.runtime.pytorch import TorchRuntime
from nlptasks.types import ENCODE, Ints

_log = logging.getLogger("nlptasks")

PRECISIONS = ("fp32",)
_TOLERANCE = 1e-4
"""Largest difference of any output between PyTorch and ONNX Runtime in fp32."""

_SHAPES = ((1, 2), (1, 7), (3, 16), (7, 33))
"""Batch and length of the inputs that are compared."""

_Axes = dict[str, dict[int, Any]]

Engine = Callable[[nn.Module, dict[str, Tensor], _Axes, Path], None]
"""Writes a module, traced on sample inputs, of which some axes may change, to a file."""


@dataclass(frozen=True)
class ExportReport:
    """What an export was made from, and how it compares with PyTorch.

    Attributes:
        precision: of the weights.
        engine: what exported it.
        max_difference: largest absolute difference of any output, in the output's own unit.
        shapes: batch and length of the inputs that were compared.
        made_from: sha256 of the model's files.
        files: sha256 of the export's files.
    """

    nlptasks: str
    precision: str
    engine: str
    max_difference: float
    shapes: tuple[tuple[int, int], ...]
    made_from: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True)
class _Traceable:
    """A graph, and what it takes to trace it and to compare what came of it.

    Attributes:
        name: of the graph.
        module: from named tensors to named tensors.
        traced: the same with an argument for each input, as exporters want it.
        samples: inputs; it is traced on the first.
        axes: for each input, the axes whose length may change.
        counts: says which values of an output count, by its name and the inputs.
        trunk: the part whose attention can be another one, if any.
        kind: the architecture, for messages.
    """

    name: str
    module: nn.Module
    traced: nn.Module
    samples: Sequence[Mapping[str, Tensor]]
    axes: Mapping[str, tuple[int, ...]]
    counts: Callable[[str, np.ndarray, Mapping[str, Tensor]], np.ndarray]
    trunk: Any
    kind: str


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


def _graphs(model: Model) -> dict[str, _Traceable]:
    info = model.backbone.info
    kind = info.config.model_type
    shapes = [(2, 8), *_SHAPES]
    encode = _Traceable(
        name=ENCODE,
        module=model,
        traced=_Encode(model).eval(),
        samples=[_tensors(random_batch(info, shape, seed)) for seed, shape in enumerate(shapes)],
        axes=dict.fromkeys(info.inputs, (0, 1)),
        counts=lambda name, value, inputs: _real(model, name, value, inputs["mask"].numpy()),
        trunk=model.backbone.trunk,
        kind=kind,
    )
    return {
        ENCODE: encode,
        **{name: _of_head(name, graph, kind) for name, graph in further_graphs(model.heads).items()},
    }


def _of_head(name: str, graph: Graph, kind: str) -> _Traceable:
    """A graph that a head adds."""
    return _Traceable(
        name=name,
        module=graph,
        traced=_Further(graph).eval(),
        samples=graph.samples(),
        axes=graph.axes,
        counts=lambda name, value, inputs: value,
        trunk=None,
        kind=kind,
    )


def _real(model: Model, output: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What an output [B,...] gives for real tokens: what it gives for padding is never read."""
    head, _, name = output.rpartition(".")
    axes = model.heads[head].outputs[name]
    return value.swapaxes(1, axes.index("S"))[mask == 1] if "S" in axes else value


def export(folder: str | Path, *, precision: str = "fp32") -> ExportReport:
    """Export the model in a folder into its ``onnx/PRECISION/``, replacing an older export.

    Raises:
        UsageError: unknown precision.
        ModelError: the folder is no model.
        BackendError: no engine can export it with the model's own numbers.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}", "is unknown", f"take one of {listing(PRECISIONS)}")
    stored = ModelFolder.open(folder)
    model = stored.model()
    target = stored.path / EXPORTS / precision
    with written_beside(target, ModelError) as place:
        written = [_export_checked(graph, place / _file(name)) for name, graph in _graphs(model).items()]
        report = ExportReport(
            nlptasks=__version__,
            precision=precision,
            engine=", ".join(dict.fromkeys(engine for engine, _ in written)),
            max_difference=max(difference for _, difference in written),
            shapes=_SHAPES,
            made_from=_ingredients(stored, stored.records),
            files={path.name: sha256(path) for path in sorted(place.iterdir())},
        )
        (place / REPORT).write_bytes(sealed(asdict(report)))
    return report


def open_export(
    stored: ModelFolder, graphs: Iterable[str], *, heads: Collection[str], precision: str, device: str
) -> OnnxRuntime:
    """The runtime of some graphs of a model's export, with the outputs of some heads.

    Raises:
        ModelError: there is no such export, or it is stale.
        BackendError: the device cannot be had.
    """
    problem = export_problem(stored, precision, heads)
    if problem:
        raise ModelError(str(stored.path), problem, f"run: nlptasks export {stored.path}")
    place = stored.path / EXPORTS / precision
    return OnnxRuntime(
        {graph: place / _file(graph) for graph in graphs},
        device=device,
        precision=precision,
        wanted=lambda output: "." not in output or output.partition(".")[0] in heads,
    )


def _file(graph: str) -> str:
    return f"{'model' if graph == ENCODE else graph}.onnx"


def has_export(stored: ModelFolder, precision: str) -> bool:
    """Whether there is an export in this precision, fresh or not."""
    return precision in stored.exports


def export_problem(stored: ModelFolder, precision: str, heads: Collection[str]) -> str | None:
    """Why there is no usable export of these heads in this precision; None if there is one."""
    report = stored.exports.get(precision)
    if report is None:
        return f"has no ONNX export in {precision} (made are: {listing(sorted(stored.exports))})"
    stale = [head for head in heads if not _ingredients(stored, [head]).items() <= report["made_from"].items()]
    if stale:
        return f"has a stale ONNX export in {precision}: the model has changed since, for {listing(stale)}"
    return None


def _ingredients(stored: ModelFolder, heads: Iterable[str]) -> dict[str, str]:
    """The files that the answers of these heads are a function of, and their sha256."""
    parts = ("backbone/", *(f"heads/{head}." for head in heads))
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith(parts)}


def _export_checked(graph: _Traceable, path: Path) -> tuple[str, float]:
    """Export by the first engine that gives the model's numbers: its name and the largest difference."""
    expected = _outputs_of(TorchRuntime({graph.name: graph.module}, torch.device("cpu")), graph)
    failures = []
    for name, attention, engine in _ENGINES:
        try:
            with _attention(graph.trunk, attention), _quiet():
                engine(graph.traced, dict(graph.samples[0]), _axes(graph.axes), path)
            runtime = OnnxRuntime({graph.name: path}, device="cpu", precision="fp32")
            difference = _difference(expected, _outputs_of(runtime, graph))
        except Exception as error:  # exporters raise whatever their many parts raise
            failures.append(f"{name}: {first_line(error)[:120]}")
        else:
            if difference <= _TOLERANCE:
                return name, difference
            failures.append(f"{name}: outputs differ by {difference:.1e}")
        _log.info("export: %s", failures[-1])
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    problem = f"cannot be exported as {graph.name} ({'; '.join(failures)})"
    raise BackendError(f"the architecture {graph.kind}", problem, "run it on PyTorch")


def _export_by_transformers(module: nn.Module, sample: dict[str, Tensor], axes: _Axes, path: Path) -> None:
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    exporter = OnnxExporter()
    exported = exporter.export(module, sample, config=OnnxConfig(dynamic=True, dynamic_shapes=axes))
    exporter.save_program(exported.program, path)


def _export_by_torch(module: nn.Module, sample: dict[str, Tensor], axes: _Axes, path: Path) -> None:
    program = torch.onnx.export(module, kwargs=sample, dynamic_shapes=axes, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path), external_data=True)


def _axes(free: Mapping[str, tuple[int, ...]]) -> _Axes:
    """The axes of every input that may change."""
    return {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in free.items()}


_ENGINES: tuple[tuple[str, str | None, Engine], ...] = (
    ("transformers", None, _export_by_transformers),
    ("transformers, eager attention", "eager", _export_by_transformers),
    ("torch, eager attention", "eager", _export_by_torch),
)


def _tensors(arrays: Mapping[str, Ints]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _outputs_of(runtime: TorchRuntime | OnnxRuntime, graph: _Traceable) -> list[dict[str, np.ndarray]]:
    """The outputs for every sample."""
    found = []
    for inputs in graph.samples:
        outputs = runtime.run(graph.name, {name: tensor.numpy() for name, tensor in inputs.items()})
        found.append({name: graph.counts(name, runtime.fetch(tensor), inputs) for name, tensor in outputs.items()})
    return found


def _difference(expected: list[dict[str, np.ndarray]], found: list[dict[str, np.ndarray]]) -> float:
    return max(
        float(np.abs(one[name] - two[name]).max()) for one, two in zip(expected, found, strict=True) for name in one
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
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings: whether the graph is right is measured."""
    loggers = [logging.getLogger(name) for name in ("transformers", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
