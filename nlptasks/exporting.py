"""Exporting a model to ONNX: one graph `encode` with every head, checked against PyTorch before it is kept.

Engines, in this order: the exporter of transformers, with the model's own attention, then with eager attention (T5 needs it),
then PyTorch's own exporter. The first one whose graph gives the model's numbers is taken.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from nlptasks.model import EXPORTS, REPORT, Model, ModelFolder
from nlptasks.runtime.onnx import OnnxRuntime
from nlptasks.runtime.pytorch import TorchRuntime
from nlptasks.types import ENCODE, Ints

_log = logging.getLogger("nlptasks")

PRECISIONS = ("fp32",)
_GRAPH_FILES = {ENCODE: "model.onnx"}
_TOLERANCE = 1e-4
"""Largest difference of any output between PyTorch and ONNX Runtime in fp32."""

_SHAPES = ((1, 2), (1, 7), (3, 16), (7, 33))
"""Batch and length of the inputs that are compared."""

Engine = Callable[[nn.Module, dict[str, Tensor], Path], None]
"""Writes a module, traced on sample inputs, to a file."""


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
        engine, difference = _export_checked(model, place)
        report = ExportReport(
            nlptasks=__version__,
            precision=precision,
            engine=engine,
            max_difference=difference,
            shapes=_SHAPES,
            made_from=_ingredients(stored),
            files={path.name: sha256(path) for path in sorted(place.iterdir())},
        )
        (place / REPORT).write_bytes(sealed(asdict(report)))
    return report


def open_export(stored: ModelFolder, *, precision: str, device: str) -> OnnxRuntime:
    """The runtime of a model's export.

    Raises:
        ModelError: there is no such export, or it is stale.
        BackendError: the device cannot be had.
    """
    problem = export_problem(stored, precision)
    if problem:
        raise ModelError(str(stored.path), problem, f"run: nlptasks export {stored.path}")
    place = stored.path / EXPORTS / precision
    return OnnxRuntime(
        {graph: place / name for graph, name in _GRAPH_FILES.items()}, device=device, precision=precision
    )


def has_export(stored: ModelFolder, precision: str) -> bool:
    """Whether there is an export in this precision, fresh or not."""
    return precision in stored.exports


def export_problem(stored: ModelFolder, precision: str) -> str | None:
    """Why there is no usable export in this precision; None if there is one."""
    report = stored.exports.get(precision)
    if report is None:
        return f"has no ONNX export in {precision} (made are: {listing(sorted(stored.exports))})"
    if report["made_from"] != _ingredients(stored):
        return f"has a stale ONNX export in {precision}: the model has changed since"
    return None


def _ingredients(stored: ModelFolder) -> dict[str, str]:
    parts = ("backbone/", "heads/")
    return {name: digest for name, digest in stored.manifest["files"].items() if name.startswith(parts)}


def _export_checked(model: Model, place: Path) -> tuple[str, float]:
    """Export by the first engine that gives the model's numbers: its name and the largest difference."""
    expected = _outputs_of(TorchRuntime({ENCODE: model}, torch.device("cpu")), model)
    failures = []
    for name, attention, engine in _ENGINES:
        path = place / _GRAPH_FILES[ENCODE]
        try:
            with _attention(model, attention), _quiet():
                engine(_Encode(model).eval(), _tensors(random_batch(model.backbone.info, (2, 8))), path)
            runtime = OnnxRuntime({ENCODE: path}, device="cpu", precision="fp32")
            difference = _difference(expected, _outputs_of(runtime, model))
        except Exception as error:  # exporters raise whatever their many parts raise
            failures.append(f"{name}: {first_line(error)[:120]}")
        else:
            if difference <= _TOLERANCE:
                return name, difference
            failures.append(f"{name}: outputs differ by {difference:.1e}")
        _log.info("export: %s", failures[-1])
        for file in place.iterdir():
            file.unlink()
    kind = model.backbone.info.config.model_type
    raise BackendError(f"the architecture {kind}", f"cannot be exported ({'; '.join(failures)})", "run it on PyTorch")


def _export_by_transformers(module: nn.Module, sample: dict[str, Tensor], path: Path) -> None:
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    exporter = OnnxExporter()
    exported = exporter.export(module, sample, config=OnnxConfig(dynamic=True, dynamic_shapes=_axes(sample)))
    exporter.save_program(exported.program, path)


def _export_by_torch(module: nn.Module, sample: dict[str, Tensor], path: Path) -> None:
    program = torch.onnx.export(module, kwargs=sample, dynamic_shapes=_axes(sample), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path), external_data=True)


def _axes(sample: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Batch and length of every input may change."""
    return {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in sample}


_ENGINES: tuple[tuple[str, str | None, Engine], ...] = (
    ("transformers", None, _export_by_transformers),
    ("transformers, eager attention", "eager", _export_by_transformers),
    ("torch, eager attention", "eager", _export_by_torch),
)


def _tensors(arrays: Mapping[str, Ints]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _outputs_of(runtime: TorchRuntime | OnnxRuntime, model: Model) -> list[dict[str, np.ndarray]]:
    """The outputs at every shape, padded tokens left out: what they give is never read."""
    by_token = {
        f"{name}.{key}" for name in model.heads for key, axes in model.heads[name].outputs.items() if axes[1] == "S"
    }
    found = []
    for seed, shape in enumerate(_SHAPES):
        inputs = random_batch(model.backbone.info, shape, seed)
        outputs = {name: runtime.fetch(tensor) for name, tensor in runtime.run(ENCODE, inputs).items()}
        real = inputs["mask"] == 1
        found.append({name: value[real] if name in by_token else value for name, value in outputs.items()})
    return found


def _difference(expected: list[dict[str, np.ndarray]], found: list[dict[str, np.ndarray]]) -> float:
    return max(
        float(np.abs(one[name] - two[name]).max()) for one, two in zip(expected, found, strict=True) for name in one
    )


@contextlib.contextmanager
def _attention(model: Model, name: str | None) -> Iterator[None]:
    """The model with another attention implementation, if a name is given."""
    trunk: Any = model.backbone.trunk
    before = trunk.config._attn_implementation
    if name:
        trunk.set_attn_implementation(name)
    try:
        yield
    finally:
        if name:
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
